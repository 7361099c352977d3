"""Starting with a token store of any size: seconds, memory and their slopes, and how fast batches are read.

    python -m benchmarks.store --tokens=50e6,200e6,1e9

Synthetic ids are written through the store's own writer. Each size is opened twice, in processes of their own: the
first packs the rows, the second finds them there, as every later start does.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from jaxalign.data import DataConfig, load_tokenizer, make_loader, train_sentencepiece
from jaxalign.data.dataset import build_dataset, stored_sources
from jaxalign.data.parts import Part
from jaxalign.data.store import part_records, save_part

MEAN = 500  # tokens of a record
BYTES = 4 * MEAN  # of its text
ROW_LENGTH = 4096
BATCHES, ROWS = 50, 8  # read in random order


def config_of(folder: pathlib.Path) -> DataConfig:
    """Plain text in rows of 4,096 tokens."""
    return DataConfig(
        train=str(folder / "data.jsonl"),
        store=str(folder / "stores"),
        max_length=ROW_LENGTH,
        row_length=ROW_LENGTH,
    )


def write_store(folder: pathlib.Path, tokens: int, seed: int = 0) -> None:
    """A source of which nothing but its name counts, and a store for it of about so many tokens."""
    (folder / "data.jsonl").write_text('{"text": "this is never read"}\n')
    words = "the quick brown fox jumps over a lazy dog".split()
    train_sentencepiece([" ".join(words)] * 20, folder / "t.model", 300)
    _, (source,) = stored_sources(config_of(folder), load_tokenizer(folder / "t.model"), "text", "train")
    store = source.store
    store.folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    records = tokens // MEAN
    each = part_records(records, BYTES * records)
    starts = range(0, records, each)
    for number, start in enumerate(starts):
        save_part(store.path(number), synthetic_part(rng, start, min(each, records - start)))
    store.finish(len(starts), records)


def synthetic_part(rng: np.random.Generator, first_row: int, count: int) -> Part:
    """Records of one item each, of log-normal lengths, all of whose tokens but the first are supervised."""
    lengths = np.clip(rng.lognormal(np.log(MEAN) - 0.32, 0.8, count).astype(np.int64), 2, ROW_LENGTH)
    start = np.concatenate([[0], np.cumsum(lengths)])
    mask = np.ones(start[-1], bool)
    mask[start[:-1]] = False
    same = np.zeros(count, np.uint8)
    return Part(
        ids=rng.integers(0, 300, start[-1], np.uint16),
        mask=np.packbits(mask, bitorder="little"),
        start=start,
        cuts=np.zeros(0, np.int32),
        cut_start=np.zeros(count + 1, np.int32),
        row=np.arange(first_row, first_row + count, dtype=np.int32),
        prompt=np.ones(count, np.int32),
        supervised=(lengths - 1).astype(np.int32),
        shared=np.zeros(count, np.int32),
        weight=np.ones(count),
        margin=np.zeros(count),
        desirable=np.full(count, np.nan),
        pairs=same,
        ending=same,
        item_note=same,
        remarks=same,
        digest=rng.integers(0, 2**64, (count, 2), np.uint64),
        completion=np.zeros(count, np.uint64),
        first=np.arange(count + 1, dtype=np.int32),
        note=same,
        unread=same,
        prompt_key=rng.integers(0, 2**64, count, np.uint64),
        record_key=rng.integers(0, 2**64, count, np.uint64),
        words={
            "pairs": [((0, None),)],
            "ending": [()],
            "item_note": ["whole"],
            "remarks": [()],
            "note": ["whole"],
            "unread": [()],
        },
    )


def measure(folder: pathlib.Path) -> dict[str, float]:
    """Opens the data as a run does, and reads some batches; memory is that beyond what the imports took, in MiB."""
    tokenizer = load_tokenizer(folder / "t.model")
    before, begun = memory(), time.perf_counter()
    dataset = build_dataset(config_of(folder), tokenizer, "text")
    fingerprint = dataset.fingerprint
    seconds, after = time.perf_counter() - begun, memory()
    batches = make_loader(dataset.rows, ROWS, seed=0)
    next(batches)
    begun, tokens = time.perf_counter(), 0
    for _ in range(BATCHES):
        tokens += int((next(batches).segment_ids > 0).sum())
    return {
        "tokens": dataset.report.tokens,
        "records": dataset.report.read,
        "rows": len(dataset.rows),
        "efficiency": dataset.rows.efficiency,
        "seconds": seconds,
        "own_mib": after["RssAnon"] - before["RssAnon"],
        "peak_mib": after["VmHWM"] - before["VmRSS"],
        "tokens_per_second_read": tokens / (time.perf_counter() - begun),
        "fingerprint": int(fingerprint[:8], 16),
    }


def memory() -> dict[str, float]:
    """This process's resident memory in MiB: its own (RssAnon), with mapped files (VmRSS), at most so far (VmHWM)."""
    found = re.findall(r"^(\w+):\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)
    return {name: int(size) / 1024 for name, size in found}


def in_process(folder: pathlib.Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    program = [sys.executable, "-m", "benchmarks.store", f"--folder={folder}"]
    return json.loads(
        subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def main() -> None:
    """Prints a table, and what the slope says of 10 B tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", default="50e6,200e6,1e9")
    parser.add_argument("--folder", default="", help="of a store that is there: measures it in this process")
    asked = parser.parse_args()
    if asked.folder:
        print(json.dumps(measure(pathlib.Path(asked.folder))))
        return
    found = []
    print("tokens | records | start | seconds | MiB of its own | peak MiB with mapped files | tokens/s read")
    for tokens in asked.tokens.split(","):
        with tempfile.TemporaryDirectory() as name:
            write_store(pathlib.Path(name), int(float(tokens)))
            for start in ("first", "later"):
                x = in_process(pathlib.Path(name))
                print(
                    f"{x['tokens']:,} | {x['records']:,} | {start} | {x['seconds']:.2f} | {x['own_mib']:.0f} | "
                    f"{x['peak_mib']:.0f} | {x['tokens_per_second_read']:,.0f}",
                    flush=True,
                )
            found.append(x)
    if len(found) > 1:
        sizes = [x["tokens"] / 1e9 for x in found]
        for name in ("seconds", "own_mib", "peak_mib"):
            slope, level = np.polyfit(sizes, [x[name] for x in found], 1)
            print(
                f"{name}: {level:.2f} + {slope:.2f} per 1 B tokens; of 10 B tokens {level + 10 * slope:.1f}"
            )


if __name__ == "__main__":
    main()
