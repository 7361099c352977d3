"""What `jaxalign audit` counts is what the data holds, and each problem ends it with a 1 and a way out."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import sentencepiece
from ml_collections import ConfigDict
from rich.console import Console

from jaxalign import parallel
from jaxalign.cli import main
from jaxalign.data import DataConfig, Records, dataset_from_records, load_tokenizer, train_sentencepiece
from jaxalign.data.items import Item
from jaxalign.models import ModelConfig, init_params
from jaxalign.stages import default_config, parse_config
from jaxalign.training import saved_model
from jaxalign.training.open import describe, open_run
from jaxalign.verbs.audit import audit, check_bos, check_contexts, check_eos, measure, unknown_id
from jaxalign.verbs.audit_page import histogram_lines, pieces, print_audit, sample_lines, show_tokens

WORDS = "the quick brown fox jumps over a lazy dog and asks who wrote this reply to that question".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    train_sentencepiece([" ".join(WORDS) + ".\n"] * 50, folder / "t.model", 340)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "t.model")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = {
    "pretrain": [{"text": f"the fox {n}"} for n in range(8)],
    "sft": [chat(f"who {n}?", f"the fox {n}") for n in range(8)],
    "dpo": [{"prompt": f"who {n}?", "chosen": f" fox {n}", "rejected": " dog"} for n in range(8)],
    "reward": [
        {"prompt": f"who {n}?", "responses": [" a", " b", " c"], "scores": [1, 2, 3]} for n in range(8)
    ],
    "orpo": [{"prompt": f"who {n}?", "chosen": f" fox {n}", "rejected": " dog"} for n in range(8)],
    "ppo": [{"prompt": f"who {n}?"} for n in range(8)],
}


def make_config(folder, stage, rows, **changes) -> ConfigDict:
    config = default_config(stage)
    config.data.train = write(folder / "train.jsonl", rows)
    config.data.tokenizer = str(folder / "t.model")
    config.data.max_length, config.data.row_length = 32, 96
    if stage == "ppo":
        config.ppo.reward = "math:hypot"
    for key, value in changes.items():
        config.data[key] = value
    return config


def audited(folder, stage, rows, **changes):
    return audit(parse_config(make_config(folder, stage, rows, **changes)))


@pytest.mark.parametrize("stage", ROWS)
def test_every_stage(folder, tokenizer, stage):
    found = audited(folder, stage, ROWS[stage])
    numbers, train = found.numbers, found.numbers["train"]
    sides = {"dpo": 2, "orpo": 2, "reward": 3}.get(stage, 1)
    assert found.problems == [] and found.notes == []
    assert train["records"] == {"read": 8, "kept": 8, "dropped": {}, "truncated": 0, "split": 0}
    assert train["sequences"] == sum(train["lengths"]["counts"]) == 8 * sides
    assert train["bos"] == {"id": tokenizer.bos_id, "missing": 0, "doubled": 0}
    assert train["eos"]["ended"] == (0 if stage == "ppo" else 8 * sides)
    assert numbers["contexts"] == {
        "checked": 0 if stage in ("pretrain", "ppo") else 8,
        "different": 0,
        "plain": 0,
    }
    if stage == "sft":  # 8 x (<bos> <|user|> question <|end|> <|assistant|>, then answer <|end|>)
        answers = sum(len(tokenizer.encode(f"the fox {n}")) + 1 for n in range(8))
        questions = sum(len(tokenizer.encode(f"who {n}?")) + 4 for n in range(8))
        assert (train["tokens"], train["supervised"]) == (questions + answers, answers)
        assert train["supervised_share"] == answers / (questions + answers)


def test_fingerprint_is_that_of_the_checkpoint(folder):
    config = parse_config(make_config(folder, "pretrain", ROWS["pretrain"], eval_fraction=0.4))
    config = dataclasses.replace(config, batch_size=8)
    with parallel.use_mesh(parallel.make_mesh(config.mesh, jax.devices()[:1])):
        meta = describe(open_run(config, folder / "run"))
    assert audit(config).numbers["train"]["fingerprint"] == meta["data_fingerprint"]


def test_duplicates_and_overlap(folder):
    rows = [chat("who?", "fox"), chat("who?", "fox"), chat("who?", "dog"), chat("that?", "dog")]
    held_out = write(folder / "eval.jsonl", [chat("that?", "fox")])
    found = audited(folder, "sft", rows)
    assert found.numbers["train"]["duplicates"] == {"sequences": 1, "prompts": 2}
    found = audited(folder, "sft", rows, eval=held_out)
    assert found.numbers["overlap"] == {"rule": "drop", "train_records": 1}
    assert found.numbers["train"]["records"]["dropped"] == {"also in eval": 1} and found.problems == []
    assert "1 train record also in eval, dropped from train" in found.notes
    found = audited(folder, "sft", rows, eval=held_out, overlap="allow")
    assert found.numbers["overlap"]["train_records"] == 1 and found.problems == []
    found = audited(folder, "sft", rows, eval=held_out, overlap="error")
    assert found.problems == [
        "train: 1 record also in eval; take them out, or set config.data.overlap='drop'"
    ]


def test_text_that_passes_a_chat_template_by_is_told(folder):
    template = folder / "plain.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    rows = [
        *ROWS["dpo"][:3],
        *(
            {
                "prompt": [{"role": "user", "content": f"hm {n}"}],
                "chosen": [{"role": "assistant", "content": f"fox {n}"}],
                "rejected": [{"role": "assistant", "content": "dog"}],
            }
            for n in range(2)
        ),
    ]
    found = audit(parse_config(make_config(folder, "dpo", rows, chat_template=str(template))))
    assert [note.split(",")[0] for note in found.notes] == ["3 prompts of plain text in the first 1"]
    assert found.numbers["contexts"] == {"checked": 5, "different": 0, "plain": 3}


def test_fields_that_are_not_read_are_listed_for_each_source(folder, capsys):
    rows = [{"ask": f"who {n}?", "good": "fox", "id": n, "mood": "glad" if n else None} for n in range(3)]
    held_out = write(folder / "eval.jsonl", [{"ask": "that?", "good": "dog", "category": "x"}])
    found = audited(folder, "sft", rows, eval=held_out, fields="question=ask,completion=good")
    assert found.numbers["fields"] == "question=ask,completion=good"
    assert found.numbers["train"]["unread"] == {str(folder / "train.jsonl"): {"mood": 2}}
    assert found.numbers["eval"]["unread"] == {held_out: {"category": 1}}
    print_audit(found, Console(width=120), 0)
    page = capsys.readouterr().out
    assert f"not read, train, {folder / 'train.jsonl'}: mood (2)" in page
    assert f"not read, eval, {held_out}: category (1)" in page and "question=ask,completion=good" in page
    prompts = audited(folder, "ppo", [{"question": "who?", "answer": "fox"}])
    print_audit(prompts, Console(width=120), 0)
    assert f"no part of the prompts, train, {folder / 'train.jsonl'}: answer (1)" in capsys.readouterr().out


def test_cut_completions_are_told_from_endless_ones(folder):
    rows = [chat("who?", "the fox " * 30), chat("who?", "the fox")]
    found = audited(folder, "sft", rows, overlong="truncate")
    assert found.numbers["train"]["eos"] == {"ended": 1, "truncated": 1, "split": 0, "missing": 0}
    assert found.problems == [] and found.notes == ["1 completion cut at config.data.max_length, without EOS"]
    found = audited(folder, "pretrain", [{"text": "the fox " * 30}, {"text": "the dog"}])
    eos = found.numbers["train"]["eos"]
    assert eos["ended"] == 2 and eos["split"] > 0 and eos["missing"] == eos["truncated"] == 0


def example(*ids, mask=None, row=0):
    return Item(np.int32(ids), np.float32(mask or [0] + [1] * (len(ids) - 1)), row)


def test_bos_by_hand():
    good, without, twice = example(1, 5, 2), example(5, 6, 2), example(1, 1, 5, 2)
    within, later = example(1, 5, 1, 2), example(6, 5, 2)
    records = [[good], [without], [twice], [within], [good, later], [good, good]]
    assert check_bos(records, 1, (2,)) == {"id": 1, "missing": 1, "doubled": 3}
    assert check_bos(records, None, (2,)) == {"id": None, "missing": 0, "doubled": 0}
    same = [[example(2, 5, 2)], [example(2, 2, 5)], [example(2, 5, 2, 6, 2)]]  # one token for both
    assert check_bos(same, 2, (2,)) == {"id": 2, "missing": 0, "doubled": 1}


def test_eos_by_hand(tokenizer):
    dataset = dataset_from_records([Records([{"text": "a"}], "m")], DataConfig(), tokenizer, "text")
    turns = example(1, 5, 2, 6, 7, 9, mask=[0, 1, 1, 0, 1, 1])  # two spans, the second one endless
    records = [[turns], [example(1, 5, 9)], [example(1, 5), example(5, 2)]]
    ends = check_eos(dataset, records, (2, 9), 3, 0)
    assert ends == {"ended": 4, "truncated": 0, "split": 1, "missing": 0}
    ends = check_eos(dataset, records, (2,), 3, 1)
    assert ends == {"ended": 2, "truncated": 1, "split": 1, "missing": 1}


def test_completions_judged_one_by_one(tokenizer):
    """A mismatched sequence is another record's completion once more: counted nowhere, shown by name."""
    long, short = " fox" * 12, " dog"
    rows = [
        {"prompt": "who asks the quick brown fox?", "completion": short, "label": True},
        {"prompt": "who?", "completion": long, "label": False},
        {"prompt": "who?", "completion": long, "label": True},
        {"prompt": "why?", "chosen": short, "rejected": long},
    ]
    longest = max(len(tokenizer.encode(row["prompt"] + long)) for row in rows[1:]) + 2
    data = DataConfig(max_length=longest, row_length=2 * longest)
    dataset = dataset_from_records([Records(rows, "m")], data, tokenizer, "unpaired")
    lent = [item.examples[1] for item in dataset.rows.items]
    assert max(len(example.ids) for example in lent) == longest and lent[0].ids[-1] not in tokenizer.eos_ids
    found = measure(dataset, "unpaired", tokenizer, longest)
    assert (found["records"]["kept"], found["sequences"], found["records"]["truncated"]) == (4, 5, 0)
    assert found["eos"] == {"ended": 5, "truncated": 0, "split": 0, "missing": 0}
    assert (found["bos"]["missing"], found["bos"]["doubled"]) == (0, 0)
    assert found["duplicates"] == {"sequences": 1, "prompts": 1}
    own = [item.own[0] for item in dataset.rows.items]
    assert found["tokens"] == sum(len(example.ids) for example in own) == found["lengths"]["mean"] * 5
    assert check_contexts(dataset, "unpaired", tokenizer, None) == {"checked": 4, "different": 0, "plain": 0}
    shown = [line.plain.split(" (")[0] for line in sample_lines(dataset, tokenizer, 5)]
    assert shown[1:3] == ["desirable", "mismatched"] and shown[4:6] == ["undesirable", "mismatched"]
    cut = dataclasses.replace(data, max_length=longest - 2, overlong="truncate")
    dataset = dataset_from_records([Records(rows, "m")], cut, tokenizer, "unpaired")
    found = measure(dataset, "unpaired", tokenizer, longest - 2)
    assert found["eos"] == {"ended": 2, "truncated": 3, "split": 0, "missing": 0}
    pairs = dataset_from_records([Records(rows[3:] * 2, "m")], cut, tokenizer, "unpaired")
    assert measure(pairs, "unpaired", tokenizer, longest - 2)["eos"]["truncated"] == 2


