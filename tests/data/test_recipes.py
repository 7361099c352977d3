"""Rows in the real schema of each public dataset become the records written out here, and its bad rows are counted."""

import json

import datasets
import pytest
from encoding import encode_dataset

from jaxalign.data import sources
from jaxalign.data.public import recipes
from jaxalign.data.public.recipes import RECIPES, Source, open_source, parse_source
from jaxalign.data.records import (
    KINDS,
    Chat,
    Message,
    Preference,
    Prompt,
    PromptCompletion,
    Ranking,
    Text,
    Transcript,
)
from jaxalign.data.records import parse_record as parse
from jaxalign.data.sources import Dropped
from jaxalign.errors import DataError


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path, recipe, kind, rows):
    """The checked records of rows written to a file, and in their place the reasons of those left out."""
    path = write(tmp_path / "rows.jsonl", rows)
    records = open_source(f"{recipe}:{path}" if recipe else str(path), kind)
    return [
        row.reason if isinstance(row, Dropped) else parse(row, kind, records.where(i))
        for i, row in enumerate(records)
    ]


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def turns(*texts):
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def speakers(*texts, first="human"):
    roles = ["human", "gpt"] * len(texts)
    return [{"from": role, "value": text} for role, text in zip(roles[first == "gpt" :], texts, strict=False)]


HH = {
    "chosen": "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nSecond paragraph.\n\nHuman: Name a dog\n\nAssistant: Rex",
    "rejected": "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nSecond paragraph.\n\nHuman: Name a dog\n\nAssistant: No",
}
HH_PROMPT = (user("Hi there"), assistant("Hello.\n\nSecond paragraph."), user("Name a dog"))


