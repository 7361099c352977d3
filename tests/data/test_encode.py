"""Ids and masks written out by hand, the length policy case by case, and the counts that report it."""

import json
from itertools import pairwise

import numpy as np
import pytest
from encoding import encode_dataset

from jaxalign.data.encode import encode_completion, encode_preference, encode_prompt, encode_text
from jaxalign.data.records import (
    Chat,
    Message,
    Preference,
    Prompt,
    PromptCompletion,
    Ranking,
    Text,
    Transcript,
    parse_record,
)
from jaxalign.data.report import EncodingReport
from jaxalign.data.sources import Records
from jaxalign.errors import ConfigError, DataError

BOS, EOS = 1, 2
LONG = "the quick brown fox " * 30


def test_text_by_hand(tokenizer):
    [example] = encode_text(Text("the fox"), tokenizer, 100)
    words = tokenizer.encode("the fox")
    np.testing.assert_array_equal(example.ids, [BOS, *words, EOS])
    np.testing.assert_array_equal(example.mask, [0] + [1] * (len(words) + 1))
    assert (example.ids.dtype, example.mask.dtype) == (np.int32, np.float32)


def test_a_transcript_is_learned_whole(tokenizer):
    row = {"messages": [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "a dog"}]}
    record = parse_record(row, "text", "f:1")
    assert record == Transcript((Message("user", "the fox"), Message("assistant", "a dog")))
    [example] = encode_text(record, tokenizer, 100)
    user, assistant, end = (tokenizer.special_id(f"<|{name}|>") for name in ("user", "assistant", "end"))
    turns = [user, *tokenizer.encode("the fox"), end, assistant, *tokenizer.encode("a dog"), end]
    np.testing.assert_array_equal(example.ids, [BOS, *turns])
    np.testing.assert_array_equal(example.mask, [0] + [1] * len(turns))


@pytest.mark.parametrize("max_length", [2, 3, 7, 10, 64])
def test_split_text_supervises_every_token_once(tokenizer, max_length):
    whole = [BOS, *tokenizer.encode(LONG), EOS]
    chunks = encode_text(Text(LONG), tokenizer, max_length)
    assert max(len(chunk.ids) for chunk in chunks) <= max_length
    assert min(len(chunk.ids) for chunk in chunks) >= 2
    targets = [token for chunk in chunks for token in chunk.ids[chunk.mask == 1]]
    assert targets == whole[1:]
    for before, after in pairwise(chunks):
        assert after.ids[0] == before.ids[-1]  # context that belongs to it
    ids = np.concatenate([chunk.ids for chunk in chunks])
    assert (ids == BOS).sum() == 1 and (ids == EOS).sum() == 1


def test_completion_by_hand(tokenizer):
    example = encode_completion(PromptCompletion("the quick", " fox"), tokenizer)
    prompt, completion = tokenizer.encode("the quick"), tokenizer.encode(" fox")
    np.testing.assert_array_equal(example.ids, [BOS, *prompt, *completion, EOS])
    np.testing.assert_array_equal(example.mask, [0] * (1 + len(prompt)) + [1] * (len(completion) + 1))
    assert example.prompt_length == 1 + len(prompt)
    sampled_from = encode_prompt(Prompt("the quick"), tokenizer)
    np.testing.assert_array_equal(example.ids[: example.prompt_length], sampled_from.ids)
    assert sampled_from.mask.sum() == 0


def test_boundary_tokens_do_not_merge(tokenizer):
    text = "the quick brown fox jumps"
    for cut in range(1, len(text)):
        example = encode_completion(PromptCompletion(text[:cut], text[cut:]), tokenizer)
        supervised = example.ids[example.mask == 1]
        assert tokenizer.decode(supervised) == text[cut:]
        assert supervised[-1] == EOS


def test_conversational_completion_supervises_the_completion_only(tokenizer):
    user, answer = Message("user", "who asks"), Message("assistant", "the fox")
    example = encode_completion(PromptCompletion((user, answer, user), (answer,)), tokenizer)
    end = tokenizer.special_id("<|end|>")
    np.testing.assert_array_equal(example.ids[example.mask == 1], [*tokenizer.encode("the fox"), end])
    prompt = encode_prompt(Prompt((user, answer, user)), tokenizer)
    np.testing.assert_array_equal(example.ids[: example.prompt_length], prompt.ids)


def ranking_weight(item):
    return len(item.pairs) * item.weight


