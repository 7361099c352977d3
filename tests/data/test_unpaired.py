"""Completions judged one by one, as KTO reads them: what rows may say, and the mismatched sequence beside each."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from jaxalign.data.batch import ARRAYS, UnpairedBatch
from jaxalign.data.config import DataConfig
from jaxalign.data.dataset import abstract_batch, build_datasets, dataset_from_records
from jaxalign.data.encode import encode_completion
from jaxalign.data.items import Item
from jaxalign.data.kinds import PAIRS, UNPAIRED
from jaxalign.data.mismatched import add_mismatched
from jaxalign.data.packing import collate
from jaxalign.data.public.recipes import open_source
from jaxalign.data.records import KINDS, Message, PromptCompletion, Unpaired, parse_record
from jaxalign.data.sources import Records
from jaxalign.errors import ConfigError, DataError

CONFIG = DataConfig(max_length=32, row_length=64)
U, A, B = Message("user", "hi"), Message("assistant", "yes"), Message("assistant", "no")


def said(*messages):
    return [{"role": m.role, "content": m.content} for m in messages]


def row(number, label=None):
    return {
        "prompt": f"who {number}?",
        "completion": f" fox {number}",
        "label": number % 2 == 0 if label is None else label,
    }


def pair(number):
    return {"prompt": f"who {number}?", "chosen": f" fox {number}", "rejected": f" dog {number}"}


def dataset(tokenizer, rows, part="train", **changes):
    return dataset_from_records(
        [Records(rows, "f.jsonl")], replace(CONFIG, **changes), tokenizer, UNPAIRED, part
    )


@pytest.mark.parametrize(
    ("fields", "record"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, Unpaired("p", ("c",), (True,))),
        ({"prompt": "p", "completion": "c", "label": False}, Unpaired("p", ("c",), (False,))),
        (
            {"prompt": said(U), "completion": said(A), "label": True},
            Unpaired((U,), ((A,),), (True,)),
        ),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, Unpaired("p", ("c", "r"), (True, False))),
        ({"chosen": said(U, A), "rejected": said(U, B)}, Unpaired((U,), ((A,), (B,)), (True, False))),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "label": None},
            Unpaired("p", ("c", "r"), (True, False)),
        ),
    ],
)
def test_formats(fields, record):
    assert parse_record(fields, UNPAIRED, "f:1") == record


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "p", "completion": "c"},
            "missing label; expected prompt, completion, label (or chosen and rej",
        ),
        ({"completion": "c", "label": True}, "missing prompt; expected prompt, completion, label"),
        (
            {"prompt": "p", "completion": "c", "label": "maybe"},
            "label is 'maybe', a str; write true for a desirable completion",
        ),
        ({"prompt": "p", "completion": "c", "label": 0.5}, "label is 0.5, a float; write true for"),
        ({"prompt": "p", "completion": "c", "label": [True]}, "label is [True], a list; write true"),
        ({"prompt": "p", "completion": " ", "label": True}, "completion is empty or only whitespace"),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "label": True},
            "chosen, rejected beside a completion or a label; write either prompt, completion and label, or",
        ),
        (
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]},
            "scores of responses say which of them is bett",
        ),
        ({"prompt": "p", "chosen": "c"}, "missing rejected; expected chosen, rejected"),
        (
            {"prompt": "p", "completion": "c", "label": True, "kto_tag": False},
            "the field 'kto_tag' (False) means som",
        ),
    ],
)
def test_refusals_name_row_and_reason(fields, message):
    with pytest.raises(DataError) as raised:
        parse_record(fields, UNPAIRED, "f.jsonl:7")
    assert str(raised.value).startswith(f"f.jsonl:7: {message}")


def test_labels_are_of_unpaired_data_alone():
    with pytest.raises(DataError, match="the field 'label'"):
        parse_record({"prompt": "p", "completion": "c", "label": False}, "sft", "f:1")
    with pytest.raises(ConfigError, match=r"unknown kind of data 'unpared'; .*; did you mean 'unpaired'"):
        parse_record({}, "unpared", "f:1")


def test_the_batch_by_hand(tokenizer):
    made = dataset(tokenizer, [row(0), row(1)], row_length=128)
    batch = collate(made.rows, [0, -1])
    assert isinstance(batch, UnpairedBatch)

    def ids(prompt, completion):
        text = encode_completion(PromptCompletion(f"who {prompt}?", f" fox {completion}"), tokenizer)
        return text.ids, text.mask

    for k in range(2):
        record = batch.rows[0, 2 * k]
        assert batch.rows[0, 2 * k + 1] == record
        assert (batch.completion[0, k], batch.mismatched[0, k]) == (2 * k + 1, 2 * k + 2)
        assert batch.desirable[0, k] == (record == 0) and batch.weight[0, k] == 1
        for segment, other in ((2 * k + 1, record), (2 * k + 2, 1 - record)):
            here = batch.segment_ids[0] == segment
            want, mask = ids(record, other)
            np.testing.assert_array_equal(batch.tokens[0][here], want)
            np.testing.assert_array_equal(batch.loss_mask[0][here], mask)
            np.testing.assert_array_equal(batch.positions[0][here], np.arange(len(want)))
    assert sorted(batch.rows[0, :4]) == [0, 0, 1, 1] and (batch.rows[0, 4:] == -1).all()
    for name in ("completion", "mismatched", "desirable", "weight"):
        assert not getattr(batch, name)[0, 2:].any() and not getattr(batch, name)[1].any()
    assert not batch.ref_logp.any() and batch.ref_logp.shape == batch.rows.shape


def test_messages_are_mismatched_as_text_is(tokenizer):
    rows = [
        {"prompt": said(U), "completion": said(A), "label": True},
        {"prompt": said(Message("user", "why")), "completion": said(B, U, A), "label": False},
    ]
    first, second = dataset(tokenizer, rows, row_length=128).rows.items
    for item, prompt, completion in ((first, (U,), (B, U, A)), (second, (Message("user", "why"),), (A,))):
        want = encode_completion(PromptCompletion(prompt, completion), tokenizer)
        np.testing.assert_array_equal(item.examples[1].ids, want.ids)
        np.testing.assert_array_equal(item.examples[1].mask, want.mask)


@pytest.mark.parametrize("seed", range(20))
def test_the_mismatched_completion_is_the_next_that_differs(seed):
    """Against a search one by one; completions repeat, and records may have two."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(12), rng.integers(1, 3, 12))
    items = [
        Item(np.int32([n, 100, int(c)]), np.float32([0, 0, 1]), int(r), desirable=1.0)
        for n, (r, c) in enumerate(zip(rows, rng.integers(0, 1 + seed % 4, len(rows)), strict=True))
    ]
    for index, item in enumerate(add_mismatched(items, 8)):
        others = [items[(index + step) % len(items)] for step in range(1, len(items))]
        wanted = [o for o in others if o.row != item.row and o.ids[-1] != items[index].ids[-1]]
        assert (item.row, item.desirable) == (items[index].row, 1.0)
        np.testing.assert_array_equal(item.own[0].ids, items[index].ids)
        if not wanted:
            assert item.pairs == ((0, None),) and len(item.examples) == 1
            continue
        assert item.pairs == ((0, 1),)
        np.testing.assert_array_equal(item.examples[1].ids, [index, 100, wanted[0].ids[-1]])
        np.testing.assert_array_equal(item.examples[1].mask, [0, 0, 1])


