"""`jaxalign evaluate`: how likely data is under a model, and what judges say of the model's answers to prompts."""

import dataclasses
import json
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.data import Dataset, Tokenizer, build_dataset
from jaxalign.data.kinds import PAIRS, PAIRS_OR_DEMONSTRATIONS
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation import (
    Interval,
    likelihood,
    mean_interval,
    pair_scores,
    ratio_interval,
    win_rate,
)
from jaxalign.evaluation.generation import (
    Asked,
    Judge,
    asked,
    measure_answers,
    read_prompts,
    reward_judge,
    sample_answers,
)
from jaxalign.models import Params
from jaxalign.models.config import RUNTIME_KEYS
from jaxalign.models.finite import check_finite
from jaxalign.rewards import load_rewards
from jaxalign.sampling.answers import Answers
from jaxalign.storage import Path, json_line, to_path, write_whole
from jaxalign.streams import say
from jaxalign.training.saved_model import SavedModel, find_language_model, find_model
from jaxalign.training.writer import json_number
from jaxalign.verbs.generate import completion_row
from jaxalign.verbs.label import Completion, model_scorer
from jaxalign.verbs.requests import flag
from jaxalign.verbs.rows import SOURCES, RowsRequest, write_beside
from jaxalign.verbs.sampling import MODEL, SamplingRequest

Load = Callable[[SavedModel], Params]  # a model's parameters, read once