def test_preference_and_ranking(tokenizer):
    pair = encode_preference(Preference("the", " fox", " dog", margin=1.5), tokenizer)
    assert (pair.pairs, pair.margin, pair.weight) == (((0, 1),), 1.5, 1.0)
    assert [tokenizer.decode(e.ids[e.mask == 1]) for e in pair.examples] == [" fox", " dog"]
    ranking = encode_preference(Ranking("the", (" a", " b", " c", " d"), (1.0, 3.0, 2.0, 3.0)), tokenizer)
    assert set(ranking.pairs) == {(1, 0), (2, 0), (3, 0), (1, 2), (3, 2)}  # b and d tie
    assert ranking.weight == pytest.approx(1 / 5) and ranking.margin == 0.0
    tied = encode_preference(Ranking("the", (" a", " b"), (1.0, 1.0)), tokenizer)
    assert (tied.pairs, tied.weight) == ((), 1.0)
    for scores in (
        (1.0, 2.0, 3.0, 4.0),
        (2.0, 2.0, 2.0, 1.0),
        (2.0, 1.0, 1.0),
        (1.0, 2.0),
    ):  # a prompt weighs 1
        ranked = encode_preference(Ranking("the", (" a", " b", " c", " d")[: len(scores)], scores), tokenizer)
        assert ranking_weight(ranked) == pytest.approx(1.0)


def rows_of(*rows):
    return Records(list(rows), "f.jsonl")


def encode(tokenizer, rows, kind="sft", **options):
    options = {"max_length": 20} | options
    return encode_dataset(rows, kind, tokenizer, **options)


SHORT = {"prompt": "the", "completion": " fox"}
LONG_ANSWER = {"prompt": "the", "completion": LONG}
LONG_PROMPT = {"prompt": LONG, "completion": " fox"}


def test_overlong_drop(tokenizer):
    examples, report = encode(tokenizer, rows_of(SHORT, LONG_ANSWER, LONG_PROMPT, LONG_ANSWER))
    assert [example.row for example in examples] == [0]
    assert report.dropped == {"too long": 2, "prompt too long": 1}
    tokens = len(examples[0].ids)
    assert str(report) == (
        "4 records: 1 kept (0 truncated, 0 split), 3 dropped (1 prompt too long, 2 too long); "
        f"{tokens} tokens, {int(examples[0].mask.sum())} supervised"
    )


def test_overlong_truncate_appends_nothing(tokenizer):
    whole = encode_completion(PromptCompletion("the", LONG), tokenizer)
    examples, report = encode(tokenizer, rows_of(SHORT, LONG_ANSWER, LONG_PROMPT), overlong="truncate")
    np.testing.assert_array_equal(examples[1].ids, whole.ids[:20])
    np.testing.assert_array_equal(examples[1].mask, whole.mask[:20])
    assert EOS not in examples[1].ids
    assert (report.kept, report.truncated, report.dropped) == (2, 1, {"prompt too long": 1})


def test_overlong_error_names_the_row(tokenizer):
    with pytest.raises(
        DataError, match=r"^f.jsonl:2: too long: needs \d+ tokens and has room for 20; .*'drop'"
    ):
        encode(tokenizer, rows_of(SHORT, LONG_ANSWER), overlong="error")
    with pytest.raises(DataError, match=r"^f.jsonl:1: prompt too long: needs \d+ tokens"):
        encode(tokenizer, rows_of(LONG_PROMPT), overlong="error")


def test_prompt_that_just_leaves_room_for_one_token(tokenizer):
    size = encode_completion(PromptCompletion("the quick", " fox"), tokenizer).prompt_length
    rows = rows_of({"prompt": "the quick", "completion": " fox"})
    [example], _ = encode(tokenizer, rows, max_length=size + 1, overlong="truncate")
    assert example.mask.sum() == 1
    with pytest.raises(DataError, match=r"f.jsonl: no record is left .*1 prompt too long"):
        encode(tokenizer, rows, max_length=size, overlong="truncate")


def test_pairs_meet_the_policy_whole(tokenizer):
    good = {"prompt": "the", "chosen": " fox", "rejected": " dog"}
    long_side = {"prompt": "the", "chosen": " fox", "rejected": LONG}
    late = {"prompt": "the", "chosen": LONG + "a", "rejected": LONG + "b"}
    pairs, report = encode(tokenizer, rows_of(good, long_side), "preference")
    assert [pair.row for pair in pairs] == [0] and report.dropped == {"too long": 1}
    assert [example.row for example in pairs[0].examples] == [0, 0]
    pairs, report = encode(tokenizer, rows_of(good, long_side, late), "preference", overlong="truncate")
    assert [pair.row for pair in pairs] == [0, 1]
    assert len(pairs[1].examples[1].ids) == 20
    assert (report.truncated, report.dropped) == (1, {"equal after truncation": 1})
    ranking = {"prompt": "the", "responses": [" a", " b", " c", " d"], "scores": [1, 2, 3, 4]}
    pairs, report = encode(tokenizer, rows_of(good, ranking), "preference", group_length=12)
    assert [pair.row for pair in pairs] == [0] and report.dropped == {"group too long": 1}