def test_histogram():
    lengths = {"counts": [4, 0, 1], "edges": [1, 11, 21, 31]}
    assert [line.split() for line in histogram_lines(lengths)] == [
        ["1", "to", "10", "4", "█" * 40],
        ["11", "to", "20", "0"],
        ["21", "to", "30", "1", "█" * 10],
    ]


def test_tokens_join_to_the_text(tokenizer):
    text = "who asks\n\tあ fox"
    shown = pieces([1, *tokenizer.encode(text), 2], tokenizer)
    assert (shown[0], shown[-1]) == ("<bos>", "<eos>") and shown.count("…") == 2  # あ is 3 bytes
    assert "".join(piece for piece in shown[1:-1] if piece != "…") == "who·asks↵⇥あ·fox"
    ids = [1, *tokenizer.encode("who"), *tokenizer.encode(" fox"), 2]
    mask = [0] * (len(ids) - 2) + [1, 1]
    line = show_tokens(Item(np.int32(ids), np.float32(mask)), tokenizer).plain
    assert line.startswith("<bos>|") and line.endswith("|<eos>⟧") and line.count("⟦") == 1


def without_bytes(folder):
    model = folder / "plain.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 50),
        model_prefix=str(folder / "plain"),
        vocab_size=60,
        model_type="bpe",
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model


