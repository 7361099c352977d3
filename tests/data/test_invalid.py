"""Rows that cannot be used: all named at once, or left out, counted, and written down."""

import json
import re
from dataclasses import replace

import pytest

from jaxalign.data import DataConfig, build_dataset, build_datasets
from jaxalign.data.invalid import reason_of, write_dropped
from jaxalign.errors import DataError

CONFIG = DataConfig(max_length=32, row_length=64)
ASK = {"role": "user", "content": "who asks"}


def chat(answer) -> dict:
    return {"messages": [ASK, {"role": "assistant", "content": answer}]}


def write(path, rows) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


# Rows 2, 4, 5 and 7 cannot be used.
MIXED = [
    chat("a"),
    chat(" "),
    chat("b"),
    '{"messages": [',
    chat(""),
    chat("c"),
    {"messages": [ASK]},
    chat("d"),
]
MIXED += [chat("e")]
GOOD = [MIXED[i] for i in (0, 2, 5, 7, 8)]


def test_all_bad_rows_of_all_sources_are_named_at_once(tmp_path, tokenizer):
    first = write(tmp_path / "a.jsonl", MIXED)
    second = write(tmp_path / "b.jsonl", [chat("a"), "[]", chat("f")])
    with pytest.raises(DataError) as found:
        build_datasets(replace(CONFIG, train=first, eval=second), tokenizer, "sft")
    lines = str(found.value).splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [f"{first}:{i}" for i in (2, 4, 5, 7)] + [
        f"{second}:2"
    ]
    assert lines[0].endswith(
        "messages[1].content is empty or only whitespace (' '); fill it or remove the row"
    )
    assert lines[-1] == (
        "5 of 12 rows cannot be used: 2 messages[].content is empty or only whitespace, 1 not valid JSON: Expecting "
        "value: line N column N, 1 messages has no assistant turn, 1 a list, not a JSON object; mend such rows, or "
        "leave them out with config.data.invalid='drop', which counts them and lists them in dropped.jsonl"
    )


def test_one_bad_row_is_named_as_it_always_was(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [*GOOD, chat("")])
    with pytest.raises(DataError) as found:
        build_dataset(replace(CONFIG, train=path), tokenizer, "sft")
    first, last = str(found.value).splitlines()
    assert (
        first == f"{path}:6: messages[1].content is empty or only whitespace (''); fill it or remove the row"
    )
    assert last.startswith(
        "1 of 6 rows cannot be used; mend such rows, or leave them out with config.data.invalid='drop'"
    )


def test_an_error_shows_twenty_rows_and_counts_the_rest(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [chat(""), chat("a")] * 50)
    with pytest.raises(DataError) as found:
        build_dataset(replace(CONFIG, train=path), tokenizer, "sft")
    lines = str(found.value).splitlines()
    assert len(lines) == 21 and lines[1] == f"{path}:3: the same"
    assert lines[-1].startswith(
        "50 of 100 rows cannot be used: 50 messages[].content is empty or only whitespace; "
    )


