"""Cases of all surfaces, read by worker processes that are watched: a table of how they ended."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from tests.faults.fuzz.worker import PROGRESS, load, work

SURFACES = (
    *(
        "readers",
        "tables",
        "shapes",
        "templates",
        "tokenizers",
        "sentencepieces",
        "model_configs",
        "safetensors",
    ),
    *("indices", "metas", "flags"),
)
SECONDS = 2.0  # of processor time that a case may take
_WAITING = 30.0  # and of any, in which a process that does nothing is taken for one that hangs
_SHOWN = 5  # faults of each kind


@dataclass
class Tally:
    """How the cases of a surface ended; faults by what they are, each with the numbers of its cases."""

    surface: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: dict[str, list[int]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # of each kind of fault, the first in full

    @property
    def faulty(self) -> int:
        """How many cases are at fault."""
        return sum(map(len, self.faults.values()))

    def count(self, accepted: int, refused: int) -> None:
        """Counts cases that ended well."""
        self.cases += accepted + refused
        self.accepted += accepted
        self.refused += refused

    def blame(self, case: int, how: str) -> None:
        """Counts a case that is at fault."""
        self.cases += 1
        kind = how.partition(": ")[0] if " at " in how.partition(": ")[0] else how
        self.said.setdefault(kind, how)
        self.faults.setdefault(kind, []).append(case)


def shares(cases: int, surfaces: Sequence[str] = SURFACES) -> dict[str, int]:
    """How many of all cases each surface gets: as its share says, and one at least."""
    each = {name: load(name).share for name in surfaces}
    return {name: max(1, round(cases * share / sum(each.values()))) for name, share in each.items()}


def fuzz(surface: str, seed: int, cases: range) -> Tally:
    """Reads cases of a surface; a worker that dies or hangs is at fault, and another goes on behind that case."""
    tally = Tally(surface)
    begun = time.monotonic()
    left = cases
    while left:
        left = _run(tally, seed, left)
    tally.seconds = time.monotonic() - begun
    return tally


def _run(tally: Tally, seed: int, cases: range) -> range:
    """What is left of the cases when a worker has ended."""
    context = multiprocessing.get_context("spawn")
    memory = SharedMemory(create=True, size=PROGRESS.size)
    PROGRESS.pack_into(memory.buf, 0, -1, 0.0, 0, 0)
    ours, theirs = context.Pipe(duplex=False)
    with _folder() as root:
        args = (theirs, memory.name, str(root), tally.surface, seed, cases)
        process = context.Process(target=work, args=args, daemon=True)
        process.start()
        theirs.close()
        try:
            return _watch(tally, process, ours, memory, cases)
        finally:
            process.kill()
            process.join()
            ours.close()
            memory.close()
            memory.unlink()


def _watch(tally: Tally, process: Any, results: Any, memory: SharedMemory, cases: range) -> range:
    quiet, seen = time.monotonic(), (-1, 0.0, 0, 0)
    while True:
        if received := _receive(tally, results, 0.2):
            if received == "ended":
                return range(0)
            quiet = time.monotonic()
            continue
        before, seen = seen, PROGRESS.unpack_from(memory.buf, 0)
        # What is read while it is written may be of two cases; what was there 0.2 s ago is of one.
        same = seen == before
        quiet = quiet if same else time.monotonic()
        case, begun = seen[:2]
        if not process.is_alive():
            how = f"the process died ({process.exitcode})"
        elif same and case >= 0 and _processor_time(process.pid) - begun > SECONDS:
            how = f"time: more than {SECONDS:g} s"
        elif case >= 0 and time.monotonic() - quiet > _WAITING:
            how = f"time: waits for more than {_WAITING:g} s"
        else:
            continue
        if case < 0:
            raise RuntimeError(f"the worker of {tally.surface} ended between two cases: {how}")
        process.kill()
        process.join()
        while _receive(tally, results, 0):
            pass
        tally.count(*PROGRESS.unpack_from(memory.buf, 0)[2:])
        tally.blame(case, how)
        return range(case + 1, cases.stop)


def _receive(tally: Tally, results: Any, seconds: float) -> str:
    """Counts what a worker has sent: "some", "ended" for its last word, "" for nothing in so many seconds."""
    try:
        if not results.poll(seconds):
            return ""
        sent = results.recv()
    except EOFError:
        return ""
    if sent is None:
        return "ended"
    if isinstance(sent, str):
        raise RuntimeError(f"the harness of {tally.surface} fails:\n{sent}")
    counts, fault = sent
    tally.count(**counts)
    if fault is not None:
        tally.blame(*fault)
    return "some"


def _processor_time(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # In memory where there is such a place: a case is a handful of small files.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="fuzz-", dir=place))
    try:
        (root / "temporary").mkdir()
        (root / "outside").mkdir()
        (root / "outside" / "secret.json").write_text('{"secret": 1}')
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def table(tallies: Sequence[Tally]) -> str:
    """The tallies as a table of Markdown."""
    lines = ["| surface | cases | accepted | refused | faults | seconds |", "|---|---|---|---|---|---|"]
    total = Tally("all")
    for each in tallies:
        lines.append(_line(each))
        for name in ("cases", "accepted", "refused", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(each, name))
        total.faults |= {f"{each.surface}: {how}": found for how, found in each.faults.items()}
    return "\n".join([*lines, _line(total)])


def _line(tally: Tally) -> str:
    counts = (tally.cases, tally.accepted, tally.refused, tally.faulty)
    return f"| {tally.surface} | {' | '.join(f'{count:,}' for count in counts)} | {tally.seconds:,.0f} |"


def fault_lines(tallies: Sequence[Tally]) -> list[str]:
    """What is at fault, with the numbers of some cases, by which each can be made again."""
    lines = []
    for each in tallies:
        for kind, found in sorted(each.faults.items(), key=lambda item: -len(item[1])):
            lines.append(f"{each.surface}: {len(found)} times, as in {found[:_SHOWN]}: {each.said[kind]}")
    return lines