def test_unknown_tokens(folder, tokenizer):
    assert unknown_id(tokenizer) is None
    plain = load_tokenizer(without_bytes(folder))
    assert unknown_id(plain) == plain.encode("あ")[-1] == 0
    rows = [{"text": "the fox"}, {"text": "あ"}]
    found = audited(folder, "pretrain", rows, tokenizer=str(folder / "plain.model"))
    total = len(plain.encode("the fox")) + len(plain.encode("あ")) + 4
    assert found.numbers["train"]["unknown"] == {"tokens": 1, "share": 1 / total}
    assert len(found.problems) == 1 and re.match(
        r"train: \d+\.\d% of the tokens are unknown to the tokenizer; take one", found.problems[0]
    )


CONFIG_FILE = """
from jaxalign.stages import default_config

def get_config(folder):
    config = default_config("sft")
    config.data.train, config.data.tokenizer = f"{folder}/train.jsonl", f"{folder}/t.model"
    config.data.max_length, config.data.row_length = 32, 64
    return config
"""


def run_verb(folder, rows, *flags):
    write(folder / "train.jsonl", rows)
    (folder / "config.py").write_text(CONFIG_FILE)
    return main(["audit", f"--config={folder / 'config.py'}:{folder}", *flags])


def test_verb(folder, capsys):
    assert run_verb(folder, ROWS["sft"], "--show=2", f"--json={folder / 'out.json'}") == 0
    out = capsys.readouterr().out
    assert out.count(f"{folder / 'train.jsonl'}:") == 2 and "no problem found" in out
    assert out.count("⟧") == out.count("⟦") == 3  # the legend and two sequences
    assert f"{folder / 'train.jsonl'}:8" in out
    numbers = json.loads((folder / "out.json").read_text())
    assert numbers["problems"] == [] and numbers["train"]["records"]["kept"] == 8


