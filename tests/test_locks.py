"""What one program has locked, no other gets, until the first has ended in whatever way."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxalign import locks
from jaxalign.errors import ConfigError
from jaxalign.locks import locked

CHILD = """
import pathlib, sys, time
from jaxalign.locks import locked
with locked(pathlib.Path(sys.argv[1]), "--out=o"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_program_is_told_of_the_first_until_that_is_gone(tmp_path):
    file = tmp_path / "new" / ".lock"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(file)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    owner = rf"process {child.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    message = rf"^--out=o is in use by {owner}.*; wait until that has ended, stop it, or name another --out$"
    for _ in range(2):
        with pytest.raises(ConfigError, match=message), locked(file, "--out=o"):
            pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    for _ in range(2):
        with locked(file, "--out=o"):
            assert file.read_text().startswith(f"process {os.getpid()} on ")


def test_where_there_are_no_locks_nobody_is_stopped(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(locks.fcntl, "flock", unsupported)
        with locked(tmp_path / "a", "--out=a"), locked(tmp_path / "a", "--out=a"):
            pass
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(tmp_path / "b", "--out=b"), locked(tmp_path / "b", "--out=b"):
        assert not (tmp_path / "b").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"^--workdir=x: .*/file/\.lock cannot be written \(.*\); name another"
    ):
        with locked(tmp_path / "file" / ".lock", "--workdir=x"):
            pass
