"""Data that is read as it comes: the same rows as from memory, in an order that seed and place alone decide."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest

from jaxalign.data import train_sentencepiece
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import build_dataset, build_datasets
from jaxalign.data.stream import Emptied, StreamLoader
from jaxalign.errors import ConfigError, DataError
from jaxalign.text.tokenizer import load_tokenizer

COUNT, BUFFER = 95, 20
WORDS = "the quick brown fox jumps over a lazy dog".split()


def rows(count=COUNT):
    """Texts that are told apart by their lengths and their words."""
    return [{"text": " ".join(WORDS[(n + i) % len(WORDS)] for i in range(3 + n % 7))} for n in range(count)]


@pytest.fixture
def tokenizer(tmp_path):
    train_sentencepiece([" ".join(WORDS)] * 20, tmp_path / "t.model", 300)
    return load_tokenizer(str(tmp_path / "t.model"))


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return DataConfig(train=str(file), max_length=64, row_length=128, streaming=True, stream_buffer=BUFFER)


def loader(config, tokenizer, **more):
    train, _ = build_datasets(config, tokenizer, "text")
    return StreamLoader(train.stream, 4, 7, **more)


def records(batch):
    """The records of a batch by row and place, and their tokens."""
    found = {}
    for tokens, segments, numbers in zip(batch.tokens, batch.segment_ids, batch.rows, strict=True):
        for segment, number in enumerate(numbers.tolist(), 1):
            if number >= 0:
                found[number] = tokens[segments == segment].tolist()
    return found


def test_every_record_comes_once_a_pass_with_its_own_tokens(config, tokenizer):
    whole, _ = build_datasets(
        DataConfig(train=config.train, max_length=64, row_length=128, store="none"), tokenizer, "text"
    )
    expected = {item.row: item.ids.tolist() for item in whole.rows.items}
    batches, seen = loader(config, tokenizer), []
    while len(seen) < COUNT:
        found = records(next(batches))
        assert all(found[number] == expected[number] for number in found)
        seen += found
    # The last batch may have begun the next pass.
    assert sorted(seen[:COUNT]) == list(range(COUNT))


def test_a_pass_after_another_is_shuffled_anew(config, tokenizer):
    batches, orders = loader(config, tokenizer), {0: [], 1: []}
    while (at := batches.get_state())["pass"] < 2:
        batch = next(batches)
        orders.setdefault(at["pass"], []).append(batch.rows.tolist())
    assert len(orders[0]) > 3 and orders[0] != orders[1][: len(orders[0])]


def test_going_on_from_any_place_gives_the_same_batches(config, tokenizer):
    batches, states, made = loader(config, tokenizer), [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(batches.get_state())))
        made.append(next(batches))
    for number in (0, 3, 5, 11):
        again = loader(config, tokenizer)
        again.set_state(states[number])
        for batch in made[number:]:
            found = next(again)
            for name in ("tokens", "positions", "segment_ids", "loss_mask", "rows"):
                np.testing.assert_array_equal(getattr(found, name), getattr(batch, name))


def test_processes_share_the_batches(config, tokenizer):
    whole = loader(config, tokenizer)
    halves = [loader(config, tokenizer, parts=(part,), num_parts=2) for part in (0, 1)]
    for _ in range(12):
        batch, parts = next(whole), [next(half) for half in halves]
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), batch.tokens)
        assert [half.get_state() for half in halves] == [whole.get_state()] * 2


@pytest.fixture
def hub(monkeypatch):
    """A hub dataset that comes over a network: what is asked of it is noted."""
    asked = []

    def load(name, *, split, streaming, **options):
        asked.append((name, split, streaming))

        def made():
            yield from rows()

        return datasets.IterableDataset.from_generator(made)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return asked


def test_a_hub_dataset_gives_the_batches_of_a_file(config, tokenizer, hub):
    from_file, from_hub = loader(config, tokenizer), loader(replace(config, train="me/texts"), tokenizer)
    for _ in range(15):
        one, other = next(from_file), next(from_hub)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.rows, other.rows)
    state = from_hub.get_state()
    assert state == from_file.get_state() and state["pass"] > 1
    # The first window is read at the start, and then once more; each pass is one connection to its end.
    assert hub == [("me/texts", "train", True)] * (state["pass"] + 2)


def test_to_look_at_a_stream_reads_its_first_window(config, tokenizer, hub):
    dataset = build_dataset(replace(config, train="me/texts", eval="me/texts"), tokenizer, "text")
    assert dataset.report.read == BUFFER and dataset.where(3) == "me/texts, record 4" and len(hub) == 1


def test_take_ends_the_pass(config, tokenizer):
    batches, seen = loader(replace(config, take=30), tokenizer), set()
    while batches.get_state()["pass"] == 0:
        seen |= set(records(next(batches)))
    assert seen == set(range(30))


def test_a_bad_row_of_a_later_window_is_named(config, tokenizer, tmp_path):
    file = tmp_path / "a.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[47] = '{"text": 3}\n'
    file.write_text("".join(lines))
    batches = loader(config, tokenizer)
    with pytest.raises(DataError, match=r"a\.jsonl:48: "):
        for _ in range(20):
            next(batches)


@pytest.mark.parametrize("fate", ["bad", "held out"])
def test_a_later_window_of_which_nothing_is_left_is_passed_over(config, tokenizer, tmp_path, fate):
    """Such is often the last one, of a few records: a run goes on without it, and from any place alike."""
    lines = [json.dumps(row) for row in rows(62)]
    gone = {60, 61}
    if fate == "bad":
        lines[60:] = ['{"text": 3}', '{"text": 4}']
        config = replace(config, invalid="drop")
    else:
        gone |= set(range(20, 40))
        lines = [line.replace('"}', f' {n}"}}') for n, line in enumerate(lines)]
        (tmp_path / "e.jsonl").write_text("".join(f"{lines[n]}\n" for n in sorted(gone)))
        config = replace(config, eval=str(tmp_path / "e.jsonl"))
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    told, states, made = [], [], []
    batches = loader(config, tokenizer, note=lambda window, start: told.append((start, window)))
    while batches.get_state()["pass"] < 2:
        states.append(batches.get_state())
        made.append(records(next(batches)))
    assert set().union(*made) == set(range(62)) - gone
    passed = {start: window for start, window in told if isinstance(window, Emptied)}
    assert sorted(passed) == ([60] if fate == "bad" else [20, 60])
    assert [row.where for row in passed[60].invalid] == (
        [f"{tmp_path}/a.jsonl:61", f"{tmp_path}/a.jsonl:62"] if fate == "bad" else []
    )
    for number in range(len(states)):
        again = loader(config, tokenizer)
        again.set_state(states[number])
        assert records(next(again)) == made[number]


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"train": ("a.jsonl", "b.jsonl")}, "text", "reads one source"),
        ({}, "prompt", "is not for prompt data"),
        ({"eval_fraction": 0.1}, "text", "eval_fraction=0.1"),
        ({"store": "somewhere"}, "text", "config.data.store='somewhere'"),
        ({"max_length": 0}, "text", "needs config.data.max_length"),
        ({"train": "OpenAssistant/oasst1"}, "text", "messages of trees"),
    ],
)
def test_what_needs_all_of_the_data_is_refused(config, tokenizer, settings, kind, said):
    with pytest.raises(ConfigError, match=r"config\.data\.streaming=True .") as caught:
        build_datasets(replace(config, **settings), tokenizer, kind)
    assert said in str(caught.value)