def test_verb_ends_with_1_on_a_problem(folder, capsys):
    rows = [chat("who?", "the fox " * 30)] * 5 + ROWS["sft"][:4]
    assert run_verb(folder, rows, "--config.data.seed=3") == 1
    out = capsys.readouterr().out
    assert (
        "PROBLEM: train: 5 of 9 records dropped, most of them as 'too long'; raise config.data.max_len" in out
    )
    assert run_verb(folder, ROWS["sft"], "--config.data.eval_fracton=0.1") == 2
    assert "did you mean --config.data.eval_fraction=0.1?" in capsys.readouterr().err


@pytest.mark.slow
def test_no_weights_are_read(folder, tokenizer, monkeypatch):
    model = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, embed_dim=8, mlp_dim=8, max_length=32)
    with parallel.use_mesh(parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])):
        params = init_params(jax.random.key(0), model)
        saved_model.save_model(folder / "model", params, model, tokenizer, scalar=False, meta={})
    monkeypatch.setattr(saved_model, "load_params", lambda *args, **kwargs: pytest.fail("weights were read"))
    config = make_config(folder, "sft", ROWS["sft"], tokenizer="")
    config.model.init_from = str(folder)
    found = audit(parse_config(config))
    assert found.problems == [] and found.numbers["tokenizer"] == str(folder / "model")


def test_colour_on_a_terminal(folder, tokenizer, capsys):
    print_audit(audited(folder, "sft", ROWS["sft"]), Console(force_terminal=True, width=120), 1)
    assert "\x1b[1;4;32m" in capsys.readouterr().out  # bold, underlined, green: supervised