def test_dropped_rows_are_counted_and_written_down(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", MIXED)
    config = replace(CONFIG, train=path, invalid="drop")
    dataset, _ = build_datasets(config, tokenizer, "sft")
    assert dataset.report.dropped == {
        "invalid: messages[].content is empty or only whitespace": 2,
        "invalid: not valid JSON: Expecting value: line N column N": 1,
        "invalid: messages has no assistant turn": 1,
    }
    assert (dataset.report.read, dataset.report.kept) == (9, 5)
    assert {item.row for item in dataset.rows.items} == {0, 2, 5, 7, 8}
    alone = build_dataset(replace(CONFIG, train=write(tmp_path / "good.jsonl", GOOD)), tokenizer, "sft")
    assert alone.fingerprint == dataset.fingerprint
    write_dropped(tmp_path / "dropped.jsonl", dataset.invalid)
    rows = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"]) for row in rows] == [(path, i) for i in (2, 4, 5, 7)]
    assert [row["data"] for row in rows] == [MIXED[1], MIXED[3] + "\n", MIXED[4], MIXED[6]]
    assert rows[3]["reason"] == "messages has no assistant turn, so nothing to learn; add the answer"


def test_both_parts_are_written_down_once(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", MIXED)
    config = replace(CONFIG, train=path, eval_fraction=0.5, invalid="drop")
    train, held_out = build_datasets(config, tokenizer, "text")
    assert held_out is not None and held_out.invalid == ()
    assert [row.index for row in train.invalid] == [1, 3, 4]  # as text, a conversation needs no answer
    other = write(tmp_path / "b.jsonl", MIXED[:6])
    train, held_out = build_datasets(
        replace(CONFIG, train=path, eval=other, overlap="allow", invalid="drop"), tokenizer, "sft"
    )
    assert held_out is not None
    assert [row.where for row in held_out.invalid] == [f"{other}:{i}" for i in (2, 4, 5)]
    assert [row.where for row in train.invalid] == [f"{path}:{i}" for i in (2, 4, 5, 7)]


def test_more_than_half_of_a_source_is_no_accident(tmp_path, tokenizer):
    good = write(tmp_path / "good.jsonl", GOOD * 10)
    for rows, allowed in (([chat("a"), chat("")], True), ([chat("a"), chat(""), chat("")], False)):
        bad = write(tmp_path / "bad.jsonl", rows)
        config = replace(CONFIG, train=(good, bad), invalid="drop")
        if allowed:
            assert build_dataset(config, tokenizer, "sft").report.kept == 51
            continue
        with pytest.raises(DataError) as found:
            build_dataset(config, tokenizer, "sft")
        assert str(found.value).startswith(f"{bad}:2: messages[1].content is empty")
        assert f"leaves out half of a source at most, and {bad} is worse: so many are no accident" in str(
            found.value
        )


def test_what_is_too_long_is_refused_where_that_is_an_error(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [*GOOD, chat("the fox " * 40), chat("")])
    config = replace(CONFIG, train=path, invalid="drop")
    kept = build_dataset(config, tokenizer, "sft").report
    assert kept.dropped["too long"] == 1 and kept.dropped.total() == 2
    with pytest.raises(
        DataError, match=rf"^{path}:6: too long: needs .*\n.*set config.data.overlong='drop' too"
    ):
        build_dataset(replace(config, overlong="error"), tokenizer, "sft")


def test_a_source_of_another_kind_is_not_read_to_its_end(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"other": "x"}] * 1500)
    with pytest.raises(
        DataError, match=rf"^{path}:1: missing .*\n(.*\n)+none of the first 1,000 rows of {path} can be"
    ):
        build_dataset(replace(CONFIG, train=path), tokenizer, "sft")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("messages[12].content is empty ('\\n'); fill it", "messages[].content is empty"),
        ("messages[0] has unknown role 'owner'; use user", "messages[] has unknown role 'owner'"),
        (
            "the field 'system' ('Be (very) brief, 3 words; so') means something",
            "the field 'system' means something",
        ),
        ("chosen_score is -3.5e3, not a number; write one", "chosen_score is N, not a number"),
        ("missing prompt; expected prompt; found text", "missing prompt"),
    ],
)
def test_reasons_leave_out_what_differs_from_row_to_row(problem, reason):
    assert reason_of(problem) == reason


@pytest.mark.parametrize(
    ("kind", "row", "advice"),
    [
        ("sft", {"prompt": "p", "chosen": " c", "rejected": " r"}, "are preference pairs, for DPO, ORPO and reward"),
        ("preference", {"prompt": "p", "completion": " c"}, "are demonstrations, .*, and this reads preference pairs"),
        ("text", {"prompt": "p", "completion": " c", "label": True}, "are completions with labels, for KTO, and this"),
        ("sft", {"promt": "p", "completion": " c"}, "is 'promt' meant for prompt? Rename it"),
        ("prompt", {"text": "A film."}, "are demonstrations, for supervised fine-tuning, and this reads prompts"),
        ("sft", {"a": "b"}, ""),
    ],
)  # fmt: skip
def test_a_row_of_another_kind_is_known(tmp_path, tokenizer, kind, row, advice):
    path = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(DataError) as found:
        build_dataset(replace(CONFIG, train=path), tokenizer, kind)
    first, last = str(found.value).splitlines()
    assert first.startswith(f"{path}:1: missing ")
    if advice:
        assert re.match(rf"1 of 1 row cannot be used\. (Rows like )?{path}:1:? ", last)
        assert re.search(advice.replace("?", r"\?"), last)
    else:
        assert last == "1 of 1 row cannot be used"