def test_a_mismatched_sequence_is_cut_and_never_dropped(tokenizer):
    rows = [
        {"prompt": "the quick brown fox jumps over a lazy", "completion": " dog", "label": True},
        {
            "prompt": "a",
            "completion": " fox jumps over a lazy dog and asks who wrote this reply",
            "label": False,
        },
    ]
    whole = dataset(tokenizer, rows, row_length=128)
    long = whole.rows.items[0].examples[1]
    limit = len(long.ids) - 1
    assert max(len(item.own[0].ids) for item in whole.rows.items) <= limit
    cut = dataset(tokenizer, rows, max_length=limit, overlong="error")
    np.testing.assert_array_equal(cut.rows.items[0].examples[1].ids, long.ids[:limit])
    np.testing.assert_array_equal(cut.rows.items[0].examples[1].mask, long.mask[:limit])
    assert (cut.report.kept, cut.report.truncated, cut.report.dropped) == (2, 0, {})
    own = [item.own[0] for item in cut.rows.items]
    assert cut.report.tokens == sum(len(example.ids) for example in own)
    assert cut.report.supervised == sum(example.mask.sum() for example in own)


def test_dropped_records_lend_no_completion(tokenizer):
    rows = [row(0), {"prompt": "a", "completion": " dog" * 40, "label": True}, row(3)]
    made = dataset(tokenizer, rows)
    assert made.report.dropped == {"too long": 1}
    first, third = (item.examples for item in made.rows.items)
    np.testing.assert_array_equal(first[1].ids[first[1].mask > 0], third[0].ids[third[0].mask > 0])


