"""Each number of `jaxalign evaluate` against the same thing computed answer by answer."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.data.encode import encode_prompt
from jaxalign.data.records import Prompt
from jaxalign.models import hidden_states, init_params, unembedding
from jaxalign.training.saved_model import find_model


def length(prompt, completion) -> float:
    return float(len(completion) + len(prompt))


def failing(prompt, completion) -> float:
    return 1 / 0


def tokens(prompts, completion_ids, level, **fields) -> list[float]:
    assert fields["completions"]
    return [1000 * a + len(ids) for a, ids in zip(level, completion_ids, strict=True)]


async def hard(level, completions):
    return [None if a else 1.0 for a in level]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))


def evaluate(folder, out, *more) -> int:
    flags = [f"--model={folder}/model", f"--prompts={folder}/prompts.jsonl", f"--out={out}"]
    flags += ["--reward=test_evaluate:length", "--max-new-tokens=6", "--prompt-slots=32", *more]
    return main(["evaluate", *flags])


def numbers(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and line[0] != " "}


@pytest.mark.slow
def test_means_over_the_answers(folder, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert evaluate(folder, out, f"--reference={folder}/other") == 0
    said = numbers(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert said["5"] == ["prompts"] and len(rows) == 5
    assert all(type(row["finished"]) is bool for row in rows)
    rewards = [len(row["prompt"]) + len(row["completion"]) for row in rows]
    assert float(said["reward"][0]) == pytest.approx(np.mean(rewards), abs=1e-3)
    assert float(said["KL"][0]) > 0.01


def test_a_model_is_no_distance_from_itself_and_likes_its_own_answers_best(folder, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert evaluate(folder, out, f"--reference={folder}/model") == 0
    own = numbers(capsys.readouterr().out)
    assert abs(float(own["KL"][0])) < 1e-3
    assert evaluate(folder, out, f"--base={folder}/other") == 0
    other = numbers(capsys.readouterr().out)
    assert other["reward"] == own["reward"] and "KL" not in other
    assert float(other["perplexity"][0]) > float(own["perplexity"][0]) > 1
    assert evaluate(folder, out) == 0
    alone = numbers(capsys.readouterr().out)
    assert alone["reward"] == own["reward"] and not {"KL", "perplexity"} & set(alone)


def test_answers_outlive_a_reward_function_that_fails(folder, tmp_path, capsys):
    kept, failed = tmp_path / "kept.jsonl", tmp_path / "failed.jsonl"
    assert evaluate(folder, kept) == 0
    assert evaluate(folder, failed, "--reward=test_evaluate:failing") == 1
    assert "failing raised ZeroDivisionError" in capsys.readouterr().err
    assert failed.read_text() == kept.read_text()


def test_a_function_of_batches_gets_the_fields_of_the_rows_and_the_tokens(folder, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    prompts.write_text("".join(json.dumps(row | {"level": i}) + "\n" for i, row in enumerate(rows)))
    assert (
        evaluate(folder, tmp_path / "o.jsonl", f"--prompts={prompts}", "--reward=test_evaluate:tokens") == 0
    )
    said = numbers(capsys.readouterr().out)
    expected = 1000 * np.mean(range(len(rows))) + float(said["length"][0])
    assert float(said["reward"][0]) == pytest.approx(expected, abs=2e-3)
    assert evaluate(folder, tmp_path / "q.jsonl", f"--prompts={prompts}", "--reward=test_evaluate:hard") == 1
    assert f"no reward function (hard) returned a number for {prompts}:2, prompt" in capsys.readouterr().err


def test_perplexity_of_one_answer(folder, tmp_path, capsys, monkeypatch):
    """The exponential of the mean loss over its tokens, from logits in float64."""
    from jaxalign.evaluation import generation

    kept = []
    answer = generation.answer
    monkeypatch.setattr(generation, "answer", lambda *a, **k: kept.append(answer(*a, **k)) or kept[-1])
    assert evaluate(folder, tmp_path / "o.jsonl", "--take=1", f"--base={folder}/other") == 0
    said = numbers(capsys.readouterr().out)
    answers, model = kept[0], find_model(str(folder / "model"), "--x")
    ids = answers.tokens[0][answers.segment_ids[0] > 0]
    prompt = encode_prompt(Prompt("who is the ox"), model.tokenizer()).ids
    np.testing.assert_array_equal(ids[: len(prompt)], prompt)
    params = init_params(jax.random.key(2), model.config)
    positions = np.arange(len(ids), dtype=np.int32)[None]
    hidden, _ = hidden_states(params, model.config, ids[None], positions, np.ones_like(positions))
    logits = np.asarray(hidden[0], np.float64) @ np.asarray(unembedding(params, model.config), np.float64).T
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = np.arange(len(prompt), len(ids))
    assert float(said["perplexity"][0]) == pytest.approx(np.exp(-logp[at - 1, ids[at]].mean()), abs=0.01)
    assert float(said["length"][0]) == len(at)


def test_refusals(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path / "o", f"--reference={folder}/reward") == 1
    assert "is a reward model; name a language model" in capsys.readouterr().err
    assert evaluate(folder, tmp_path / "o", "--temperature=0", f"--reference={folder}/other") == 1
    assert "--temperature=0: the KL of a distribution that is never sampled" in capsys.readouterr().err
