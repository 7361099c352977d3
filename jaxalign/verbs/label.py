"""`jaxalign label`: completions of the same prompts, scored, to preference pairs for on-policy and iterative DPO."""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign import parallel
from jaxalign.data import DataConfig, Records, dataset_from_records, load_tokenizer
from jaxalign.errors import ConfigError, DataError
from jaxalign.evaluation.preferences import completion_scores
from jaxalign.rewards import call_reward_function, import_reward_function
from jaxalign.storage import local_copy, to_path, write_whole
from jaxalign.training.saved_model import find_model
from jaxalign.verbs.generate import read_completions
from jaxalign.verbs.requests import Request, flag
from jaxalign.worlds import World, judge
from jaxalign.worlds.preferences import preference_probability

PAIRINGS = ("best-worst", "all", "ranking")
Group = list[dict[str, Any]]  # the completions of one prompt
Scorer = Callable[[list[Group]], list[list[float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRequest(Request):
    """Score completions and write preference pairs (or rankings): data for on-policy and iterative DPO."""

    completions: str = flag("rows with prompt and completion, as generate writes", show="FILE")
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
    seed: int = flag("of the noise", default=0)

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


def run(request: LabelRequest) -> int:
    """Writes the rows, and prints what became of the prompts."""
    made = label(request)
    print(
        f"{request.out}: {len(made.rows)} rows from {made.prompts} prompts; {made.without} prompts gave none "
        f"(fewer than two different completions, or equal scores); {made.empty} empty completions and {made.cut} "
        f"completions without an end left out; mean score {made.mean:.4f}"
    )
    return 0


def label(request: LabelRequest) -> Labelled:
    """Scores the completions in a file and writes preference rows {"prompt", "chosen", "rejected", "chosen_score", …}.

    Raises:
      ConfigError, DataError: the file to write exists, or no prompt gives a pair.
      RewardError: see `call_reward_function`.
    """
    if request.reward:
        scorer = function_scorer(request.reward)
    elif request.world:
        scorer = judge_scorer(request.world)
    else:
        scorer = model_scorer(
            request.reward_model, max_length=request.max_length, batch_size=request.batch_size
        )
    target = to_path(request.out)
    if target.exists():
        raise ConfigError(f"--out={request.out} exists; name another file, or delete it")
    everything = read_completions(request.completions)
    ended = [[row for row in group if row.get("finished", True)] for group in everything]
    groups = [[row for row in group if completion_text(row["completion"]).strip()] for group in ended]
    cut, empty = (sum(map(len, a)) - sum(map(len, b)) for a, b in ((everything, ended), (ended, groups)))
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
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(target, text.encode())
    mean = float(np.mean([v for values in scores for v in values]))
    return Labelled(rows, len(groups), without, cut, empty, mean)


def _prefer(
    group: Group, values: Sequence[float], pairing: str, noise: float, rng: random.Random
) -> list[dict[str, Any]]:
    # The same text twice is one completion.
    distinct = {json.dumps(r["completion"]): (r["completion"], v) for r, v in zip(group, values, strict=True)}
    ranked = sorted(distinct.values(), key=lambda item: -item[1])
    if len(ranked) < 2 or ranked[0][1] == ranked[-1][1]:
        return []
    if pairing == "ranking":
        responses, scores = zip(*ranked, strict=True)
        return [{"prompt": group[0]["prompt"], "responses": list(responses), "scores": list(scores)}]
    pairs = [(ranked[0], ranked[-1])] if pairing == "best-worst" else list(itertools.combinations(ranked, 2))
    rows = []
    for better, worse in pairs:
        if better[1] == worse[1]:
            continue
        if noise and rng.random() >= preference_probability(better[1], worse[1], noise):
            better, worse = worse, better
        chosen, rejected = {"chosen": better[0]}, {"rejected": worse[0]}
        rows.append(
            {"prompt": group[0]["prompt"]}
            | chosen
            | rejected
            | {"chosen_score": better[1], "rejected_score": worse[1]}
        )
    return rows


def completion_text(completion: Any) -> str:
    """The words of a completion, which is text or the messages of an assistant."""
    return completion if isinstance(completion, str) else "\n".join(m["content"] for m in completion)


def function_scorer(name: str) -> Scorer:
    """Scores by `module:function`, called as f(prompt, completion text) -> float; see `call_reward_function`."""
    function = import_reward_function(name, "--reward")

    def score(group: Group) -> list[float]:
        texts = [completion_text(row["completion"]) for row in group]
        return call_reward_function(function, [row["prompt"] for row in group], texts).tolist()

    return lambda groups: [score(group) for group in groups]


def judge_scorer(path: str) -> Scorer:
    """Scores by the judge of the synthetic world in a quickstart's data/world.json."""
    world = World.load(local_copy(to_path(path)))
    return lambda groups: [
        [judge(world, r["prompt"], completion_text(r["completion"])).score for r in group] for group in groups
    ]


def model_scorer(path: str, *, max_length: int, batch_size: int) -> Scorer:
    """Scores by a reward model: a run of the reward stage, or a sequence classifier of Hugging Face's.

    Raises:
      ConfigError: it is a language model. DataError: a completion is longer than `max_length` tokens.
    """
    model = find_model(path, "--reward-model")
    if not model.scalar:
        raise ConfigError(f"--reward-model={path} is a language model; name a run of the reward stage")

    def score(groups: list[Group]) -> list[list[float]]:
        flat = [{"prompt": r["prompt"], "completion": r["completion"]} for group in groups for r in group]
        mesh = parallel.make_mesh(parallel.MeshConfig(data=-1), jax.devices())
        with parallel.use_mesh(mesh):
            data = DataConfig(max_length=max_length, row_length=max_length, overlong="error")
            records = Records(flat, "completions")
            dataset = dataset_from_records([records], data, load_tokenizer(model.path), "sft", "eval")
            scores = completion_scores(model.load(mesh), model.config, dataset, batch_size=batch_size)
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]

    return score
