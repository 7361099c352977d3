"""A verb whose output nobody reads goes on into nothing, and ends as it would have."""

import io
import os
import subprocess
import sys

import pytest

from jaxalign.streams import Unbroken, unbroken_output

# Prints more than any buffer holds, on both, while sys.stdout says what rich asks of it; then leaves with code 3.
CHILD = """
import sys
from jaxalign.streams import unbroken_output
with unbroken_output():
    assert not sys.stdout.isatty() and sys.stdout.encoding == "utf-8"
    for number in range(3000):
        print("line", number, "of stdout" * 10)
        print("line", number, "of stderr" * 10, file=sys.stderr)
    print("a last line that stays in the buffer")
sys.exit(3)
"""


def start(*command: str, **streams) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command], env=os.environ | {"PYTHONUTF8": "1"}, **streams)


def test_both_readers_may_go():
    child = start("-c", CHILD, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline().startswith(b"line 0 of stdout")
    child.stdout.close()
    child.stderr.close()
    assert child.wait(60) == 3


def test_one_that_is_still_read_gets_everything():
    child = start("-c", CHILD, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    lines = child.stderr.read().decode().splitlines()
    child.stderr.close()
    assert child.wait(60) == 3
    assert lines == [f"line {number} {'of stderr' * 10}" for number in range(3000)]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("command", [("-c", CHILD), ("-m", "jaxalign", "--help")])
def test_a_full_disk_ends_nothing(command):
    with open("/dev/full", "wb") as full:
        child = start(*command, stdout=full, stderr=subprocess.PIPE)
        said = child.communicate(timeout=60)[1].decode()
    assert child.returncode == (3 if command[0] == "-c" else 0)
    assert "Exception ignored" not in said and "Error" not in said


def test_a_stream_without_a_descriptor_is_left_alone(capsys):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    stream = Unbroken(Broken())
    assert stream.write("abc") == 3
    stream.writelines(["a", "b"])
    stream.flush()
    before = sys.stdout, sys.stderr
    with unbroken_output():
        print("seen")
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "seen\n"
