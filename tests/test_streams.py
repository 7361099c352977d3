"""A verb whose output nobody reads goes on into nothing, and ends as it would have."""

import io
import json
import os
import subprocess
import sys

import pytest

from jaxalign.cli import main
from jaxalign.streams import Unbroken, say, shown, unbroken_output

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


def test_what_an_encoding_lacks_is_escaped_and_ends_nothing():
    written = io.BytesIO()
    stream = Unbroken(io.TextIOWrapper(written, "latin-1"))
    assert stream.write("é … ☃\n") == 6
    stream.writelines(["ß\n", "…\n"])
    stream.flush()
    assert written.getvalue() == b"\xe9 \\u2026 \\u2603\n\xdf\n\\u2026\n"


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


# Of files, templates and models: a window's title, the clipboard, a cleared screen, a line that is written over.
ESCAPES = "\x1b]0;title\x07\x1b]52;c;aGk=\x07\x1b[2J\rgone\u202e\x9b2J"
SHOWN = "␛]0;title␇␛]52;c;aGk=␇␛[2J␍gone<U+202E><U+009B>2J"


def test_what_a_terminal_obeys_is_shown(capsys):
    assert shown(f"a\tb\n{ESCAPES}é") == f"a\tb\n{SHOWN}é"
    say(ESCAPES)
    say(ESCAPES, sys.stderr)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_verbs_show_what_data_say(tmp_path, capsys):
    """By name of file, of a field, and by the text of a row; in errors and in what was left out."""
    rows = [{"text": f"the old ox number {i} asks", "extra\x1b[2J": "x"} for i in range(40)]
    source = tmp_path / "rows\x1b[2J.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": ESCAPES}]))
    out = tmp_path / "t\x1b[2J.model"
    assert main(["tokenizer", f"--data={source}", f"--out={out}", "--vocab=300"]) == 1
    assert main(["tokenizer", f"--data={source}", f"--out={out}", "--vocab=300", "--invalid=drop"]) == 0
    config = ["--config=pretrain", f"--config.data.train={source}", f"--config.data.tokenizer={out}"]
    assert main(["audit", *config, "--config.data.invalid=drop"]) in (0, 1)
    said = "".join(capsys.readouterr())
    assert "\x1b[2J" not in said and "\x1b]" not in said and "\x07" not in said and "\x9b" not in said
    assert "rows␛[2J.jsonl:41" in said and "t␛[2J.model: 300 pieces" in said and "extra␛[2J" in said
