"""From a file of prompts to completions to preference pairs, and a conversation in the terminal."""

import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxalign.cli import main
from jaxalign.data import DataConfig, build_dataset, load_tokenizer
from jaxalign.data.encode import encode_completion, encode_prompt
from jaxalign.data.records import Message, Prompt, PromptCompletion
from jaxalign.models import init_params
from jaxalign.models.scoring import segment_rewards
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.sampling.stream import stream
from jaxalign.streams import shown
from jaxalign.verbs.chat import ChatRequest, chat


def generate(folder, out, *more) -> int:
    flags = [f"--model={folder}/model", f"--prompts={folder}/prompts.jsonl", f"--out={out}"]
    return main(["generate", *flags, "--n=3", "--max-new-tokens=6", "--batch-size=8", *more])


def ended(path, out):
    """The completions of a file as if each had ended by itself."""
    out.write_text("".join(json.dumps(row | {"finished": True}) + "\n" for row in read(path)))
    return out


def read(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def completions(folder):
    out = folder / "completions.jsonl"
    assert generate(folder, out) == 0
    return out


@pytest.fixture(scope="module")
def whole(folder, completions):
    return ended(completions, folder / "whole.jsonl")


@pytest.mark.slow
def test_every_prompt_gets_its_completions_as_rows_to_train_on(folder, completions):
    rows = read(completions)
    assert [(r["row"], r["sample"]) for r in rows] == [(i, j) for i in range(5) for j in range(3)]
    assert [r["prompt"] for r in rows] == [
        p["prompt"] for p in read(folder / "prompts.jsonl") for _ in range(3)
    ]
    assert len({r["completion"] for r in rows}) > 10
    tokenizer = load_tokenizer(folder / "model")
    data = DataConfig(train=str(ended(completions, folder / "ended.jsonl")), max_length=64, row_length=64)
    report = build_dataset(data, tokenizer, "sft").report
    empty = sum(not r["completion"].strip() for r in rows)
    assert report.kept == 15 - empty and report.dropped.total() == empty


@pytest.mark.slow
def test_a_stop_string_ends_a_completion_and_is_cut_off(folder, completions, tmp_path):
    free = read(completions)
    letters = {letter for row in free for letter in row["completion"][1:]}
    stop = max(letters, key=lambda x: sum(x in row["completion"] for row in free))
    assert generate(folder, tmp_path / "cut.jsonl", f"--stop={stop}") == 0
    cut = read(tmp_path / "cut.jsonl")
    for row, other in zip(cut, free, strict=True):
        assert row["completion"] == other["completion"].split(stop)[0]
        assert row["finished"] == (stop in other["completion"] or other["finished"])
    assert any(stop in row["completion"] for row in free) and any(not row["finished"] for row in free)


@pytest.mark.slow
def test_a_kill_at_any_byte_changes_nothing(folder, completions, tmp_path):
    whole = completions.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        out = tmp_path / f"{cut}.jsonl"
        out.write_bytes(whole[:cut])
        beside = completions.with_name(completions.name + ".request.json")
        out.with_name(out.name + ".request.json").write_bytes(beside.read_bytes())
        assert generate(folder, out) == 0
        assert out.read_bytes() == whole


def test_another_request_does_not_go_on_in_the_same_file(folder, completions, tmp_path, capsys):
    for more, what in (("--seed=1", "seed"), ("--dtype=bfloat16", "dtype")):
        assert generate(folder, completions, more) == 1
        assert f"another {what}; name another file" in capsys.readouterr().err
    shutil.copy(folder / "prompts.jsonl", tmp_path)
    shutil.copytree(folder / "model", tmp_path / "model")
    assert generate(tmp_path, tmp_path / "out.jsonl") == 0
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(folder / "other", tmp_path / "model")  # as a run leaves it that went on
    assert generate(tmp_path, tmp_path / "out.jsonl") == 1
    assert "another weights; name another file" in capsys.readouterr().err


def test_a_reward_model_cannot_write(folder, tmp_path, capsys):
    assert generate(folder, tmp_path / "o.jsonl", f"--model={folder}/reward") == 1
    assert "is a reward model; name a language model" in capsys.readouterr().err


def length(prompt, completion) -> float:
    return float(len(completion))


def constant(prompt, completion) -> float:
    return 1.0


def not_a_number(prompt, completion) -> float:
    return float("nan")


async def right(completions, answer, **fields) -> list[float]:
    return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]


def label(completions, out, *more) -> int:
    return main(["label", f"--completions={completions}", f"--out={out}", *more])


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))


