"""From files to batches: every stage's kind, several sources, lookups, fingerprints and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxalign.data.batch import Batch, PairBatch, PromptBatch
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import build_dataset, dataset_from_records
from jaxalign.data.loader import eval_batches, make_loader
from jaxalign.data.packing import collate
from jaxalign.data.sources import Records
from jaxalign.errors import ConfigError, DataError

CONFIG = DataConfig(max_length=32, row_length=64)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(count, word="fox"):
    return [{"text": f"the {word} number {i}", "id": i} for i in range(count)]


def test_every_token_of_every_record_is_in_the_batches(tokenizer, tmp_path):
    config = replace(CONFIG, train=write(tmp_path / "a.jsonl", texts(50)))
    dataset = build_dataset(config, tokenizer, "text")
    found = {}
    for batch in eval_batches(dataset.rows, 4):
        assert isinstance(batch, Batch)
        for b, s in np.argwhere(batch.rows >= 0):
            ids = batch.tokens[b][batch.segment_ids[b] == s + 1]
            found[int(batch.rows[b, s])] = tokenizer.decode(ids)
    assert found == {i: row["text"] for i, row in enumerate(texts(50))}
    assert dataset.report.kept == 50 and dataset.rows.efficiency > 0.9


def test_kinds_make_their_batches(tokenizer, tmp_path):
    chat = [{"role": "user", "content": "who asks"}, {"role": "assistant", "content": "the fox"}]
    for kind, row, batch_type in [
        ("text", {"text": "the fox"}, Batch),
        ("sft", {"messages": chat}, Batch),
        ("preference", {"prompt": "the", "chosen": " fox", "rejected": " dog"}, PairBatch),
        ("prompt", {"prompt": chat[:1]}, PromptBatch),
    ]:
        config = replace(CONFIG, train=write(tmp_path / f"{kind}.jsonl", [row] * 6))
        dataset = build_dataset(config, tokenizer, kind)
        batch = next(make_loader(dataset.rows, 2, seed=0))
        assert isinstance(batch, batch_type)
        assert batch.tokens.shape == (2, 32 if kind == "prompt" else 64)


def test_records_are_found_across_sources(tokenizer, tmp_path):
    names = [write(tmp_path / f"{w}.jsonl", texts(5, w)) for w in ("fox", "dog")]
    dataset = build_dataset(replace(CONFIG, train=tuple(names), weights=(1, 2)), tokenizer, "text")
    assert dataset.record(7) == {"text": "the dog number 2", "id": 2}
    assert dataset.where(7) == f"{names[1]}:3"
    assert dataset.where(4) == f"{names[0]}:5"
    batch = collate(dataset.rows, range(len(dataset.rows)))
    assert sorted(batch.rows[batch.rows >= 0]) == list(range(10))
    assert dataset.rows.bounds[-1] == len(dataset.rows) and dataset.rows.weights == (1, 2)
    with pytest.raises(IndexError, match="record 10 of 10"):
        dataset.record(10)
    with pytest.raises(IndexError):
        dataset.record(-1)


def test_evaluation_part(tokenizer, tmp_path):
    names = [write(tmp_path / f"{w}.jsonl", texts(5, w)) for w in ("fox", "dog")]
    config = replace(CONFIG, train=tuple(names), weights=(1, 2), eval=names[0], take=3)
    dataset = build_dataset(config, tokenizer, "text", "eval")
    assert dataset.report.read == 3 and dataset.rows.weights == ()


def test_fingerprint_follows_the_tokens(tokenizer):
    def fingerprint(rows, **changes):
        source = [Records(rows, "memory")]
        return dataset_from_records(source, replace(CONFIG, **changes), tokenizer, "sft").fingerprint

    rows = [{"prompt": "the", "completion": " fox"}, {"prompt": "a", "completion": " dog"}]
    assert fingerprint(rows) == fingerprint([dict(row) for row in rows])
    assert fingerprint(rows) == fingerprint(rows, packing=False)
    assert len({fingerprint(rows), fingerprint(rows[::-1]), fingerprint(rows[:1])}) == 3
    moved = [{"prompt": "the", "completion": " fox"}, {"prompt": "", "completion": "a dog"}]
    assert fingerprint(rows) != fingerprint(moved)


def test_packing_off_is_one_per_row(tokenizer):
    dataset = dataset_from_records(
        [Records(texts(5), "memory")], replace(CONFIG, packing=False), tokenizer, "text"
    )
    assert len(dataset.rows) == 5 and dataset.rows.max_segments == 1


def test_the_fingerprint_knows_which_answer_is_preferred_and_by_how_much(tokenizer):
    def fingerprint(row):
        return dataset_from_records([Records([row], "m")], CONFIG, tokenizer, "preference").fingerprint

    pair = {"prompt": "the", "chosen": " a", "rejected": " b"}
    ranking = {"prompt": "the", "responses": [" a", " b", " c"], "scores": [1, 2, 3]}
    rows = [pair, pair | {"margin": 1.0}, pair | {"margin": 2.0}, pair | {"chosen": " b", "rejected": " a"}]
    rows += [ranking, ranking | {"scores": [3, 2, 1]}, ranking | {"scores": [1, 2, 2]}]
    assert len({fingerprint(row) for row in rows}) == len(rows)
    assert fingerprint(ranking) == fingerprint(ranking | {"scores": [10, 20, 30]})  # the same pairs


def test_template_from_a_file(tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|end|>c"}]}]
    source = [Records(rows, "memory")]
    built_in = dataset_from_records(source, CONFIG, tokenizer, "sft")
    config = replace(CONFIG, chat_template=str(tmp_path / "t.jinja"))
    assert dataset_from_records(source, config, tokenizer, "sft").fingerprint == built_in.fingerprint


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({}, "dpo", "kind='dpo': write one of text, sft, preference, preference or sft, prompt"),
        ({"overlong": "cut"}, "text", "overlong='cut': write one of error, drop, truncate"),
        ({"max_length": 1}, "text", "max_length=1: must be at least 2"),
        ({"row_length": 31}, "text", "row_length=31: must be at least 1 x max_length=32"),
        (
            {"row_length": 63},
            "preference",
            "row_length=63: must be at least 2 x max_length=32, so that a row holds a",
        ),
        ({"max_segments": 1}, "preference", "max_segments=1: must be at least 2"),
        ({"take": -1}, "text", "take=-1: must be 0 or more"),
        ({"weights": (1.0,)}, "text", r"weights=\(1.0,\): give one positive share for each of the 2 sources"),
        ({"weights": (1.0, 0.0)}, "text", r"weights=\(1.0, 0.0\): give one positive share"),
    ],
)
def test_configs_that_cannot_work(tokenizer, changes, kind, message):
    sources = [Records(texts(2), "a"), Records(texts(2), "b")]
    with pytest.raises(ConfigError, match=rf"^config.data.{message}"):
        dataset_from_records(sources, replace(CONFIG, **changes), tokenizer, kind)


def test_sources_that_cannot_work(tokenizer, tmp_path):
    for names in ("", (), ("a.jsonl", "")):
        with pytest.raises(
            ConfigError, match=r"config.data.eval=.*: names no data; write a file, folder or hub name"
        ):
            build_dataset(replace(CONFIG, eval=names), tokenizer, "text", "eval")
    with pytest.raises(
        DataError, match=r"^missing.jsonl: no such file or folder .*\(from config.data.train\)"
    ):
        build_dataset(replace(CONFIG, train="missing.jsonl"), tokenizer, "text")
    ranking = {"prompt": "the", "responses": [" a", " b", " c"], "scores": [1, 2, 3]}
    with pytest.raises(ConfigError, match=r"config.data.max_segments=2: must be 3 or more"):
        dataset_from_records(
            [Records([ranking], "m")], replace(CONFIG, max_segments=2), tokenizer, "preference"
        )
