"""`jaxalign label`: completions of the same prompts, scored, to preference pairs for on-policy and iterative DPO."""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.data import DataConfig, Records, dataset_from_records
from jaxalign.data.kinds import DEMONSTRATIONS
from jaxalign.data.records import Chat, PromptCompletion
from jaxalign.data.sources import Places
from jaxalign.data.values import TOOLS
from jaxalign.errors import ConfigError, DataError, amount
from jaxalign.evaluation.preferences import completion_scores
from jaxalign.models.finite import check_finite
from jaxalign.rewards import load_rewards
from jaxalign.storage import json_line, local_copy, to_path, write_whole
from jaxalign.streams import say
from jaxalign.text.messages import Turns
from jaxalign.training.saved_model import find_model
from jaxalign.verbs.requests import flag
from jaxalign.verbs.rows import (
    SOURCES,
    Checked,
    RowsRequest,
    iterate_checked,
    open_checked,
    write_beside,
)
from jaxalign.worlds import World, judge
from jaxalign.worlds.preferences import preference_row

PAIRINGS = ("best-worst", "all", "ranking")


@dataclasses.dataclass(frozen=True)
class Completion:
    """A row with a completion."""

    fields: dict[str, Any]  # "prompt", "completion", and any others
    where: str  # file:line


Group = list[Completion]  # those of one prompt
Scorer = Callable[[list[Group]], list[list[float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRequest(RowsRequest):
    """Score completions and write preference pairs (or rankings): data for on-policy and iterative DPO.

    jaxalign label --completions=completions.jsonl --out=pairs.jsonl --reward-model=runs/reward
    """

    completions: str = flag(f"completions, as generate writes them, or {SOURCES}", show="SRC")
    out: str = flag("the JSONL file to write", show="FILE.jsonl")
    reward: str = flag("called as f(prompt, completion)", default="", show="MODULE:FUNCTION", one_of="judge")
    reward_model: str = flag(
        "a run of the reward stage, or a sequence classifier", default="", show="SRC", one_of="judge"
    )
    world: str = flag("a quickstart's data/world.json: its judge", default="", show="FILE", one_of="judge")
    pairs: str = flag(
        "best-worst of each prompt, all pairs, or a ranking row {prompt, responses, scores}",
        default="best-worst",
        choices=PAIRINGS,
        show="PAIRS",
    )
    noise: float = flag(
        "temperature of Bradley-Terry labels in units of the score; 0: the higher score is always chosen",
        default=0.0,
        at_least=0,
    )
    max_length: int = flag("tokens a reward model reads", default=1024, at_least=2)
    batch_size: int = flag("packed rows that it reads at a time", default=16, at_least=1)
    seed: int = flag("of the noise", default=0, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise and self.pairs == "ranking":
            raise ConfigError(f"--noise={self.noise} must be 0 with --pairs=ranking")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Rows for the preference stages, and what became of the prompts."""

    rows: list[dict[str, Any]]
    prompts: int
    without: int  # prompts that gave nothing to prefer: fewer than two different completions, or equal scores
    cut: int  # completions left out because they ran into the length limit: an end after them would be a lie
    empty: int  # completions left out because they say nothing
    mean: float  # score over all completions
    note: str = ""  # where rows that could not be used are written down


def run(request: LabelRequest) -> int:
    """Writes the rows, and prints what became of the prompts."""
    made = label(request)
    say(
        f"{request.out}: {amount(len(made.rows), 'row')} from {amount(made.prompts, 'prompt')}; "
        f"{amount(made.without, 'prompt')} gave none (fewer than two different completions, or equal scores); "
        f"{amount(made.empty, 'empty completion')} and {amount(made.cut, 'completion')} without an end left out; "
        f"mean score {made.mean:.4f}"
    )
    if made.note:
        say(made.note)
    return 0


def label(request: LabelRequest) -> Labelled:
    """Scores the completions in a file and writes preference rows {"prompt", "chosen", "rejected", "chosen_score", …}.

    Raises:
      ConfigError, DataError: the file to write exists, or no prompt gives a pair.
      RewardError: see `Rewards.score`.
    """
    target = to_path(request.out)
    if target.exists():
        raise ConfigError(f"--out={request.out} exists; name another file, or delete it")
    if request.reward:
        scorer = function_scorer(request.reward, batch_size=request.batch_size)
    elif request.world:
        scorer = judge_scorer(request.world)
    else:
        scorer = model_scorer(
            request.reward_model, max_length=request.max_length, batch_size=request.batch_size
        )
    with request.named(eval="--completions"):
        found = open_checked(request.data_config(request.completions), DEMONSTRATIONS)
    groups = group_by_prompt(iterate_checked(found))
    cut, empty = (found.dropped[reason] for reason in ("completion not finished", "empty completion"))
    scores = scorer(groups)
    rows: list[dict[str, Any]] = []
    without = 0
    rng = random.Random(request.seed)
    for group, values in zip(groups, scores, strict=True):
        made = _prefer(group, values, request.pairs, request.noise, rng)
        without += not made
        rows += made
    if not rows:
        raise DataError(
            f"{request.completions}: no prompt has two different completions with different scores; "
            f"generate more for each (--n), at a higher temperature, or longer ones ({cut} were cut at the limit)"
        )
    # First what lies beside: with the file itself there, the same command is refused.
    note = write_beside(target, found.invalid)
    write_whole(target, "".join(map(json_line, rows)).encode())
    mean = float(np.mean([v for values in scores for v in values]))
    return Labelled(rows, len(groups), without, cut, empty, mean, note)


def group_by_prompt(rows: Iterable[Checked]) -> list[Group]:
    """The completions in rows, those of one prompt together."""
    groups: dict[str, Group] = {}
    for row in rows:
        completion = as_completion(row)
        prompt = json.dumps([completion.fields.get(name) for name in ("prompt", *TOOLS)], sort_keys=True)
        groups.setdefault(prompt, []).append(completion)
    return list(groups.values())


def as_completion(row: Checked) -> Completion:
    """The prompt and the completion of a row: of a conversation its last answer, and all before it.

    Raises:
      DataError: it has no prompt, or ends without an answer.
    """
    record = row.record
    if isinstance(record, PromptCompletion):
        prompt, completion = record.prompt, record.completion
    elif isinstance(record, Chat) and len(record.messages) > 1 and record.messages[-1].role == "assistant":
        prompt, completion = record.messages[:-1], record.messages[-1:]
    else:
        raise DataError(
            f"{row.where}: is no completion of a prompt; write the fields prompt and completion, as generate does, "
            "or a conversation that ends with an answer"
        )
    fields = row.fields | {"prompt": _as_field(prompt), "completion": _as_field(completion)}
    return Completion(fields, row.where)


def _as_field(turns: Turns) -> Any:
    return turns if isinstance(turns, str) else [message.to_dict() for message in turns]


def _prefer(
    group: Group, values: Sequence[float], pairing: str, noise: float, rng: random.Random
) -> list[dict[str, Any]]:
    tools = {name: group[0].fields[name] for name in TOOLS if name in group[0].fields}
    # The same text twice is one completion.
    texts = [completion.fields["completion"] for completion in group]
    distinct = {json.dumps(text): (text, value) for text, value in zip(texts, values, strict=True)}
    ranked = sorted(distinct.values(), key=lambda item: -item[1])
    if len(ranked) < 2 or ranked[0][1] == ranked[-1][1]:
        return []
    if pairing == "ranking":
        responses, scores = zip(*ranked, strict=True)
        row = {"prompt": group[0].fields["prompt"], "responses": list(responses), "scores": list(scores)}
        return [row | tools]
    pairs = [(ranked[0], ranked[-1])] if pairing == "best-worst" else list(itertools.combinations(ranked, 2))
    return [
        preference_row(group[0].fields["prompt"], better, worse, rng=rng, noise=noise) | tools
        for better, worse in pairs
        if better[1] != worse[1]
    ]


def completion_text(completion: Completion) -> str:
    """The words of a completion, which is text or the messages of an assistant."""
    text = completion.fields["completion"]
    return text if isinstance(text, str) else "\n".join(message["content"] or "" for message in text)


def function_scorer(name: str, *, batch_size: int) -> Scorer:
    """Scores by a reward function, `module:function`; see `Rewards.score`."""
    rewards = load_rewards((name,), key="--reward")

    def score(groups: list[Group]) -> list[list[float]]:
        completions = [completion for group in groups for completion in group]
        rows = [completion.fields for completion in completions]
        scores = rewards.score(
            [row["prompt"] for row in rows],
            [completion_text(completion) for completion in completions],
            rows,
            where=[completion.where for completion in completions],
            batch_size=batch_size,
        )
        return _split(scores.total, groups)

    return score


def _split(scores: np.ndarray, groups: list[Group]) -> list[list[float]]:
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return [part.tolist() for part in np.split(scores, ends)]


def judge_scorer(path: str) -> Scorer:
    """Scores by the judge of the synthetic world in a quickstart's data/world.json."""
    world = World.load(local_copy(to_path(path)))
    return lambda groups: [
        [judge(world, c.fields["prompt"], completion_text(c)).score for c in group] for group in groups
    ]


def model_scorer(path: str, *, max_length: int, batch_size: int) -> Scorer:
    """Scores by a reward model: a run of the reward stage, or a sequence classifier of Hugging Face's.

    Raises:
      ConfigError: it is a language model. DataError: a completion is longer than `max_length` tokens, or the model's.
      NonFiniteError: a score is NaN or infinite.
    """
    model = find_model(path, "--reward-model")
    if not model.scalar:
        raise ConfigError(f"--reward-model={path} is a language model; name a run of the reward stage")

    def score(groups: list[Group]) -> list[list[float]]:
        # "finished" stays: what a model wrote is read as it stands, even if it repeats its prompt.
        read = ("prompt", "completion", "finished", *TOOLS)
        flat = [{key: c.fields[key] for key in read if key in c.fields} for group in groups for c in group]
        mesh = parallel.make_mesh(parallel.MeshConfig(data=-1), jax.devices())
        with parallel.use_mesh(mesh):
            longest = min(max_length, model.config.max_length)
            data = DataConfig(max_length=longest, row_length=longest, overlong="error")
            places = Places([c.where for group in groups for c in group])
            records = Records(flat, "completions", origin=places)
            dataset = dataset_from_records([records], data, model.tokenizer(), DEMONSTRATIONS, "eval")
            scores = completion_scores(model.load(mesh), model.config, dataset, batch_size=batch_size)
        check_finite(scores, model.config.dtype, places.__getitem__, "completion")
        return _split(scores, groups)

    return score