LENGTH = "--reward=test_generate_label:length"


def test_best_and_worst_by_a_reward_function(whole, tmp_path):
    assert label(whole, tmp_path / "pairs.jsonl", LENGTH) == 0
    rows = read(tmp_path / "pairs.jsonl")
    by_prompt = {}
    for row in read(whole):
        if row["completion"].strip():
            by_prompt.setdefault(row["prompt"], set()).add(row["completion"])
    wanted = [texts for texts in by_prompt.values() if len({len(t) for t in texts}) > 1]
    assert len(rows) == len(wanted) > 2
    for row in rows:
        lengths = [len(text) for text in by_prompt[row["prompt"]]]
        assert (len(row["chosen"]), len(row["rejected"])) == (max(lengths), min(lengths))
        assert (row["chosen_score"], row["rejected_score"]) == (max(lengths), min(lengths))


def test_an_async_function_of_batches_gets_the_fields_of_the_rows(tmp_path, capsys):
    rows = [
        {"prompt": str(i), "completion": text, "answer": str(i)} for i in range(20) for text in ("3", "7")
    ]
    completions = tmp_path / "c.jsonl"
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--reward=test_generate_label:right", "--batch-size=7")
    assert label(completions, tmp_path / "p.jsonl", *flags) == 0
    made = [(r["prompt"], r["chosen"], r["rejected"]) for r in read(tmp_path / "p.jsonl")]
    assert made == [("3", "3", "7"), ("7", "7", "3")]
    del rows[30]["answer"]
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert label(completions, tmp_path / "q.jsonl", *flags) == 1
    assert f"right has a parameter answer, and {completions}:31 has no such field" in capsys.readouterr().err


def test_all_pairs_and_rankings_hold_the_same_comparisons(whole, tmp_path):
    assert label(whole, tmp_path / "all.jsonl", LENGTH, "--pairs=all") == 0
    assert label(whole, tmp_path / "ranking.jsonl", LENGTH, "--pairs=ranking") == 0
    pairs = {(r["prompt"], r["chosen"], r["rejected"]) for r in read(tmp_path / "all.jsonl")}
    implied = set()
    for row in read(tmp_path / "ranking.jsonl"):
        scored = list(zip(row["responses"], row["scores"], strict=True))
        implied |= {(row["prompt"], a, b) for a, x in scored for b, y in scored if x > y}
    assert pairs == implied and len(pairs) > 5


def test_completions_that_were_cut_are_left_out(tmp_path, capsys):
    rows = [("a", True), ("aaa", True), ("aaaaa", False)]
    completions = tmp_path / "c.jsonl"
    completions.write_text(
        "".join(json.dumps({"prompt": "p", "completion": t, "finished": f}) + "\n" for t, f in rows)
    )
    assert label(completions, tmp_path / "p.jsonl", LENGTH) == 0
    (row,) = read(tmp_path / "p.jsonl")
    assert (row["chosen"], row["rejected"]) == ("aaa", "a")
    assert (
        "0 empty completions and 1 completion without an end left out; mean score 2.0000"
        in capsys.readouterr().out
    )


def test_noise_flips_as_often_as_bradley_terry_says(tmp_path):
    completions = tmp_path / "c.jsonl"
    rows = [{"prompt": str(i), "completion": text} for i in range(4000) for text in ("aa", "aaa")]
    completions.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert label(completions, tmp_path / "p.jsonl", LENGTH, "--noise=2") == 0
    right = np.mean([r["chosen"] == "aaa" for r in read(tmp_path / "p.jsonl")])
    expected = 1 / (1 + np.exp(-1 / 2))
    assert abs(right - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)