def test_pairs_are_one_desirable_and_one_undesirable_completion(tokenizer):
    rows = [pair(n) for n in range(5)]
    made = dataset(tokenizer, rows, row_length=128)
    compared = dataset_from_records([Records(rows, "f")], CONFIG, tokenizer, PAIRS)
    assert [item.row for item in made.rows.items] == [n for n in range(5) for _ in range(2)]
    assert [item.desirable for item in made.rows.items] == [1.0, 0.0] * 5
    for number, item in enumerate(compared.rows.items):
        for side in range(2):
            np.testing.assert_array_equal(
                made.rows.items[2 * number + side].own[0].ids, item.examples[side].ids
            )
    assert str(made.report) == str(compared.report)
    # The completion of another record, not the other one of the same pair.
    lent = made.rows.items[0].examples[1]
    np.testing.assert_array_equal(
        lent.ids[lent.mask > 0], [*tokenizer.encode(" fox 1"), tokenizer.eos_ids[0]]
    )
    labelled = [row(0), pair(1), row(3)]
    assert [item.desirable for item in dataset(tokenizer, labelled).rows.items] == [1, 1, 0, 0]
    whole = dataset(tokenizer, [pair(0), pair(1) | {"rejected": " dog" * 40}])
    assert {item.row for item in whole.rows.items} == {0} and whole.report.dropped == {"too long": 1}


@pytest.mark.parametrize(
    ("label", "name"), [(True, "3 desirable completions"), (False, "3 undesirable completions")]
)
def test_training_needs_both_labels(tokenizer, label, name):
    rows = [row(n, label) for n in range(3)]
    with pytest.raises(DataError, match=rf"^f.jsonl: {name} .* and 0 .*: training needs both; add rows"):
        dataset(tokenizer, rows)
    assert dataset(tokenizer, rows, "eval").report.kept == 3
    sources = [Records(rows, "a"), Records([row(9, not label)], "b")]
    both = dataset_from_records(sources, CONFIG, tokenizer, UNPAIRED)
    assert both.report.kept == 4
    # A completion is lent by its own source only, and here there is no other.
    assert both.rows.items[3].pairs == ((0, None),)


