"""Each number of `jaxalign evaluate` against the same thing computed answer by answer."""

import dataclasses
import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from jaxalign import parallel
from jaxalign.cli import main
from jaxalign.data import DataConfig, build_dataset, load_tokenizer
from jaxalign.data.encode import encode_completion, encode_prompt
from jaxalign.data.records import Prompt, PromptCompletion
from jaxalign.errors import DataError
from jaxalign.evaluation import win_rate
from jaxalign.evaluation.generation import Asked
from jaxalign.models import hidden_states, init_params, unembedding
from jaxalign.models.scoring import segment_rewards
from jaxalign.training.saved_model import find_model, save_model
from jaxalign.verbs.evaluate import EvaluateRequest, Line, _model_judge
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


def save_like(place: str, folder: pathlib.Path, **changes) -> str:
    """An untrained model as `place` has one, but for what changes, in `folder`."""
    like = find_model(place, "--x")
    config = dataclasses.replace(like.config, **changes)
    params = init_params(jax.random.key(1), config, scalar=like.scalar)
    save_model(folder, params, config, like.tokenizer(), scalar=like.scalar, meta={})
    return str(folder)


def write_pairs(path: pathlib.Path) -> str:
    rows = [
        {"prompt": f"who is the {a}", "chosen": f" a {a}", "rejected": " no"} for a in ("ox", "cat", "red")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_data_and_answers_have_a_perplexity_each(folder, tmp_path):
    pairs, found = write_pairs(tmp_path / "p.jsonl"), {}
    for name, more in {"answers": (), "both": (f"--data={pairs}", "--max-length=128")}.items():
        flags = [f"--base={folder}/other", f"--json={tmp_path}/{name}.json", *more]
        assert evaluate(folder, tmp_path / f"{name}.jsonl", *flags) == 0
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    np.testing.assert_allclose(found["both"]["perplexity"], np.exp(found["both"]["loss"]), rtol=1e-12)
    assert found["both"]["answer perplexity"] == found["answers"]["perplexity"]


def test_pairs_are_scored_in_the_precision_that_is_asked_for(folder, tmp_path):
    """A model that was trained in another one has the same parameters."""
    half = save_like(f"{folder}/reward", tmp_path / "half", dtype="bfloat16")
    pairs, found = write_pairs(tmp_path / "p.jsonl"), []
    for model, dtype in ((f"{folder}/reward", "float32"), (half, "float32"), (half, "bfloat16")):
        flags = [f"--model={model}", f"--data={pairs}", f"--dtype={dtype}", f"--json={tmp_path}/n.json"]
        assert main(["evaluate", *flags, "--max-length=128"]) == 0
        found.append(json.loads((tmp_path / "n.json").read_text())["margin"])
    assert found[0] == found[1] != found[2]


def asked(verb: str, model: str, folder: pathlib.Path, tmp_path: pathlib.Path, *more: str) -> list[str]:
    """The arguments of a verb that reads with a model."""
    source, out = write_pairs(tmp_path / "p.jsonl"), f"--out={tmp_path}/o.jsonl"
    if verb in ("data", "pairs"):
        return ["evaluate", f"--model={model}", f"--data={source}", "--max-length=128", *more]
    if verb == "audit":  # which opens a model as training does
        return ["audit", "--config=dpo", f"--config.model.init_from={model}", f"--config.data.train={source}"]
    if verb == "label":
        rows = [{"prompt": "who", "completion": text} for text in (" ox", " cat")]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["label", f"--completions={tmp_path}/c.jsonl", f"--reward-model={model}", out]
    verb = "evaluate" if verb == "answers" else verb
    return [verb, f"--model={model}", f"--prompts={folder}/prompts.jsonl", "--max-new-tokens=4", out, *more]


@pytest.mark.parametrize("verb", ["data", "pairs", "answers", "generate", "label"])
def test_what_is_no_number_is_refused(verb, folder, tmp_path, capsys):
    """In float16 numbers above 65,504 are infinite, and what is made of them is NaN."""
    like = f"{folder}/{'reward' if verb in ('pairs', 'label') else 'model'}"
    model = save_like(like, tmp_path / "large", init_std=300.0, dtype="float16")
    assert main(asked(verb, model, folder, tmp_path, "--dtype=float16")) == 1
    where = {"answers": f"{folder}/prompts.jsonl:1", "generate": f"{folder}/prompts.jsonl:1"}
    where |= {"label": f"{tmp_path}/c.jsonl:1"}
    said = capsys.readouterr().err
    assert where.get(verb, f"{tmp_path}/p.jsonl:") in said
    assert "the model gives NaN or infinity, computed in float16" in said
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("verb", ["data", "pairs", "answers", "generate", "label"])
def test_a_tokenizer_with_more_tokens_than_the_model_knows_is_refused(verb, folder, tmp_path, capsys):
    like = f"{folder}/{'reward' if verb in ('pairs', 'label') else 'model'}"
    model = save_like(like, tmp_path / "narrow", vocab_size=270)
    assert main(asked(verb, model, folder, tmp_path)) == 1
    assert "but the model has vocab_size=270: its ids end at 269" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["data", "pairs", "answers", "generate", "label", "audit"])
