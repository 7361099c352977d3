"""No prompt on both sides of the line between training and evaluation."""

import json
import re
from dataclasses import replace

import pytest

from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import build_datasets
from jaxalign.errors import ConfigError, DataError

CONFIG = DataConfig(max_length=32, row_length=64)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


KINDS = {
    "sft": (
        [{"prompt": f"who {n}?", "completion": f" fox {n}"} for n in range(6)],
        [{"prompt": "who 1?", "completion": " dog"}, {"prompt": "who 9?", "completion": " fox 2"}],
    ),
    "preference": (
        [{"prompt": f"who {n}?", "chosen": f" fox {n}", "rejected": " dog"} for n in range(6)],
        [{"prompt": "who 1?", "chosen": " cat", "rejected": " cow"}],
    ),
    "prompt": ([{"prompt": f"who {n}?"} for n in range(6)], [{"prompt": "who 1?"}, {"prompt": "who 1"}]),
    "text": (
        [{"text": f"the lazy dog {n} jumps over the quick fox " * (1 + 4 * (n == 1))} for n in range(6)],
        [{"text": "the lazy dog 1 jumps over the quick fox " * 5}, {"text": "the lazy dog 0 jumps"}],
    ),
}
KINDS["chats"] = (
    [{"messages": chat(f"who {n}?", f"fox {n}", "and then?", "dog")} for n in range(6)],
    [{"messages": chat("who 1?", "cat")}],
)


@pytest.mark.parametrize("case", KINDS)
def test_shared_prompts_leave_training(tokenizer, tmp_path, case):
    train, held_out = KINDS[case]
    kind = "sft" if case == "chats" else case
    config = replace(
        CONFIG, train=write(tmp_path / "train.jsonl", train), eval=write(tmp_path / "eval.jsonl", held_out)
    )
    dataset, evaluation = build_datasets(config, tokenizer, kind)
    assert {item.row for item in dataset.rows.items} == {0, 2, 3, 4, 5}
    assert dataset.report.dropped == {"also in eval": 1} and dataset.report.kept == 5
    assert dataset.report.tokens == sum(
        len(e.ids) for item in dataset.rows.items for e in getattr(item, "examples", (item,))
    )
    assert evaluation.report.kept == len(held_out) and not evaluation.report.dropped
    without = replace(config, train=write(tmp_path / "clean.jsonl", train[:1] + train[2:]))
    assert build_datasets(without, tokenizer, kind)[0].fingerprint == dataset.fingerprint
    allowed, _ = build_datasets(replace(config, overlap="allow"), tokenizer, kind)
    assert allowed.report.kept == 6
    message = (
        rf"^{re.escape(config.train)}:2: the same prompt is in eval, at .*eval.jsonl:1 \(1 train records also"
    )
    with pytest.raises(DataError, match=message):
        build_datasets(replace(config, overlap="error"), tokenizer, kind)
    build_datasets(replace(without, overlap="error"), tokenizer, kind)


def test_all_training_data_in_eval(tokenizer, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "fox"}, {"text": "dog"}])
    with pytest.raises(
        DataError, match=r"every training record of .*a.jsonl has a prompt that is also in eval"
    ):
        build_datasets(replace(CONFIG, train=path, eval=path), tokenizer, "text")


def test_records_that_share_one_instruction_are_compared_whole(tokenizer, tmp_path):
    pairs = [{"prompt": "who?", "chosen": f" fox {n}", "rejected": " dog"} for n in range(6)]
    train, held_out = write(tmp_path / "train.jsonl", pairs[:5]), write(tmp_path / "eval.jsonl", pairs[3:])
    config = replace(CONFIG, train=train, eval=held_out)
    with pytest.raises(DataError, match="overlap_by='record' if they all share one instruction"):
        build_datasets(config, tokenizer, "preference")
    kept, _ = build_datasets(replace(config, overlap_by="record"), tokenizer, "preference")
    assert rows_of(kept) == {0, 1, 2} and kept.report.dropped == {"also in eval": 2}


def rows_of(dataset):
    return {item.row for item in dataset.rows.items}


def test_eval_fraction(tokenizer, tmp_path):
    """Each prompt three times, with different answers: all three on the same side, whatever the order."""
    rows = [{"prompt": f"who {n % 200}?", "completion": f" fox {n}"} for n in range(600)]
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", rows), eval_fraction=0.1)
    train, held_out = build_datasets(config, tokenizer, "sft")
    train_rows, held_rows = rows_of(train), rows_of(held_out)
    assert train_rows | held_rows == set(range(600)) and not train_rows & held_rows
    prompts = {row % 200 for row in held_rows}
    assert held_rows == {n for n in range(600) if n % 200 in prompts}
    assert 8 <= len(prompts) <= 34  # 20 expected, 4.2 the standard deviation
    assert train.report.dropped == {"held out for eval": len(held_rows)}
    assert (held_out.report.read, held_out.report.kept) == (len(held_rows),) * 2
    assert held_out.record(min(held_rows))["prompt"] == f"who {min(held_rows)}?"
    turned = replace(config, train=write(tmp_path / "b.jsonl", rows[::-1]))
    assert rows_of(build_datasets(turned, tokenizer, "sft")[1]) == {599 - row for row in held_rows}
    more = replace(config, eval_fraction=0.3)
    assert rows_of(build_datasets(more, tokenizer, "sft")[1]) > held_rows


def test_eval_fraction_over_sources(tokenizer, tmp_path):
    """A source too small for the fraction to reach keeps its place, its weight and its record numbers."""
    big = write(tmp_path / "big.jsonl", [{"prompt": f"who {n}?", "completion": " fox"} for n in range(100)])
    small = write(tmp_path / "small.jsonl", [{"prompt": "why?", "completion": " dog"}])
    config = replace(CONFIG, train=(small, big), weights=(1.0, 1.0), eval_fraction=0.2)
    train, held_out = build_datasets(config, tokenizer, "sft")
    assert 0 in rows_of(train) and train.rows.weights == (1.0, 1.0) and held_out.rows.weights == ()
    assert held_out.where(min(rows_of(held_out))) == f"{big}:{min(rows_of(held_out))}"
    with pytest.raises(DataError, match=r"config.data.eval_fraction=0.0001: holds out none of 101 records"):
        build_datasets(replace(config, eval_fraction=1e-4), tokenizer, "sft")


def test_neither_eval_nor_fraction(tokenizer, tmp_path):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", [{"text": "fox"}]))
    assert build_datasets(config, tokenizer, "text")[1] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": "keep"}, r"overlap='keep': write one of drop, error, allow"),
        ({"eval_fraction": 1.0}, r"eval_fraction=1.0: must be 0 or more and less than 1"),
        (
            {"eval_fraction": 0.1, "eval": "x"},
            r"eval_fraction=0.1: config.data.eval names held-out data already",
        ),
    ],
)
def test_configs_that_cannot_work(tokenizer, tmp_path, changes, message):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", [{"text": "fox"}]))
    with pytest.raises(ConfigError, match=rf"^config.data.{message}"):
        build_datasets(replace(config, **changes), tokenizer, "text")
