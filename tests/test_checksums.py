"""A list of checksums is what `sha256sum` makes of the same files, and no changed byte passes it."""

import hashlib
import shutil
import subprocess

import pytest

from jaxalign import checksums
from jaxalign.checksums import Mismatch, check_sums, read_sums, write_sums


def test_the_list_is_that_of_sha256sum(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a b").write_bytes(b"")
    (tmp_path / "sub" / "c").write_bytes(bytes(range(256)) * 5000)
    write_sums(tmp_path, ["sub/c", "a b"])
    assert read_sums(tmp_path) == {
        "a b": hashlib.sha256(b"").hexdigest(),
        "sub/c": hashlib.sha256(bytes(range(256)) * 5000).hexdigest(),
    }
    assert check_sums(tmp_path) == 2 and check_sums(tmp_path, {"sub/c", "other"}.__contains__) == 1
    if shutil.which("sha256sum"):
        done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "a b: OK\nsub/c: OK\n"


def test_what_is_missing_changed_or_no_list_is_named(tmp_path):
    assert check_sums(tmp_path) == 0
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    write_sums(tmp_path, ["a", "b"])
    (tmp_path / "a").write_bytes(b"c")
    with pytest.raises(Mismatch, match=r"^a is not what was written \(its SHA-256 is another\)$"):
        check_sums(tmp_path)
    (tmp_path / "b").unlink()
    with pytest.raises(Mismatch, match=r"^b is missing$"):
        check_sums(tmp_path)
    for content, message in ((b"\xff", "is not text"), (b"abc  a\n", "is not a list of checksums")):
        (tmp_path / "SHA256SUMS").write_bytes(content)
        with pytest.raises(Mismatch, match=message):
            check_sums(tmp_path)


@pytest.mark.parametrize(
    ("said", "on"), [("off", 0), ("OFF", 0), ("0", 0), ("false", 0), ("no", 0), ("on", 1), ("", 1)]
)
def test_the_environment_may_turn_them_off(said, on, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checksums, "_told", [])
    (tmp_path / "a").write_bytes(b"a")
    write_sums(tmp_path, ["a"])
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("JAXALIGN_CHECKSUMS", said)
    assert check_sums(tmp_path) == check_sums(tmp_path, {"a"}.__contains__) == on
    write_sums(tmp_path / "b", [])
    assert (tmp_path / "b" / "SHA256SUMS").exists() == on
    assert capsys.readouterr().err.count("JAXALIGN_CHECKSUMS=off: files are read") == 1 - on
