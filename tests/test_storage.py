"""A file under its final name is whole, whatever stopped the writing; what is no file is written as it is."""

import concurrent.futures
import errno
import os
import threading

import pytest

from jaxalign import storage
from jaxalign.errors import ConfigError
from jaxalign.storage import read_json, write_whole


def test_a_file_is_the_old_one_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "new" / "results.json"
    write_whole(path, b"old")
    synced = []

    def cut_off(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage.os, "fsync", cut_off)
        write_whole(path, b"newer")
    assert synced == [5] and path.read_bytes() == b"old"
    write_whole(path, b"newer")
    assert path.read_bytes() == b"newer" and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_link_stays_one_and_a_pipe_is_written(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", b"through")
    reader.join(10)
    assert read == [b"through"] and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "missing"), ("{", r"not JSON \(.*line 1"), ("[1]", "a list, not an object"), ("2", "a int, not")],
)
def test_a_file_without_a_json_object_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"facts.json is {reason}"):
        read_json(path, lambda why: ConfigError(f"{path} is {why}"))
    path.write_text('{"é": 1}', encoding="utf-8")
    assert read_json(path, ConfigError) == {"é": 1}


def test_writers_of_one_file_take_turns_and_leave_one_of_their_texts(tmp_path):
    """As the hosts of a run do that starts: none is refused, and no text is a mixture."""
    path = tmp_path / "facts.json"
    texts = [bytes([65 + number]) * 50_000 for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            list(pool.map(lambda text: write_whole(path, text), texts))
            assert path.read_bytes() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]


def test_a_disk_that_refuses_is_told_with_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'$"):
            write_whole(tmp_path / "a.json", b"{}")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    write_whole(tmp_path / "loop", b"{}")  # which leads nowhere
    assert (tmp_path / "loop").read_bytes() == b"{}"
