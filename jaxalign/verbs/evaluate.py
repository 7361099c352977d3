"""`jaxalign evaluate`: what a reward function says of a model's answers, and how far they are from another model."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from jaxalign import parallel
from jaxalign.errors import ConfigError, amount
from jaxalign.evaluation import Interval
from jaxalign.evaluation.generation import Measured, measure_answers
from jaxalign.fields import like
from jaxalign.rewards import load_rewards
from jaxalign.sampling.answers import Answers
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.storage import json_line, to_path, write_whole
from jaxalign.training.saved_model import RUNTIME_KEYS, SavedModel, find_language_model
from jaxalign.verbs.generate import completion_row
from jaxalign.verbs.requests import flag
from jaxalign.verbs.rows import SOURCES, RowsRequest, write_beside
from jaxalign.verbs.sampling import MODEL


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRequest(RowsRequest):
    """Sample an answer to every prompt; print mean reward, KL from the reference, perplexity under the base, length."""

    model: str = flag(MODEL, show="SRC")
    prompts: str = flag(SOURCES, show="SRC")
    reward: str = flag("a reward function, module:function or FILE.py:function", show="MODULE:FUNCTION")
    reference: str = flag("measure KL from this model, named as --model", default="", show="SRC")
    base: str = flag(
        "measure perplexity of the answers by this model (default: --reference)", default="", show="SRC"
    )
    take: int = flag("only the first N prompts; 0: all", default=0, at_least=0)
    max_new_tokens: int = like(SamplingConfig, "max_new_tokens")
    prompt_slots: int = flag("tokens of the longest prompt; longer ones are left out", default=64, at_least=1)
    temperature: float = like(SamplingConfig, "temperature")
    seed: int = flag("of the sampling", default=0)
    template_args: str = flag(
        "values of variables that the chat template reads, such as enable_thinking=False",
        default="",
        show="NAME=VALUE",
    )
    out: str = flag("write the answers here", default="", show="FILE.jsonl")


def run(request: EvaluateRequest) -> int:
    """Prints the numbers."""
    measured = evaluate(request)
    for line in report_lines(measured):
        print(line)
    if measured.invalid and request.out:
        print(write_beside(to_path(request.out), measured.invalid))
    return 0


def evaluate(request: EvaluateRequest) -> Measured:
    """`measure_answers` of a model to prompts, by a reward function."""
    model = find_language_model(request.model, "--model")
    reference = _beside(model, request, "--reference", request.reference) if request.reference else None
    base = _beside(model, request, "--base", request.base) if request.base else reference
    rewards = load_rewards((request.reward,), key="--reward")
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    keys = {"eval": "--prompts", "max_length": "--prompt-slots"}
    with request.named(**keys), parallel.use_mesh(mesh):
        models = {m.path: m for m in (model, reference, base) if m is not None}
        params = {path: m.load(mesh) for path, m in models.items()}
        return measure_answers(
            params[model.path],
            reference and params[reference.path],
            base and params[base.path],
            model.config,
            model.path,
            request.data_config(request.prompts, take=request.take),
            rewards,
            sampling=SamplingConfig(max_new_tokens=request.max_new_tokens, temperature=request.temperature),
            prompt_slots=request.prompt_slots,
            seed=request.seed,
            template_args=request.template_args,
            keep=functools.partial(write_answers, path=request.out) if request.out else None,
        )


def _beside(model: SavedModel, request: EvaluateRequest, flag: str, path: str) -> SavedModel:
    """The model that `flag` names, of the same architecture as `model`."""
    other = find_language_model(path, flag)
    same = {key: getattr(model.config, key) for key in RUNTIME_KEYS}
    if dataclasses.replace(other.config, **same) != model.config:
        raise ConfigError(f"{flag}={path} has another architecture than --model={request.model}")
    return other


def report_lines(measured: Measured) -> list[str]:
    """What `jaxalign evaluate` prints."""

    def show(name: str, interval: Interval) -> str:
        mean, low, high = interval
        return f"{name:<12}{mean:9.3f}   95 % interval {low:.3f} to {high:.3f}"

    perplexity = "perplexity  {:9.2f}   of the answers, a token, under the base model"
    return [
        amount(len(measured.texts), "prompt"),
        *(f"{'left out':<12}{count:9,}   {reason}" for reason, count in sorted(measured.left_out.items())),
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
        json_line(completion_row(prompt, text) | {"finished": bool(finished)})
        for prompt, text, finished in zip(prompts, answers.texts, answers.stopped, strict=True)
    )
    write_whole(to_path(path), "".join(lines).encode())