def test_held_out_prompts_lend_nothing_to_training(tokenizer, tmp_path):
    rows = [row(n) for n in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    train, held = build_datasets(replace(CONFIG, train=str(file), eval_fraction=0.3), tokenizer, UNPAIRED)
    numbers = [{item.row for item in part.rows.items} for part in (train, held)]
    assert (
        numbers[0] | numbers[1] == set(range(40))
        and not numbers[0] & numbers[1]
        and min(map(len, numbers)) > 3
    )

    def completions(part, which):
        return {tuple(e.ids[e.mask > 0].tolist()) for item in part.rows.items for e in [item.examples[which]]}

    for part in (train, held):
        assert completions(part, 1) <= completions(part, 0)
    assert train.report.dropped == {"held out for eval": len(numbers[1])}
    # Named as eval, the same prompts leave training.
    other = tmp_path / "eval.jsonl"
    other.write_text("".join(json.dumps(r) + "\n" for r in rows[:7]))
    config = replace(CONFIG, train=str(file), eval=str(other))
    for by in ("prompt", "record"):
        kept, _ = build_datasets(replace(config, overlap_by=by), tokenizer, UNPAIRED)
        assert {item.row for item in kept.rows.items} == set(range(7, 40))


def test_the_fingerprint_knows_the_label(tokenizer):
    rows = [row(0), row(1), row(2)]
    swapped = [row(0, False), row(1, True), row(2)]
    fingerprints = {dataset(tokenizer, r).fingerprint for r in (rows, swapped, rows[::-1])}
    assert len(fingerprints) == 3 and dataset(tokenizer, rows).fingerprint in fingerprints


@pytest.mark.parametrize("packing", [True, False])
def test_a_completion_and_its_mismatched_one_share_a_row(tokenizer, packing):
    rows = [row(n) for n in range(30)]
    made = dataset(tokenizer, rows, packing=packing, row_length=96)
    batch = collate(made.rows, range(len(made.rows)))
    judged = batch.weight > 0
    assert judged.sum() == 30 and batch.desirable[judged].sum() == 15
    assert len(made.rows) < 30 if packing else batch.rows.shape == (30, 2) and judged.shape == (30, 1)
    records = np.take_along_axis(batch.rows, np.maximum(batch.completion - 1, 0), 1)
    np.testing.assert_array_equal(
        records, np.take_along_axis(batch.rows, np.maximum(batch.mismatched - 1, 0), 1)
    )
    assert sorted(records[judged]) == list(range(30))


def test_too_little_room_is_refused(tokenizer):
    with pytest.raises(
        ConfigError, match=r"row_length=63: must be at least 2 x max_length=32, so that a row hol"
    ):
        dataset(tokenizer, [row(0), row(1)], row_length=63)


def test_recipes_serve_it(tmp_path):
    def read(recipe, rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return [parse_record(r, UNPAIRED, "f") for r in open_source(f"{recipe}:{file}", UNPAIRED)]

    rows = [{"prompt": said(U), "completion": said(A), "label": True, "dataset": "x"}]
    assert read("kto-mix-14k", rows) == [Unpaired((U,), ((A,),), (True,))]
    text = [{"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}]
    assert read("hh-rlhf", text) == [Unpaired((U,), ((A,), (B,)), (True, False))]
    with pytest.raises(DataError, match="recipe dolly has sft, text, prompt data, but no unpaired data"):
        read("dolly", [])


SOURCES = {
    "text": [{"text": "the fox"}, {"text": "a dog"}],
    "sft": [{"prompt": "who", "completion": " fox"}, {"text": "a dog"}],
    "preference": [pair(0), pair(1)],
    "preference or sft": [pair(0), {"prompt": "who", "completion": " fox"}],
    "prompt": [{"prompt": "who"}, {"prompt": "who asks"}],
    "unpaired": [row(0), row(1)],
}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_abstract_batches_have_the_shapes_of_real_ones(tokenizer, kind, packing):
    config = replace(CONFIG, packing=packing, share_prompts=False)
    made = dataset_from_records([Records(SOURCES[kind], "f")], config, tokenizer, kind)
    real, planned = collate(made.rows, [0, -1, -1]), abstract_batch(kind, config, 3, lambda *array: array)
    assert type(real) is type(planned) is KINDS[kind].batch
    assert {f.name for f in fields(real)} - {"layout"} == set(ARRAYS[type(real)])
    arrays = {name: array for name, array in vars(real).items() if name not in ("ending", "layout")}
    shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    assert {name: vars(planned)[name] for name in arrays} == shapes
    if kind == "prompt":
        assert planned.ending is None