def test_hh_rlhf(tmp_path):
    def row(chosen, rejected):
        return {"chosen": chosen, "rejected": rejected}

    bad = [
        row("\n\nHuman: a\n\nAssistant: ", "\n\nHuman: a\n\nAssistant: b"),
        row("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b"),
        row("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d"),
        row("\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "\n\nAssistant: a\n\nHuman: b\n\nAssistant: d"),
        row("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"),
        row("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "\n\nHuman: a\n\nAssistant: d"),
        row("\n\nHuman: \n\nAssistant: b", "\n\nHuman: \n\nAssistant: d"),
    ]
    assert read(tmp_path, "hh-rlhf", "preference", [HH, *bad]) == [
        Preference(HH_PROMPT, (assistant("Rex"),), (assistant("No"),)),
        "empty reply",
        "chosen equals rejected",
        "chosen and rejected answer different prompts",
        "does not begin with a human turn",
        "turns do not alternate",
        "does not end with a reply",
        "empty turn",
    ]
    assert read(tmp_path, "hh-rlhf", "prompt", [HH]) == [Prompt(HH_PROMPT)]
    assert read(tmp_path, "hh-rlhf", "sft", [HH]) == [PromptCompletion(HH_PROMPT, (assistant("Rex"),))]
    assert read(tmp_path, "hh-rlhf", "preference or sft", [HH])[0].rejected == (assistant("No"),)
    with pytest.raises(DataError, match=r"rows.jsonl:2: chosen does not begin with '\\n\\nHuman:' but 'Hi'"):
        read(tmp_path, "hh-rlhf", "preference", [HH, row("Hi", "Ho")])
    with pytest.raises(DataError, match=r"rows.jsonl:1: missing chosen; found transcript, rating"):
        read(tmp_path, "hh-rlhf", "preference", [{"transcript": "\n\nHuman: a", "rating": 4.0}])
    with pytest.raises(DataError, match="recipe hh-rlhf has preference, sft, prompt data, but no text data"):
        read(tmp_path, "hh-rlhf", "text", [HH])


def test_ultrafeedback_binarized(tmp_path):
    row = {
        "prompt": "Name a dog",
        "prompt_id": "6c3b",
        "chosen": turns("Name a dog", "Rex"),
        "rejected": turns("Name a dog", "No"),
        "messages": turns("Name a dog", "Rex"),
        "score_chosen": 8.5,
        "score_rejected": 7.0,
    }
    tie = row | {"score_rejected": 8.5}
    empty = row | {"rejected": turns("Name a dog", "")}
    same = row | {"rejected": row["chosen"]}
    assert read(tmp_path, "ultrafeedback_binarized", "preference", [row, tie, empty, same]) == [
        Preference((user("Name a dog"),), (assistant("Rex"),), (assistant("No"),), 0.0, (8.5, 7.0)),
        "tie",
        "empty reply",
        "chosen equals rejected",
    ]
    assert read(tmp_path, "ultrafeedback_binarized", "sft", [row]) == [
        Chat((user("Name a dog"), assistant("Rex")))
    ]
    assert read(tmp_path, "ultrafeedback_binarized", "prompt", [row]) == [Prompt((user("Name a dog"),))]


def test_ultrachat(tmp_path):
    row = {"prompt": "a", "prompt_id": "f0e3", "messages": turns("a", "b", "c", "d")}
    chat = (user("a"), assistant("b"), user("c"), assistant("d"))
    bad = [row | {"messages": turns("a", "", "c", "d")}, row | {"messages": turns("a")}]
    assert read(tmp_path, "ultrachat_200k", "sft", [row, *bad]) == [Chat(chat), "empty turn", "no reply"]
    assert read(tmp_path, "ultrachat_200k", "text", [row]) == [Transcript(chat)]
    assert read(tmp_path, "ultrachat_200k", "prompt", [row]) == [Prompt((user("a"),))]


def completion(response, helpfulness, honesty):
    ratings = {
        "helpfulness": helpfulness,
        "honesty": honesty,
        "instruction_following": "3",
        "truthfulness": "5",
    }
    return {
        "annotations": {aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in ratings.items()},
        "custom_system_prompt": "Be brief.",
        "model": "alpaca-7b",
        "principle": "helpfulness",
        "response": response,
        "critique": "...",
        "overall_score": 10.0,
        "fine-grained_score": 4.0,
    }


def test_ultrafeedback(tmp_path):
    row = {
        "source": "evol_instruct",
        "instruction": "Name a dog",
        "models": ["alpaca-7b", "bard"],
        "completions": [completion("No", "1", "N/A"), completion("Rex", "5", "5")],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }

    def of(*completions):
        return row | {"completions": list(completions)}

    bad = [
        of(),
        of(completion("Rex", "5", "5"), completion(" ", "1", "1")),
        of(completion("Rex", "5", "5"), completion("Fido", "5", "5")),
        of(completion("Rex", "5", "5"), completion("Rex", "4", "5")),
    ]
    replies = ((assistant("No"),), (assistant("Rex"),))
    assert read(tmp_path, "UltraFeedback", "preference", [row, *bad]) == [
        Ranking((user("Name a dog"),), replies, (3.0, 4.5)),  # (1 + 3 + 5) / 3 and (5 + 5 + 3 + 5) / 4
        "fewer than two replies",
        "empty reply",
        "tie",
        "one reply with two scores",
    ]
    assert read(tmp_path, "UltraFeedback", "sft", [row]) == [
        PromptCompletion((user("Name a dog"),), (assistant("Rex"),))
    ]


def test_tldr(tmp_path):
    prompt = "SUBREDDIT: r/dogs\n\nTITLE: Rex\n\nPOST: He barks.\n\nTL;DR:"
    rows = [{"prompt": prompt, "completion": " Rex barks."}, {"prompt": prompt, "completion": " "}]
    assert read(tmp_path, "tldr", "sft", rows) == [PromptCompletion(prompt, " Rex barks."), "empty reply"]
    assert read(tmp_path, "tldr", "prompt", rows[:1]) == [Prompt(prompt)]
    pairs = [
        {"prompt": prompt, "chosen": " Rex barks.", "rejected": " A dog."},
        {"prompt": prompt, "chosen": " A dog.", "rejected": " A dog."},
    ]
    assert read(tmp_path, "tldr-preference", "preference", pairs) == [
        Preference(prompt, " Rex barks.", " A dog."),
        "chosen equals rejected",
    ]


def test_summarize_from_feedback(tmp_path):
    info = {"id": "t3_34xale", "post": "He barks.\n\nA lot.", "title": "Rex", "subreddit": "dogs"}
    info |= {"site": None, "article": None}
    row = {
        "info": info,
        "split": "train",
        "summaries": [
            {"text": " A dog.", "policy": "sup4_ppo_rm3_kl10", "note": None},
            {"text": " Rex barks.", "policy": "ref", "note": None},
        ],
        "choice": 1,
        "worker": "W9yIiQJhE0",
        "batch": "batch3",
        "extra": {"confidence": None},
    }
    news = {
        "id": "x",
        "post": None,
        "title": "Rex",
        "subreddit": None,
        "site": "cnn",
        "article": "Rex\n\nbarked.",
    }
    records = read(
        tmp_path,
        "summarize_from_feedback",
        "preference",
        [row, row | {"info": news, "batch": "cnndm0", "choice": 0}, row | {"summaries": [{"text": "a"}] * 2}],
    )
    assert records == [
        Preference(
            "SUBREDDIT: r/dogs\n\nTITLE: Rex\n\nPOST: He barks.\nA lot.\n\nTL;DR:", " Rex barks.", " A dog."
        ),
        Preference("TITLE: Rex\n\nRex\nbarked.\n\nTL;DR:", " A dog.", " Rex barks."),
        "chosen equals rejected",
    ]
    with pytest.raises(DataError, match=r"rows.jsonl:1: 2 summaries, choice=2; expected 2 and a choice of 0"):
        read(tmp_path, "summarize_from_feedback", "preference", [row | {"choice": 2}])


def test_imdb(tmp_path):
    words = "This film is the one that I would see again and again.<br /><br />Really."
    rows = [{"text": words, "label": 1}, {"text": "Bad", "label": 0}]
    assert read(tmp_path, "imdb", "text", rows) == [Text(words), Text("Bad")]
    assert read(tmp_path, "imdb", "sft", rows) == [Text(words), Text("Bad")]
    reviews = [
        {"text": f"review {n} of this long and winding film about a dog", "label": 0} for n in range(60)
    ]
    prompts = [record.prompt for record in read(tmp_path, "imdb", "prompt", reviews)]
    assert all(review["text"].startswith(p) for review, p in zip(reviews, prompts, strict=True))
    assert {len(prompt.split()) for prompt in prompts} == {2, 3, 4, 5, 6, 7, 8}
    assert prompts == [record.prompt for record in read(tmp_path, "imdb", "prompt", reviews)]
    assert read(tmp_path, "imdb", "prompt", [{"text": "Bad", "label": 0}]) == ["shorter than a prompt"]


@pytest.mark.parametrize(
    ("recipe", "names", "language"),
    [
        ("dolly", ("instruction", "context", "response"), "en"),
        ("dolly", ("instruction", "context", "response"), "ja"),
        ("alpaca", ("instruction", "input", "output"), "en"),
        ("", ("instruction", "input", "output"), "ja"),
    ],
)
def test_instructions(tmp_path, recipe, names, language):
    ask, about, reply = (
        ("Who barks?", "Rex is a dog.", "Rex") if language == "en" else ("誰が吠える", "犬だ。", "レックス")
    )

    def row(*values):
        return dict(zip(names, values, strict=True)) | {"category": "closed_qa"}

    rows = [row(ask, about, reply), row(ask, "", reply), row(ask, about, " "), row("", "", reply)]
    rows.append({name: value for name, value in rows[0].items() if name != names[1]})
    alone = Chat((user(ask), assistant(reply)))
    assert read(tmp_path, recipe, "sft", rows) == [
        Chat((user(f"{ask}\n\n{about}"), assistant(reply))),
        alone,
        "empty turn",
        "empty turn",
        alone,
    ]
    assert read(tmp_path, recipe, "prompt", rows[:1]) == [Prompt((user(f"{ask}\n\n{about}"),))]


@pytest.mark.parametrize("recipe", ["sharegpt", ""])
def test_sharegpt(tmp_path, recipe):
    rows = [
        {"id": "1", "conversations": speakers("a", "b", "c", "d")},
        {"id": "2", "conversations": [{"from": "system", "value": "s"}, *speakers("a", "b", "c")]},
        {"id": "3", "conversations": speakers("b", "c", "d", first="gpt")},
        {"id": "4", "conversations": speakers("a", "")},
        {"id": "5", "conversations": [*speakers("a"), *speakers("c", "d")]},
        {"id": "6", "conversations": speakers("a")},
        {"id": "7", "conversations": []},
    ]
    assert read(tmp_path, recipe, "sft", rows) == [
        Chat((user("a"), assistant("b"), user("c"), assistant("d"))),
        Chat((Message("system", "s"), user("a"), assistant("b"), user("c"))),
        "does not begin with a human turn",
        "empty turn",
        "turns do not alternate",
        "no reply",
        "does not begin with a human turn",
    ]
    assert read(tmp_path, recipe, "prompt", rows[:2]) == [
        Prompt((user("a"), assistant("b"), user("c"))),
        Prompt((Message("system", "s"), user("a"), assistant("b"), user("c"))),
    ]
    with pytest.raises(
        DataError, match=r"rows.jsonl:2: conversations\[0\] is by 'narrator'; write one of system, developer"
    ):
        read(tmp_path, recipe, "sft", [rows[0], {"conversations": [{"from": "narrator", "value": "x"}]}])


def test_hh_rlhf_ja(tmp_path):
    rows = [
        {
            "ID": "0",
            "conversations": speakers("犬", "何", "散歩"),
            "chosen": "ポチ",
            "rejected": "いいえ",
        },
        {
            "ID": "1",
            "conversations": speakers("犬"),
            "chosen": speakers("ポチ", first="gpt"),
            "rejected": "いいえ",
        },
        {"ID": "2", "conversations": speakers("犬"), "chosen": "ポチ", "rejected": "ポチ"},
        {"ID": "3", "conversations": speakers("犬", "猫"), "chosen": "ポチ", "rejected": "いいえ"},
    ]
    expected = [
        Preference(
            (user("犬"), assistant("何"), user("散歩")),
            (assistant("ポチ"),),
            (assistant("いいえ"),),
        ),
        Preference((user("犬"),), (assistant("ポチ"),), (assistant("いいえ"),)),
        "chosen equals rejected",
        "turns do not alternate",
    ]
    assert read(tmp_path, "hh-rlhf-12k-ja", "preference", rows) == expected
    assert read(tmp_path, "", "preference", rows) == expected
    chat = {"conversations": speakers("犬", "ポチ")}
    assert read(tmp_path, "", "preference or sft", [rows[0], chat])[1] == Chat(
        (user("犬"), assistant("ポチ"))
    )


def message(identity, parent, role, text, rank=None, **changes):
    row = {
        "message_id": identity,
        "parent_id": parent,
        "text": text,
        "role": role,
        "rank": rank,
        "lang": "en",
    }
    return row | {"deleted": False, "review_result": True, "synthetic": False, "tree_state": "x"} | changes


TREES = [
    message("q1", None, "prompter", "Name a dog"),
    message("a1", "q1", "assistant", "No", rank=1),
    message("a2", "q1", "assistant", "Rex", rank=0),
    message("a3", "q1", "assistant", "Spam", rank=2, review_result=False),
    message("q2", "a2", "prompter", "Another"),
    message("b1", "q2", "assistant", "Fido"),
    message("q3", "b1", "prompter", "More"),
    message("a4", "q1", "assistant", "", rank=3, deleted=True),
    message("q4", "a4", "prompter", "Why"),
    message("q5", None, "prompter", "Nobody answers"),
    message("q6", None, "prompter", "犬", lang="ja"),
    message("c1", "q6", "assistant", "ポチ", lang="ja", rank=0),
    message("c2", "q6", "assistant", "タマ", lang="ja", rank=0),
]


def test_oasst1(tmp_path):
    left_out = ["failed review", "deleted", "answers a message left out"]
    chats = read(tmp_path, "oasst1", "sft", TREES)
    assert chats == [
        Chat((user("Name a dog"), assistant("Rex"), user("Another"), assistant("Fido"))),
        *left_out,
        "no reply",
        Chat((user("犬"), assistant("ポチ"))),
    ]
    assert read(tmp_path, "oasst1", "preference", TREES) == [
        Ranking((user("Name a dog"),), ((assistant("Rex"),), (assistant("No"),)), (-0.0, -1.0)),
        *left_out,
        "tie",
    ]
    assert [r for r in read(tmp_path, "oasst1", "prompt", TREES) if isinstance(r, Prompt)] == [
        Prompt((user("Name a dog"),)),
        Prompt((user("Nobody answers"),)),
        Prompt((user("犬"),)),
    ]
    assert read(tmp_path, "oasst1/ja", "sft", TREES) == [Chat((user("犬"), assistant("ポチ")))]
    records = open_source(f"oasst1/ja:{tmp_path / 'rows.jsonl'}", "sft")
    assert records.where(0) == f"{tmp_path / 'rows.jsonl'}:11"  # the line of the tree's first message
    assert read(tmp_path, "oasst1", "sft", TREES[::-1])[::-1][:1] == chats[:1]  # in any order
    deeper = [
        *TREES,
        message("b2", "q2", "assistant", "Bello", rank=1),
        message("b3", "q2", "assistant", "Max", rank=0),
    ]
    second = read(tmp_path, "oasst1", "preference", deeper)[2]
    assert second.prompt == (user("Name a dog"), assistant("Rex"), user("Another"))
    assert second.responses == ((assistant("Max"),), (assistant("Bello"),))
    with pytest.raises(DataError, match=r"rows.jsonl:14: message_id 'q1' occurs twice"):
        read(tmp_path, "oasst1", "sft", [*TREES, TREES[0]])
    with pytest.raises(DataError, match=r"rows.jsonl:1: message_id is None; is this oasst1"):
        read(tmp_path, "oasst1", "sft", [{"prompt": {}}])


def test_dropped_rows_are_counted(tmp_path, tokenizer):
    same = {"chosen": HH["chosen"], "rejected": HH["chosen"]}
    path = write(tmp_path / "rows.jsonl", [HH, same, HH, same])
    records = open_source(f"hh-rlhf:{path}", "preference")
    items, report = encode_dataset(records, "preference", tokenizer, max_length=100)
    assert report.read == 4 and report.kept == 2 and report.dropped == {"chosen equals rejected": 2}
    assert [item.row for item in items] == [0, 2]
    assert "4 records: 2 kept (0 truncated, 0 split), 2 dropped (2 chosen equals rejected)" in str(report)


def test_completions_by_a_model(tmp_path):
    """Those without an end or words are left out by name; `sample` and `row` are no concern of the stage."""
    rest = {"row": 0, "sample": 0}
    ends = [{"completion": " b", "finished": True}, {"completion": " b c", "finished": False}]
    ends += [{"completion": " ", "finished": True}]
    rows = [{"prompt": "a"} | end | rest for end in ends]
    rows.append(
        {"prompt": turns("a"), "completion": [{"role": "assistant", "content": ""}], "finished": True}
    )
    left_out = ["completion not finished", "empty completion", "empty completion"]
    assert read(tmp_path, "", "sft", rows) == [PromptCompletion("a", " b"), *left_out]


def test_own_fields_come_before_shapes(tmp_path):
    row = {"messages": turns("a", "b"), "conversations": speakers("a", "b")}
    assert read(tmp_path, "", "sft", [row]) == [Chat((user("a"), assistant("b")))]
    with pytest.raises(DataError, match="the field 'conversations'"):
        read(tmp_path, "", "sft", [row | {"conversations": speakers("c", "d")}])
    alpaca = {"instruction": "a", "input": "", "output": "b", "text": "### a ### b"}
    assert read(tmp_path, "", "text", [alpaca]) == [Text("### a ### b")]
    assert read(tmp_path, "", "sft", [alpaca]) == [Chat((user("a"), assistant("b")))]


@pytest.fixture
def hub(monkeypatch):
    """The arguments by which the hub was asked, one row of HH coming back."""
    calls = []

    def load(path, **options):
        calls.append((path, options))
        return datasets.Dataset.from_list([HH])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "_answers", lambda url: True)
    return calls


def test_what_is_asked_of_the_hub(hub):
    assert len(open_source("Anthropic/hh-rlhf", "preference")) == 1
    open_source("Anthropic/hh-rlhf", "preference", "eval")
    open_source("Anthropic/hh-rlhf/harmless-base@test", "prompt", split="train")
    open_source("HuggingFaceH4/ultrafeedback_binarized", "preference or sft", "eval")
    open_source("HuggingFaceH4/ultrafeedback_binarized", "sft")
    open_source("openai/summarize_from_feedback", "preference", "eval")
    open_source("owner/name/part", "preference")
    comparisons = {"revision": "refs/convert/parquet", "data_dir": "comparisons"}
    assert hub == [
        ("Anthropic/hh-rlhf", {"split": "train"}),
        ("Anthropic/hh-rlhf", {"split": "test"}),
        ("Anthropic/hh-rlhf", {"split": "test", "data_dir": "harmless-base"}),
        ("HuggingFaceH4/ultrafeedback_binarized", {"split": "test_prefs"}),
        ("HuggingFaceH4/ultrafeedback_binarized", {"split": "train_sft"}),
        ("openai/summarize_from_feedback", {"split": "validation"} | comparisons),
        ("owner/name", {"split": "train", "name": "part"}),
    ]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a.jsonl", Source("a.jsonl")),
        ("hh-rlhf:a.jsonl", Source("a.jsonl", "hh-rlhf")),
        ("hh-rlhf:someone/copy@test", Source("someone/copy", "hh-rlhf", "", "test")),
        ("oasst1/ja:a.jsonl", Source("a.jsonl", "oasst1", "ja")),
        ("OpenAssistant/oasst1/ja@validation", Source("OpenAssistant/oasst1", "oasst1", "ja", "validation")),
        ("owner/name", Source("owner/name")),
        ("owner/name/part@test", Source("owner/name", "", "part", "test")),
        ("folder/sub/a.jsonl", Source("folder/sub/a.jsonl")),
    ],
)
def test_source_names(source, parts):
    assert parse_source(source) == parts


