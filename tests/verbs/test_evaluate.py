"""Each number of `jaxalign evaluate` against the same thing computed answer by answer."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.data import DataConfig, build_dataset
from jaxalign.data.encode import encode_prompt
from jaxalign.data.records import Prompt
from jaxalign.evaluation import win_rate
from jaxalign.models import hidden_states, init_params, unembedding
from jaxalign.training.saved_model import find_model
from jaxalign.verbs.label import Completion, model_scorer


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
    """The values behind each name: mean, and the ends of the interval."""
    return {
        found[1].strip(): re.findall(r"-?[\d.]+(?:e[-+]\d+)?|nan", found[2])
        for line in text.splitlines()
        if (found := re.match(r"(\S.{17}) +(\S+   (?:95 % interval \S+ to \S+)?)", line))
    }


def logprobs(seed: int, config, ids: np.ndarray) -> np.ndarray:
    """log p of each token after those before it, by the untrained model of a seed, from logits in float64: [T]."""
    params = init_params(jax.random.key(seed), config)
    positions = np.arange(len(ids), dtype=np.int32)[None]
    hidden, _ = hidden_states(params, config, ids[None], positions, np.ones_like(positions))
    logits = np.asarray(hidden[0], np.float64) @ np.asarray(unembedding(params, config), np.float64).T
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.append(np.nan, logp[np.arange(len(ids) - 1), ids[1:]])


@pytest.mark.slow
def test_means_over_the_answers(folder, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert evaluate(folder, out, f"--reference={folder}/other") == 0
    said = numbers(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 5
    assert all(type(row["finished"]) is bool for row in rows)
    rewards = [len(row["prompt"]) + len(row["completion"]) for row in rows]
    assert float(said["reward"][0]) == pytest.approx(np.mean(rewards), abs=1e-3)
    assert float(said["KL"][0]) > 0.01


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert float(said["reward"][0]) == pytest.approx(expected, rel=1e-3)
    assert evaluate(folder, tmp_path / "q.jsonl", f"--prompts={prompts}", "--reward=test_evaluate:hard") == 1
    assert f"no reward function (hard) returned a number for {prompts}:2, prompt" in capsys.readouterr().err


@pytest.mark.slow
def test_perplexity_of_one_answer(folder, tmp_path, capsys, monkeypatch):
    """The exponential of the mean loss over its tokens, from logits in float64."""
    from jaxalign.verbs import evaluate as verb

    kept = []
    sample = verb.sample_answers
    monkeypatch.setattr(verb, "sample_answers", lambda *a, **k: kept.append(sample(*a, **k)) or kept[-1])
    assert evaluate(folder, tmp_path / "o.jsonl", "--take=1", f"--base={folder}/other") == 0
    said = numbers(capsys.readouterr().out)
    answers, model = kept[0], find_model(str(folder / "model"), "--x")
    ids = answers.tokens[0][answers.segment_ids[0] > 0]
    prompt = encode_prompt(Prompt("who is the ox"), model.tokenizer()).ids
    np.testing.assert_array_equal(ids[: len(prompt)], prompt)
    logp = logprobs(2, model.config, ids)
    at = np.arange(len(prompt), len(ids))
    assert float(said["perplexity"][0]) == pytest.approx(np.exp(-logp[at].mean()), abs=0.01)
    assert float(said["length"][0]) == len(at)


def by_hand(folder, source: pathlib.Path, kind: str) -> list[tuple[float, int]]:
    """-log p of the supervised tokens of each sequence, and how many they are."""
    model = find_model(str(folder / "model"), "--x")
    config = DataConfig(eval=str(source), max_length=64, row_length=128, packing=False)
    dataset = build_dataset(config, model.tokenizer(), kind, "eval")
    found = []
    for item in dataset.rows.items:
        ids, mask = np.asarray(item.ids), np.asarray(item.mask) > 0
        found.append((-logprobs(0, model.config, ids)[mask].sum(), int(mask.sum())))
    return found


@pytest.mark.slow
def test_loss_and_perplexity_of_data(folder, tmp_path, capsys):
    source = tmp_path / "d.jsonl"
    rows = [{"prompt": "who is", "completion": f" the {name}"} for name in ("ox", "old red cat", "cat")]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "the red ox asks"}]))
    flags = [f"--model={folder}/model", f"--data={source}", "--max-length=128", f"--json={tmp_path}/n.json"]
    assert main(["evaluate", *flags]) == 0
    said = numbers(capsys.readouterr().out)
    nll, tokens = map(np.array, zip(*by_hand(folder, source, "sft"), strict=True))
    assert len(nll) == 4
    kept = json.loads((tmp_path / "n.json").read_text())
    assert kept["loss"][0] == pytest.approx(nll.sum() / tokens.sum(), rel=1e-5)
    np.testing.assert_allclose(kept["perplexity"], np.exp(kept["loss"]), rtol=1e-12)
    assert said["loss"] == [f"{x:.3f}" for x in kept["loss"][:1]] + said["loss"][1:]
    assert kept["loss"][1] < kept["loss"][0] < kept["loss"][2]


@pytest.mark.slow
def test_pairs_by_likelihood_and_by_a_reward_model(folder, tmp_path, capsys):
    source = tmp_path / "p.jsonl"
    names = ("ox", "red cat", "old old ox", "cat", "one", "red ox")
    pairs = [
        {"prompt": f"who is the {a}", "chosen": f" a {a}", "rejected": f" no {b} {b}"}
        for a, b in zip(names, names[::-1], strict=True)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert (
        main(
            [
                "evaluate",
                f"--model={folder}/model",
                f"--data={source}",
                "--max-length=128",
                f"--json={tmp_path}/n.json",
            ]
        )
        == 0
    )
    both = [tmp_path / "chosen.jsonl", tmp_path / "rejected.jsonl"]
    for path in both:
        rows = [{"prompt": row["prompt"], "completion": row[path.stem]} for row in pairs]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (chosen, n), (rejected, m) = (np.array(by_hand(folder, path, "sft")).T for path in both)
    kept = json.loads((tmp_path / "n.json").read_text())
    assert kept["loss"][0] == pytest.approx(chosen.sum() / n.sum(), rel=1e-5)
    assert kept["accuracy"][0] == pytest.approx(np.mean(chosen < rejected))
    assert kept["accuracy, a token"][0] == pytest.approx(np.mean(chosen / n < rejected / m))
    capsys.readouterr()

    scored = tmp_path / "scored.jsonl"
    completions = tmp_path / "c.jsonl"
    rows = [
        {"prompt": row["prompt"], "completion": row[side]} for row in pairs for side in ("chosen", "rejected")
    ]
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    label = ["label", f"--completions={completions}", f"--out={scored}", f"--reward-model={folder}/reward"]
    assert main(label) == 0
    capsys.readouterr()
    scores = [json.loads(line) for line in scored.read_text().splitlines()]
    right = [row["chosen"] == pair["chosen"] for row, pair in zip(scores, pairs, strict=True)]
    margins = [abs(row["chosen_score"] - row["rejected_score"]) for row in scores]
    assert (
        main(
            [
                "evaluate",
                f"--model={folder}/reward",
                f"--data={source}",
                "--max-length=128",
                f"--json={tmp_path}/n.json",
            ]
        )
        == 0
    )
    kept = json.loads((tmp_path / "n.json").read_text())
    assert kept["accuracy"][0] == pytest.approx(np.mean(right))
    signed = [margin if ok else -margin for margin, ok in zip(margins, right, strict=True)]
    assert kept["margin"][0] == pytest.approx(np.mean(signed), rel=1e-4)


@pytest.mark.slow
def test_win_rate_by_a_reward_model_against_another_model(folder, tmp_path, capsys):
    """The scores are those that `label` gives the answers; prompts may be as long as they like."""
    long = tmp_path / "long.jsonl"
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    rows.append({"prompt": "who is the " + "old red " * 60 + "ox"})
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {}
    for name in ("model", "other"):
        answers[name] = tmp_path / f"{name}.jsonl"
        flags = [f"--model={folder}/{name}", f"--prompts={long}", f"--out={answers[name]}"]
        flags += [
            f"--reward-model={folder}/reward",
            "--max-length=512",
            "--max-new-tokens=6",
            f"--json={tmp_path}/n.json",
        ]
        more = [f"--against={folder}/other"] if name == "model" else []
        assert main(["evaluate", *flags, *more]) == 0
        if more:
            kept = json.loads((tmp_path / "n.json").read_text())
    capsys.readouterr()
    texts = {
        name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in answers.items()
    }
    assert len(texts["model"]) == len(rows)
    scores = {}
    for name, said in texts.items():
        scorer = model_scorer(f"{folder}/reward", max_length=512, batch_size=8)
        scores[name] = np.array(scorer([[Completion(row, "x")] for row in said]))[:, 0]
    assert kept["score"][0] == pytest.approx(scores["model"].mean(), rel=1e-4)
    wins = np.mean(0.5 + 0.5 * np.sign(scores["model"] - scores["other"]))
    assert kept["win rate"] == pytest.approx(win_rate(scores["model"], scores["other"]), rel=1e-6)
    assert kept["win rate"][0] == pytest.approx(wins)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --data=SRC, to measure its likelihood, or --prompts=SRC, to answer them"),
        (["--data=x", "--reward=a:b"], "--reward is about answers: give --prompts=SRC, too"),
        (["--prompts=x", "--against=y"], "--against needs a judge"),
    ],
)
def test_flags_that_do_not_fit_each_other(folder, capsys, flags, message):
    assert main(["evaluate", f"--model={folder}/model", *flags]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_reward_model_writes_nothing(folder, capsys):
    assert main(["evaluate", f"--model={folder}/reward", f"--prompts={folder}/prompts.jsonl"]) == 1
    assert "is a reward model, which writes nothing: give it --data, pairs" in capsys.readouterr().err


@pytest.mark.slow
def test_refusals(folder, tmp_path, capsys):
    assert evaluate(folder, tmp_path / "o", f"--reference={folder}/reward") == 1
    assert "is a reward model; name a language model" in capsys.readouterr().err
    assert evaluate(folder, tmp_path / "o", "--temperature=0", f"--reference={folder}/other") == 1
    assert "--temperature=0: the KL of a distribution that is never sampled" in capsys.readouterr().err
