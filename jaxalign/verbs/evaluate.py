"""`jaxalign evaluate`: what a reward function says of a model's answers, and how far they are from another model."""

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.evaluation import Interval
from jaxalign.evaluation.generation import Measured, measure_answers
from jaxalign.rewards import load_rewards
from jaxalign.sampling.answers import Answers
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.storage import to_path, write_whole
from jaxalign.training.saved_model import RUNTIME_KEYS, SavedModel
from jaxalign.verbs.generate import completion_row, language_model


def evaluate_run(args: argparse.Namespace) -> Measured:
    """`measure_answers` of a finished run, by the flags of `jaxalign evaluate`."""
    model = language_model(args.model, "--model")
    reference = _beside(model, args, "--reference", args.reference) if args.reference else None
    base = _beside(model, args, "--base", args.base) if args.base else reference
    rewards = load_rewards((args.reward,), key="--reward")
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    with parallel.use_mesh(mesh):
        models = {m.path: m for m in (model, reference, base) if m is not None}
        params = {path: m.load(mesh) for path, m in models.items()}
        return measure_answers(
            params[model.path],
            reference and params[reference.path],
            base and params[base.path],
            model.config,
            model.path,
            args.prompts,
            rewards,
            sampling=SamplingConfig(max_new_tokens=args.max_new_tokens, temperature=args.temperature),
            prompt_slots=args.prompt_slots,
            take=args.take,
            seed=args.seed,
            keep=functools.partial(write_answers, path=args.out) if args.out else None,
        )


def _beside(model: SavedModel, args: argparse.Namespace, flag: str, path: str) -> SavedModel:
    """The model that `flag` names, of the same architecture as `model`."""
    other = language_model(path, flag)
    same = {key: getattr(model.config, key) for key in RUNTIME_KEYS}
    if dataclasses.replace(other.config, **same) != model.config:
        raise ConfigError(f"{flag}={path} has another architecture than --model={args.model}")
    return other


def report_lines(measured: Measured) -> list[str]:
    """What `jaxalign evaluate` prints."""

    def show(name: str, interval: Interval) -> str:
        mean, low, high = interval
        return f"{name:<12}{mean:9.3f}   95 % interval {low:.3f} to {high:.3f}"

    perplexity = "perplexity  {:9.2f}   of the answers, a token, under the base model"
    return [
        f"{len(measured.texts)} prompts",
        show("reward", measured.score),
        *([show("KL", measured.kl) + "   nats a sequence, from the reference"] if measured.kl else []),
        *([perplexity.format(measured.perplexity)] if measured.perplexity is not None else []),
        show("length", measured.length) + "   tokens",
        f"{'stopped':<12}{measured.stopped:9.3f}   share of answers that ended by themselves",
        *(
            f"  {prompt!r} ->{text!r}"
            for prompt, text in list(zip(measured.prompts, measured.texts, strict=True))[:5]
        ),
    ]


def write_answers(prompts: Sequence[Any], answers: Answers, path: str) -> None:
    """One JSON line an answer, as `generate` writes them: {"prompt", "completion", "finished"}."""
    lines = (
        json.dumps(completion_row(prompt, text) | {"finished": bool(finished)}, ensure_ascii=False) + "\n"
        for prompt, text, finished in zip(prompts, answers.texts, answers.stopped, strict=True)
    )
    write_whole(to_path(path), "".join(lines).encode())
