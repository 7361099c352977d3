"""Processes that encode parts of a source, and the program that each of them runs.

They are started as programs of their own: a fork would copy the threads of JAX, and `multiprocessing` would run the
user's own program again in each of them. `dill`, which comes with `datasets`, brings functions within functions along.
"""

import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import dill

from jaxalign.data.encoder import Encoder
from jaxalign.data.sources import Records
from jaxalign.errors import DataError
from jaxalign.text import templates


@dataclass(frozen=True)
class Span:
    """Which records of a source, and the file that their part is written to."""

    start: int
    count: int
    path: pathlib.Path

    def of(self, records: Records) -> "Task":
        """The records themselves."""
        return Task(records.between(self.start, self.start + self.count), self.start, self.path)


@dataclass(frozen=True)
class Task:
    """Some records of a source, number `start` and following, and the file that their part is written to."""

    records: Records
    start: int
    path: pathlib.Path


# Encodes the records of a task, and writes the part, whose bytes it returns.
Work = Callable[[Encoder, Task], int]
# Has the work done for spans of some records, and gives what it returns of each as they are done.
Runner = Callable[[Work, Encoder, Records, Sequence[Span]], Iterator[int]]


def run_tasks(
    work: Work, encoder: Encoder, records: Records, spans: Sequence[Span], *, workers: int
) -> Iterator[int]:
    """The `Runner` that has processes on this machine.

    Raises:
      What `work` raises in any process, once all others have been ended. DataError: a process was killed.
    """
    workers = min(workers, len(spans))
    if workers < 2:
        for span in spans:
            yield work(encoder, span.of(records))
        return
    setup = dill.dumps((work, encoder, templates.clock()), recurse=False)
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for span in spans:
        waiting.put(span)
    done: queue.SimpleQueue = queue.SimpleQueue()
    started = [_start() for _ in range(workers)]

    def serve(process: subprocess.Popen) -> None:
        try:
            assert process.stdin is not None and process.stdout is not None
            _send(process.stdin, setup)
            while True:
                try:
                    span = waiting.get_nowait()
                except queue.Empty:
                    return
                _send(process.stdin, dill.dumps(span.of(records)))
                done.put(dill.loads(_receive(process.stdout)))
        except (EOFError, BrokenPipeError):
            problem = DataError(
                f"a process that makes tokens has ended (exit code {process.wait()}), killed perhaps for want of "
                "memory; start again, which goes on from the parts that are made"
            )
            done.put((None, problem))
        except BaseException as error:  # what cannot be sent to another process, for instance
            done.put((None, error))

    pool = ThreadPoolExecutor(workers)
    try:
        for process in started:
            pool.submit(serve, process)
        for _ in spans:
            result, error = done.get()
            if error is not None:
                raise error
            yield result
    finally:
        for process in started:
            process.kill()
        pool.shutdown(cancel_futures=True)
        for process in started:
            process.communicate()


def _start() -> subprocess.Popen:
    here = {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "JAX_PLATFORMS": "cpu",  # nothing is computed on a device, and those that there are belong to the run
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from jaxalign.data.worker import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | here,
    )


def _send(file: IO[bytes], data: bytes) -> None:
    file.write(len(data).to_bytes(8, "little") + data)
    file.flush()


def _receive(file: IO[bytes]) -> bytes:
    """The next message.

    Raises:
      EOFError: the other side is gone.
    """
    head = file.read(8)
    size = int.from_bytes(head, "little")
    data = file.read(size) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < size:
        raise EOFError
    return data


def main() -> None:
    """Serves the process that started it, until that one goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all; the other process ends this one
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a template or a library prints is no reply
    with contextlib.suppress(EOFError, BrokenPipeError):
        work, encoder, clock = dill.loads(_receive(sys.stdin.buffer))
        templates.set_clock(clock)
        while True:
            task = dill.loads(_receive(sys.stdin.buffer))
            try:
                reply = (work(encoder, task), None)
            except Exception as error:
                reply = (None, error)
            _send(replies, dill.dumps(reply))