EXAMPLES = 5  # answers shown
WIDEST = 4096  # tokens of a sequence, where the model sets no limit of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRequest(SamplingRequest, RowsRequest):
    """Measure a model: the perplexity of data under it, or what judges say of its answers.

    --data takes text, demonstrations or pairs. Of pairs it also says how often the chosen answer is the likelier one,
    or, where the model is a reward model, has the higher score.

    --prompts has one answer sampled to every prompt. Rewards may come from functions and from a reward model; beside
    --against they also give a win rate: how often this model's answer has the higher reward than the other model's.
    --reference adds the KL from a model of the same architecture, --base the perplexity of the answers.

        jaxalign evaluate --model=runs/dpo --prompts=prompts.jsonl --reward-model=runs/reward --against=runs/sft
    """

    model: str = flag(MODEL, show="SRC")
    data: str = flag(f"measure the likelihood of {SOURCES}", default="", show="SRC")
    prompts: str = flag("answer the prompts of rows, named like --data", default="", show="SRC")
    reward: str = flag(
        "reward functions, module:function or FILE.py:function, separated by commas",
        default="",
        show="MODULE:FUNCTION",
    )
    reward_model: str = flag("a run of the reward stage, or a sequence classifier", default="", show="SRC")
    against: str = flag("compare with this model's answers", default="", show="SRC")
    reference: str = flag("measure KL from this model", default="", show="SRC")
    base: str = flag(
        "measure perplexity of the answers by this model (default: --reference)", default="", show="SRC"
    )
    take: int = flag("only the first N rows; 0: all", default=0, at_least=0)
    prompt_slots: int = flag("leave out prompts of more tokens; 0: none", default=0, at_least=0)
    max_length: int = flag(
        "leave out data of more tokens; 0: than the model was made for", default=0, at_least=0
    )
    batch_size: int = flag("rows at a time", default=64, at_least=1)
    out: str = flag("write the answers here", default="", show="FILE.jsonl")
    json: str = flag("write the numbers here", default="", show="FILE.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.data or self.prompts):
            raise ConfigError("give --data=SRC, to measure its likelihood, or --prompts=SRC, to answer them")
        for name in ("reward", "reward_model", "against", "reference", "base", "out"):
            if getattr(self, name) and not self.prompts:
                raise ConfigError(f"{self.key(name)} is about answers: give --prompts=SRC, too")
        if self.against and not (self.reward or self.reward_model):
            raise ConfigError("--against needs a judge: give --reward=MODULE:FUNCTION or --reward-model=SRC")


@dataclasses.dataclass(frozen=True)
class Line:
    """One number of the report: a name, its interval, and what it is."""

    name: str
    value: Interval
    means: str

    def __str__(self) -> str:
        mean, low, high = (f"{x:.6g}" if abs(x) >= 1e4 else f"{x:.3f}" for x in self.value)
        interval = "" if np.isnan(self.value[1]) else f"95 % interval {low} to {high}"
        return f"{self.name:<18}{mean:>9}   {interval:<34} {self.means}".rstrip()


def run(request: EvaluateRequest) -> int:
    """Prints the numbers, and the first answers."""
    numbers: dict[str, Interval] = {}
    for said in evaluate(request):
        if isinstance(said, Line):
            numbers[said.name] = said.value
        say(said)
    if request.json:
        values = {
            name: [None if np.isnan(x) else json_number(x) for x in value] for name, value in numbers.items()
        }
        write_whole(to_path(request.json), (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
    return 0


def evaluate(request: EvaluateRequest) -> Iterator[Line | str]:
    """Yields the numbers, and lines that say what they are about.

    Raises:
      ConfigError: a model of the wrong kind or architecture. DataError: see `build_dataset`. RewardError: see
        `Rewards.score`. NonFiniteError: a model gives NaN or infinity.
    """
    model = find_model(request.model, "--model")
    if model.scalar and request.prompts:
        raise ConfigError(
            f"--model={request.model} is a reward model, which writes nothing: give it --data, pairs"
        )
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    loaded: dict[Path, Params] = {}

    def load(model: SavedModel) -> Params:
        if model.place not in loaded:
            loaded[model.place] = model.load(mesh)
        return loaded[model.place]

    with parallel.use_mesh(mesh):
        if request.data:
            yield from (_pairs_by_score if model.scalar else _by_likelihood)(request, model, load)
        if request.prompts:
            yield from _answers(request, model, load)


def _read(request: EvaluateRequest, model: SavedModel, kind: str) -> Dataset:
    longest = request.max_length or model.config.max_length or WIDEST
    data = request.data_config(
        request.data,
        take=request.take,
        max_length=longest,
    )
    with request.named(eval="--data", max_length="--max-length"):
        return build_dataset(data, _tokenizer(request, model), kind, "eval")


def _tokenizer(request: EvaluateRequest, model: SavedModel) -> Tokenizer:
    return model.tokenizer(request.chat_template, request.template_args)


def _pairs_by_score(request: EvaluateRequest, model: SavedModel, load: Load) -> Iterator[Line | str]:
    pairs = _read(request, model, PAIRS)
    yield f"{request.data}: {pairs.report}"
    config = dataclasses.replace(model.config, dtype=request.dtype)
    numbers, scores = pair_scores(
        load(model), config, pairs, batch_size=min(request.batch_size, len(pairs.rows))
    )
    check_finite(scores, config.dtype, lambda i: pairs.where(int(numbers[i])), "pair")
    chosen, rejected = scores.T
    yield Line(
        "accuracy", win_rate(chosen, rejected), "share of pairs whose chosen answer has the higher score"
    )
    yield Line(
        "margin", mean_interval(chosen - rejected), "score of the chosen answer less that of the rejected one"
    )


def _by_likelihood(request: EvaluateRequest, model: SavedModel, load: Load) -> Iterator[Line | str]:
    rows = _read(request, model, PAIRS_OR_DEMONSTRATIONS)
    yield f"{request.data}: {rows.report}"
    config = dataclasses.replace(model.config, dtype=request.dtype)
    found = likelihood(load(model), config, rows, batch_size=min(request.batch_size, len(rows.rows)))
    check_finite(found.nll, config.dtype, lambda i: rows.where(int(found.rows[i])), "sequence")
    rejected = np.flatnonzero(found.rejected_of >= 0)
    learned = found.rejected_of < 0
    loss = ratio_interval(found.nll[learned], found.tokens[learned])
    yield Line("loss", loss, "nats a token" + (", of the chosen answers" if rejected.size else ""))
    mean, low, high = np.exp(loss).tolist()
    yield Line("perplexity", (mean, low, high), "its exponential")
    if rejected.size:
        chosen = found.rejected_of[rejected]
        likelier = win_rate(found.nll[rejected], found.nll[chosen])
        yield Line("accuracy", likelier, "share of pairs whose chosen answer is likelier as a whole")
        each = found.nll / np.maximum(found.tokens, 1)
        likelier = win_rate(each[rejected], each[chosen])
        yield Line("accuracy, a token", likelier, "the same, by the mean over tokens")


def _answers(request: EvaluateRequest, model: SavedModel, load: Load) -> Iterator[Line | str]:
    reference = _beside(model, request, "reference") if request.reference else None
    base = _beside(model, request, "base") if request.base else reference
    judges = _judges(request)
    other = find_language_model(request.against, "--against") if request.against else None
    prompts, answers = _sampled(request, model, load)
    ask = asked(prompts)
    yield f"{request.prompts}: {prompts.report}"
    if request.out:
        write_answers(ask, answers, request.out)
        if note := write_beside(to_path(request.out), prompts.invalid):
            yield note
    theirs = None
    if other is not None:
        their_prompts, theirs = _sampled(request, other, load)
        if asked(their_prompts).where != ask.where:
            raise ConfigError(
                f"--against={request.against} has room for other prompts than --model={request.model}: leave out "
                f"--prompt-slots={request.prompt_slots}"
            )
    measured = measure_answers(
        ask,
        answers,
        judges=judges,
        other=theirs,
        config=dataclasses.replace(model.config, dtype=request.dtype),
        params=load(model),
        reference=reference and load(reference),
        base=base and load(base),
        temperature=request.temperature,
    )
    for name, value in measured.scores.items():
        yield Line(name, value, "mean of an answer")
    for name, value in measured.wins.items():
        told = f"of prompts on which it is above that of {request.against}, ties half"
        yield Line("win rate" if len(judges) == 1 else f"{name} wins", value, f"by {name}: share {told}")
    if measured.kl:
        yield Line("KL", measured.kl, "nats an answer, from the reference")
    if measured.perplexity:
        # Data may have a perplexity of its own, which stands in the JSON as well.
        name = "answer perplexity" if request.data else "perplexity"
        yield Line(name, measured.perplexity, "of the answers, a token, under the base model")
    yield Line("length", measured.length, "tokens")
    stopped = (measured.stopped, float("nan"), float("nan"))
    yield Line("stopped", stopped, "share of answers that ended by themselves")
    for prompt, text in list(zip(ask.prompts, answers.texts, strict=True))[:EXAMPLES]:
        yield f"  {prompt!r} ->{text!r}"


def _judges(request: EvaluateRequest) -> dict[str, Judge]:
    judges = {}
    if request.reward:
        names = tuple(name.strip() for name in request.reward.split(","))
        judges["reward"] = reward_judge(load_rewards(names, key="--reward"), batch_size=request.batch_size)
    if request.reward_model:
        judges["score"] = _model_judge(request)
    return judges


def _model_judge(request: EvaluateRequest) -> Judge:
    model = find_model(request.reward_model, "--reward-model")
    longest = request.max_length or model.config.max_length or WIDEST
    scorer = model_scorer(request.reward_model, max_length=longest, batch_size=request.batch_size)

    def score(ask: Asked, answers: Answers) -> np.ndarray:
        empty = [where for where, text in zip(ask.where, answers.texts, strict=True) if not text.strip()]
        if empty:
            raise DataError(
                f"{empty[0]}: the answer to this prompt is empty, as {len(empty)} of {len(answers.texts)} are; a "
                "reward model reads no empty answer: set --min-new-tokens, or judge by --reward"
            )
        # "finished": an answer is read as it stands, even if it repeats its prompt.
        made = (
            completion_row(*each) | {"finished": True}
            for each in zip(ask.prompts, answers.texts, ask.rows, strict=True)
        )
        scores = scorer([[Completion(row, where)] for row, where in zip(made, ask.where, strict=True)])
        return np.asarray(scores, np.float64)[:, 0]

    return score


def _sampled(request: EvaluateRequest, model: SavedModel, load: Load) -> tuple[Dataset, Answers]:
    """The prompts as a model reads them, and an answer of its to each."""
    tokenizer = _tokenizer(request, model)
    with request.named(eval="--prompts", max_length="--prompt-slots"):
        data = request.data_config(request.prompts, take=request.take)
        prompts = read_prompts(data, tokenizer, slots=request.prompt_slots)
    answers = sample_answers(
        load(model),
        dataclasses.replace(model.config, dtype=request.dtype),
        prompts,
        tokenizer,
        sampling=request.sampling,
        seed=request.seed,
        batch_size=min(request.batch_size, len(prompts.rows)),
    )
    return prompts, answers


def _beside(model: SavedModel, request: EvaluateRequest, name: str) -> SavedModel:
    """The model that a flag names, of the same architecture as `model`."""
    key, path = request.key(name), getattr(request, name)
    other = find_language_model(path, key)
    same = {key: getattr(model.config, key) for key in RUNTIME_KEYS}
    if dataclasses.replace(other.config, **same) != model.config:
        raise ConfigError(f"{key}={path} has another architecture than --model={request.model}")
    return other


def write_answers(asked: Asked, answers: Answers, path: str) -> None:
    """One JSON line an answer, as `generate` writes them: {"prompt", "completion", "finished"}."""
    rows = map(completion_row, asked.prompts, answers.texts, asked.rows)
    lines = (
        json_line(row | {"finished": bool(finished)})
        for row, finished in zip(rows, answers.stopped, strict=True)
    )
    write_whole(to_path(path), "".join(lines).encode())