def test_a_tokenizer_that_was_damaged_is_refused(verb, folder, tmp_path, capsys):
    """Though it can be read: another letter stands for one of its ids."""
    like = f"{folder}/{'reward' if verb in ('pairs', 'label') else 'model'}"
    file = pathlib.Path(save_like(like, tmp_path / "model")) / "tokenizer.model"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"\n\x01o", b"\n\x01Z", 1))  # the piece "o"
    assert whole != file.read_bytes() and load_tokenizer(file.parent).vocab_size
    assert main(asked(verb, str(file.parent), folder, tmp_path)) == 1
    assert f"{file.parent}: tokenizer.model is not what was written" in capsys.readouterr().err


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


def test_a_reward_model_reads_the_answers_as_they_stand(folder):
    """Also one that repeats its prompt; what is scored is prompt, answer and end, token by token."""
    request = EvaluateRequest(model="m", prompts="p", reward_model=f"{folder}/reward")
    prompt, texts = "who is the old cat", ["who is the old cat then", " then"]
    ask = Asked([prompt] * 2, [{}] * 2, ["p:1", "p:2"])
    scores = _model_judge(request)(ask, types.SimpleNamespace(texts=texts))
    model = find_model(f"{folder}/reward", "")
    tokenizer = model.tokenizer()
    for text, score in zip(texts, scores, strict=True):
        ids = encode_completion(PromptCompletion(prompt, text), tokenizer).ids
        mesh = parallel.make_mesh(devices=jax.devices()[:1])
        with parallel.use_mesh(mesh):
            at, one = np.arange(len(ids), dtype=np.int32)[None], np.ones((1, len(ids)), np.int32)
            wanted = segment_rewards(model.load(mesh), model.config, ids[None], at, one, 1)
        assert score == pytest.approx(float(wanted[0, 0]), abs=1e-5)
    with pytest.raises(
        DataError,
        match=r"^p:2: the answer to this prompt is empty, as 1 of 2 are; .* set --min-new-tokens, or",
    ):
        _model_judge(request)(ask, types.SimpleNamespace(texts=[" then", "\n"]))


def test_numbers_without_an_end_are_json(tmp_path, monkeypatch, capsys):
    line = Line("perplexity", (np.inf, 3.5, np.nan), "")
    monkeypatch.setattr("jaxalign.verbs.evaluate.evaluate", lambda request: [line])
    assert main(["evaluate", "--model=m", "--data=d", f"--json={tmp_path / 'n.json'}"]) == 0
    found = json.loads((tmp_path / "n.json").read_text(), parse_constant=pytest.fail)
    assert found == {"perplexity": ["Infinity", 3.5, None]}


def test_a_taken_place_is_told_before_a_model_is_read(tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    out.write_text("{}")
    assert main(["label", "--completions=no.jsonl", f"--out={out}", "--reward-model=none"]) == 1
    assert f"--out={out} exists" in capsys.readouterr().err