@pytest.mark.slow
def test_a_reward_model_scores_each_completion_as_it_does_alone(folder, whole, tmp_path):
    full = tmp_path / "full.jsonl"
    rows = [r for r in read(whole) if r["completion"].strip()]
    full.write_text("".join(json.dumps(r) + "\n" for r in rows))
    flags = (f"--reward-model={folder}/reward", "--max-length=64", "--pairs=ranking")
    assert label(full, tmp_path / "r.jsonl", *flags) == 0
    from jaxalign.training.saved_model import find_model

    model = find_model(str(folder / "reward"), "--x")
    params = init_params(jax.random.key(True), model.config, scalar=True)
    checked = 0
    for row in read(tmp_path / "r.jsonl"):
        for text, score in zip(row["responses"], row["scores"], strict=True):
            ids = encode_completion(PromptCompletion(row["prompt"], text), model.tokenizer()).ids[None]
            positions = np.arange(ids.shape[1], dtype=np.int32)[None]
            alone = segment_rewards(params, model.config, ids, positions, np.ones_like(ids), 1)
            assert score == pytest.approx(float(alone[0, 0]), abs=1e-5)
            checked += 1
    assert checked > 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--reward=test_generate_label:constant",), "no prompt has two different completions"),
        (("--reward=test_generate_label:not_a_number",), "returned nan"),
        ((LENGTH, "--pairs=best"), "--pairs='best' is not one of best-worst, all, ranking"),
        ((LENGTH, "--noise=-1"), "--noise=-1.0 must be 0 or more"),
        (("--reward-model={folder}/model",), "is a language model; name a run of the reward stage"),
        (("--reward-model={folder}/reward", "--max-length=4"), "needs"),
    ],
)
def test_label_refuses(folder, whole, tmp_path, flags, message, capsys):
    given = tuple(flag.format(folder=folder) for flag in flags)
    assert label(whole, tmp_path / "out.jsonl", *given) == (2 if LENGTH in flags else 1)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "c.jsonl:1: not valid JSON"),
        ('{"prompt": "p"}\n', "c.jsonl:1: missing completion; expected prompt, completion"),
        (
            '{"text": "p"}\n',
            "c.jsonl:1: is no completion of a prompt; write the fields prompt and completion",
        ),
        ("", "c.jsonl: holds no records"),
    ],
)
def test_label_names_the_row(tmp_path, text, message, capsys):
    (tmp_path / "c.jsonl").write_text(text)
    assert label(tmp_path / "c.jsonl", tmp_path / "out.jsonl", LENGTH) == 1
    assert message in capsys.readouterr().err


def talk(folder, text, models=("model",)) -> str:
    out = io.StringIO()
    model, *other = (str(folder / name) for name in models)
    request = ChatRequest(model=model, other=other[0] if other else "", max_new_tokens=5, seed=3)
    chat(request, console=Console(file=out, width=200), lines=io.StringIO(text))
    return out.getvalue()


def expected_reply(folder, name, messages, key) -> str:
    from jaxalign.training.saved_model import find_model

    model = find_model(str(folder / name), "--x")
    tokenizer = model.tokenizer()
    ids = encode_prompt(Prompt(tuple(messages)), tokenizer).ids.tolist()
    params = init_params(jax.random.key(0), model.config)
    sampling = SamplingConfig(max_new_tokens=5)
    out = list(stream(params, model.config, ids, key, sampling=sampling, stop_ids=tokenizer.eos_ids))
    return tokenizer.decode(t for t in out if t not in tokenizer.eos_ids)


@pytest.mark.slow
def test_chat_answers_each_turn_in_the_light_of_those_before(folder):
    key = jax.random.key(3)
    keys = [jax.random.split(jax.random.fold_in(key, turn), 1)[0] for turn in range(2)]
    first = expected_reply(folder, "model", [Message("user", "who is it")], keys[0])
    turns = [Message("user", "who is it"), Message("assistant", first), Message("user", "the ox")]
    second = expected_reply(folder, "model", turns, keys[1])
    said = talk(folder, "who is it\nthe ox\n/quit\nnever read\n")
    assert f"who is it\n{shown(first)}\nyou: the ox\n{shown(second)}\nyou: /quit" in said
    assert "never" not in said


def test_chat_forgets_on_reset_and_shows_two_models_side_by_side(folder):
    again = talk(folder, "who is it\n/reset\n/nonsense\n")
    assert "/nonsense is no command" in again
    both = talk(folder, "who is it\n", models=("model", "other"))
    assert str(folder / "model")[-20:] in both and str(folder / "other")[-20:] in both


def test_rows_left_out_are_written_before_the_file_that_ends_the_command(whole, tmp_path, monkeypatch):
    """With the file itself there, the same command is refused."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(whole.read_text() + '{"prompt": 5}\n')

    def killed(path, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jaxalign.verbs.label.write_whole", killed)
        assert label(rows, tmp_path / "pairs.jsonl", LENGTH, "--invalid=drop") == 130
    left_out = (tmp_path / "pairs.jsonl.dropped.jsonl").read_bytes()
    assert label(rows, tmp_path / "pairs.jsonl", LENGTH, "--invalid=drop") == 0
    assert (tmp_path / "pairs.jsonl.dropped.jsonl").read_bytes() == left_out and b'{"prompt": 5}' in left_out