def test_a_path_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hh-rlhf:a.jsonl", "a@b.jsonl"):
        write(tmp_path / name, [{"text": "x"}])
        assert parse_source(name) == Source(name)
        assert list(open_source(name, "text")) == [{"text": "x"}]
    with pytest.raises(DataError, match=r"a@b.jsonl@test: a file has no splits; leave out @test"):
        parse_source("a@b.jsonl@test")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hh:a.jsonl", r"hh:a.jsonl: no such file, and 'hh' is no recipe; .* hh-rlhf, "),
        (
            "Anthropic/hh-rlhf/red-team-attempts",
            r"'red-team-attempts' is not one of harmless-base, helpful-base",
        ),
        ("openbmb/UltraFeedback/part", r"there is no part 'part' of it to choose; leave it out"),
        ("hh-rlhf:nowhere.jsonl", r"nowhere.jsonl: no such file or folder"),
    ],
)
def test_sources_that_cannot_be(source, message):
    with pytest.raises(DataError, match=message):
        open_source(source, "preference")


def test_no_held_out_split(hub):
    with pytest.raises(
        DataError,
        match=r"dolly-15k: the dataset has no held-out split; .*data.eval_fraction, or name a split",
    ):
        open_source("databricks/databricks-dolly-15k", "sft", "eval")
    assert not hub


def test_every_recipe_serves_kinds_that_exist():
    for name, recipe in RECIPES.items():
        assert set(recipe.kinds) <= set(KINDS) and set(recipe.splits) <= set(recipe.kinds), name
        assert recipes.parse_source(f"{name}:x.jsonl").recipe == name
