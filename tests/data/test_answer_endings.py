"""A sequence ends alike in training, after a rollout, in labelling and after export, for every chat format."""

import functools
import warnings

import hf_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data import DataConfig, Records, dataset_from_records, load_tokenizer
from jaxalign.data.batch import PromptBatch
from jaxalign.data.encode import answer_ending
from jaxalign.data.packing import collate
from jaxalign.models import ModelConfig, init_params
from jaxalign.models.scoring import segment_rewards
from jaxalign.rl.rollout import score_completions
from jaxalign.sampling.generate import Completions, close, join
from jaxalign.text.templates import compile_template

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import AutoTokenizer

PROMPTS = ["Who asks?", "What is the colour of the quick brown fox, and who wrote this reply?"]
ANSWERS = ["The fox.", "A question, and an answer."]
DATA = DataConfig(max_length=256, row_length=512)


def user(text):
    return [{"role": "user", "content": text}]


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module", params=hf_models.MODELS)
def folder(request, tmp_path_factory):
    return hf_models.MODELS[request.param]().write(tmp_path_factory.mktemp("model"))


def rows(tokenizer, kind, *records):
    data = DATA if kind != "prompt" else DataConfig(max_length=128, row_length=128)
    return dataset_from_records([Records(records, "rows")], data, tokenizer, kind).rows


def sequences(tokenizer, kind, *records):
    items = rows(tokenizer, kind, *records).items
    return [example.ids.tolist() for item in items for example in item.examples]


def rollout(tokenizer, prompts, stop):
    """The answers as a policy samples them after the prompts, ended by `stop`; None: they ran into the limit."""
    made = rows(tokenizer, "prompt", *({"prompt": p} for p in prompts))
    batch = collate(made, range(len(prompts)))
    ids = []
    for prompt, text in zip(prompts, ANSWERS, strict=True):
        form = said(text) if isinstance(prompt, list) else text
        (whole,) = sequences(tokenizer, "sft", {"prompt": prompt, "completion": form})
        length = int(batch.segment_ids[len(ids)].sum())
        body = whole[length:]
        end = next(i for i, token in enumerate(body) if token in tokenizer.eos_ids)
        ids.append(body[:end] + ([] if stop is None else [stop]))
    N = max(map(len, ids)) + 3
    tokens = np.array([row + [0] * (N - len(row)) for row in ids], np.int32)
    mask = np.array([[1.0] * len(row) + [0.0] * (N - len(row)) for row in ids], np.float32)
    stopped = np.full(len(ids), stop is not None)
    return batch, Completions(
        jnp.asarray(tokens), jnp.asarray(mask), jnp.zeros(mask.shape), jnp.asarray(stopped)
    )


def read_by_reward_model(batch, completions):
    tokens, _, segments, _ = join(
        batch.tokens, batch.positions, batch.segment_ids, close(completions, batch.ending)
    )
    return [
        row[live > 0].tolist() for row, live in zip(np.asarray(tokens), np.asarray(segments), strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("form", [user, str])
def test_rollouts_end_as_the_sequences_that_were_trained_on(folder, form):
    tokenizer = load_tokenizer(folder)
    prompts = [form(text) for text in PROMPTS]
    answers = ANSWERS if form is str else list(map(said, ANSWERS))
    other = said("No.") if form is user else "No."
    trained = sequences(
        tokenizer,
        "preference",
        *({"prompt": p, "chosen": a, "rejected": other} for p, a in zip(prompts, answers, strict=True)),
    )[::2]
    labelled = sequences(
        tokenizer, "sft", *({"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True))
    )
    assert labelled == trained
    for stop in tokenizer.eos_ids:  # whichever of its stop tokens a model may have said
        assert read_by_reward_model(*rollout(tokenizer, prompts, stop)) == trained
    cut = read_by_reward_model(*rollout(tokenizer, prompts, None))
    assert all(
        whole[: len(part)] == part and len(part) < len(whole)
        for part, whole in zip(cut, trained, strict=True)
    )


def test_transformers_reads_the_same_token(folder):
    """What `apply_chat_template` gives an exported reward model, which scores its last token."""
    tokenizer = load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    (ours,) = sequences(tokenizer, "sft", {"messages": user(PROMPTS[0]) + said(ANSWERS[0])})
    want = theirs.apply_chat_template(user(PROMPTS[0]) + said(ANSWERS[0]), tokenize=True, return_dict=False)
    assert ours[len(ours) - len(want) :] == want


@pytest.mark.slow
def test_scores_of_rollouts_are_those_of_training_rows(folder):
    """The whole path of PPO's scores, by a reward model with random weights."""
    tokenizer = load_tokenizer(folder)
    model = ModelConfig(vocab_size=tokenizer.vocab_size, max_length=256, embed_dim=32, num_layers=1)
    judge = init_params(jax.random.key(0), model, scalar=True)
    judge["head"]["kernel"] = jax.random.normal(jax.random.key(1), judge["head"]["kernel"].shape)
    policy = init_params(jax.random.key(2), model)
    prompts = [user(text) for text in PROMPTS]
    pairs = [
        {"prompt": p, "chosen": said(a), "rejected": said("No.")}
        for p, a in zip(prompts, ANSWERS, strict=True)
    ]
    made = rows(tokenizer, "preference", *pairs)
    packed = collate(made, range(len(made)))
    read = jax.jit(lambda *arrays: segment_rewards(judge, model, *arrays, 32))
    trained = np.asarray(read(packed.tokens, packed.positions, packed.segment_ids))
    by_record = {
        int(r): s for r, s in zip(packed.rows.ravel()[::2], trained.ravel()[::2], strict=True) if r >= 0
    }
    batch, completions = rollout(tokenizer, prompts, tokenizer.eos_ids[0])
    batch = PromptBatch(
        *map(jnp.asarray, (batch.tokens, batch.positions, batch.segment_ids, batch.rows, batch.ending))
    )
    settings = {"model": model, "critic_model": model, "reward_config": model}
    score = jax.jit(functools.partial(score_completions, temperature=1.0, kl_estimator="k1", **settings))
    scored = score(policy, judge, policy, judge, batch, completions)
    np.testing.assert_allclose(scored["scores"], [by_record[0], by_record[1]], rtol=0, atol=1e-4)
    assert abs(by_record[0] - by_record[1]) > 1e-2


def test_a_format_that_refuses_results_without_calls_has_its_ending(tmp_path):
    """The question about the ending names no call, and is asked once more without the results."""
    tokenizer = load_tokenizer(hf_models.MODELS["qwen2.5"]().write(tmp_path))
    template = compile_template(
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no call') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ending = answer_ending(("user", "tool"), tokenizer, template)
    assert ending[0] == tokenizer.special_id("<|im_end|>") and tokenizer.decode(ending[1:]) == "\n"