@pytest.mark.parametrize("kind", ["preference", "unpaired"])
def test_a_pair_of_equal_completions_says_nothing(tokenizer, kind):
    late = {"prompt": "the", "chosen": LONG + "a", "rejected": LONG + "b"}
    good = {"prompt": "the", "chosen": " fox", "rejected": " dog"}
    kept, report = encode(tokenizer, rows_of(good, late), kind, overlong="truncate")
    assert {item.row for item in kept} == {0} and report.dropped == {"equal after truncation": 1}


def test_a_text_of_one_token_is_one_sequence(tokenizer, monkeypatch):
    """Without BOS; there is nothing from which to predict it."""
    monkeypatch.setitem(vars(tokenizer), "bos_id", None)
    (item,) = encode_text(Text(""), tokenizer, 10)
    assert item.ids.tolist() == [EOS] and item.mask.tolist() == [0.0] and item.note == "whole"


def test_by_default_control_tokens_in_a_text_are_refused_and_all_answers_are_learned(tokenizer):
    with pytest.raises(DataError, match="control"):
        encode_text(Text("<|user|>the fox<|end|>"), tokenizer, 100)
    user, answer = Message("user", "who asks"), Message("assistant", "the fox")
    item = encode_completion(Chat((user, answer, user, answer)), tokenizer)
    assert tokenizer.decode(item.ids[item.mask > 0].tolist()).count("the fox") == 2


def test_what_goes_on_with_an_answer_is_one_message(tokenizer):
    prompt, rest = (Message("user", "who asks"), Message("assistant", "the")), Message("assistant", " fox")
    item = encode_completion(PromptCompletion(prompt, (rest,)), tokenizer)
    begun, end = encode_prompt(Prompt(prompt), tokenizer), tokenizer.special_id("<|end|>")
    assert item.ids.tolist() == [*begun.ids, *tokenizer.encode(" fox"), end] and begun.ending == (end,)
    assert item.mask.tolist() == [0] * len(begun.ids) + [1] * (len(tokenizer.encode(" fox")) + 1)
    for others in ((), (rest, Message("user", "why")), (rest, rest, rest)):
        with pytest.raises(DataError, match=f"must be one message, its rest; found {len(others)}"):
            encode_completion(PromptCompletion(prompt, others), tokenizer)


def test_prompts(tokenizer):
    rows = rows_of({"prompt": "the quick"}, {"prompt": LONG})
    examples, report = encode(tokenizer, rows, "prompt", first_row=10)
    assert [example.row for example in examples] == [10]
    assert (report.dropped, report.supervised) == ({"prompt too long": 1}, 0)


def test_text_report_counts_splits(tokenizer):
    chunks, report = encode(tokenizer, rows_of({"text": LONG}, {"text": "the fox"}), "text")
    total = len(tokenizer.encode(LONG)) + len(tokenizer.encode("the fox")) + 2  # all but BOS, with EOS
    assert (report.kept, report.split, report.supervised) == (2, 1, total)
    assert [chunk.row for chunk in chunks] == [0] * (len(chunks) - 1) + [1]
    assert report.tokens == sum(len(chunk.ids) for chunk in chunks)


def test_reports_add_up():
    a = EncodingReport(read=2, kept=1, tokens=5)
    a.dropped["too long"] += 1
    b = EncodingReport(read=1, dropped=a.dropped)
    assert a + b == EncodingReport(read=3, kept=1, dropped=a.dropped + a.dropped, tokens=5)


def test_faults_name_the_row(tokenizer):
    rows = rows_of(SHORT, {"prompt": "the"})
    with pytest.raises(DataError, match=r"^f.jsonl:2: missing completion"):
        encode(tokenizer, rows)
    with pytest.raises(ConfigError, match=r"config.data.overlong='cut': write one of error, drop, truncate"):
        encode(tokenizer, rows, overlong="cut")
    with pytest.raises(ConfigError, match=r"config.data.max_length=1: must be at least 2"):
        encode(tokenizer, rows, max_length=1)
    assert encode(tokenizer, rows_of({"text": "fox"}), "text", max_length=2)[1].kept == 1


def test_nothing_supervised_is_an_error(tokenizer, monkeypatch):
    import jaxalign.data.encode as module

    monkeypatch.setattr(module, "render_chat", lambda *args, **kwargs: ([1, 5, 6], [False] * 3))
    monkeypatch.setattr(module, "check_shown", lambda *args: None)
    rows = rows_of({"messages": [json.loads('{"role": "assistant", "content": "x"}')]})
    with pytest.raises(DataError, match=r"^f.jsonl: no token is supervised \(1 record: 1 kept"):
        encode(tokenizer, rows)


def test_text_rows_may_be_mixed_into_fine_tuning(tokenizer):
    rows = [{"prompt": "the fox", "completion": " asks"}, {"text": "a lazy dog"}]
    (asked, text), report = encode_dataset(Records(rows, "f"), "sft", tokenizer, max_length=100)
    assert asked.mask.sum() == len(tokenizer.encode(" asks")) + 1
    assert text.mask.sum() == len(tokenizer.encode("a lazy dog")) + 1
    assert report.kept == 2
