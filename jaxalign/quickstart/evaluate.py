"""What the quickstart measures of each model, on held-out questions."""

import dataclasses
import functools
import pathlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxalign.data import DataConfig, Dataset, build_dataset
from jaxalign.evaluation import mean_interval, mean_nll, pair_scores, proportion_interval
from jaxalign.models import Params
from jaxalign.sampling.answers import Answers, answer, sequence_kl
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.training.saved_model import SavedModel, find_model
from jaxalign.worlds import Judgement, World, bayes_accuracy, judge

PROMPT_SLOTS = 48  # tokens of the longest question that is asked
SAMPLING = SamplingConfig(max_new_tokens=32)
AXES = ("score", "helpful", "honest", "harmless")


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Held-out questions, the judge, and the model that KL is measured from. Use inside `parallel.use_mesh`."""

    world: World
    questions: Dataset
    demonstrations: Dataset
    corpus: Dataset
    reference: SavedModel
    reference_params: Params
    sampling: SamplingConfig
    batch_size: int

    @functools.cached_property
    def records(self) -> list[Mapping[str, Any]]:
        """The questions that fit into the prompt slots, with all their fields."""
        return [self.questions.record(item.row) for item in self.questions.rows.items]

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        """The questions as messages."""
        return [record["prompt"] for record in self.records]

    def answers(self, params: Params, seed: int = 0) -> Answers:
        """One sampled answer to every question."""
        return answer(
            params,
            self.reference.config,
            self.questions,
            self.reference.tokenizer(),
            sampling=self.sampling,
            key=jax.random.key(seed),
            batch_size=self.batch_size,
        )

    def judgements(self, answers: Answers) -> list[Judgement]:
        """The judge's view of each answer."""
        return [judge(self.world, p, text) for p, text in zip(self.prompts, answers.texts, strict=True)]

    def kl(self, params: Params, answers: Answers) -> np.ndarray:
        """Sequence KL of each answer from the reference, in nats."""
        args = (params, self.reference_params, self.reference.config, answers)
        return sequence_kl(*args, batch_size=self.batch_size, temperature=self.sampling.temperature)

    def probe(self, step: int, params: Params) -> dict[str, float]:
        """Judge score and KL in the middle of training."""
        answers = self.answers(params)
        scores = [j.score for j in self.judgements(answers)]
        return {"judge/score": float(np.mean(scores)), "judge/kl": float(np.mean(self.kl(params, answers)))}

    def measure(self, params: Params) -> dict[str, Any]:
        """Everything the report says of a model, but for its win rate; see quickstart/report.py."""
        answers = self.answers(params)
        judged = self.judgements(answers)
        by_kind = defaultdict(list)
        for record, judgement in zip(self.records, judged, strict=True):
            by_kind[record["kind"]].append(judgement.score)
        model, B = self.reference.config, self.batch_size
        return {
            "loss": mean_nll(params, model, self.demonstrations, batch_size=B),
            "corpus_loss": mean_nll(params, model, self.corpus, batch_size=B),
            **{axis: mean_interval([getattr(j, axis) for j in judged]) for axis in AXES},
            "by_kind": {kind: float(np.mean(scores)) for kind, scores in sorted(by_kind.items())},
            "kl": mean_interval(self.kl(params, answers)),
            "length": float(answers.lengths.mean()),
            "scores": [j.score for j in judged],
            "texts": answers.texts,
        }


def make_examiner(
    root: pathlib.Path,
    world: World,
    sampling: SamplingConfig = SAMPLING,
    *,
    take: int,
    prompt_slots: int = PROMPT_SLOTS,
    questions: str = "questions_held_out.jsonl",
    demonstrations: str = "sft_held_out.jsonl",
    reference_run: str = "sft",
) -> Examiner:
    """An examiner with the first `take` questions of the data in `root`.

    Args:
      reference_run: the run in `root` whose model KL is measured from.
    """
    reference = find_model(str(root / reference_run), f"the quickstart's run {reference_run}")
    data = DataConfig(take=take, tokenizer=str(reference.path), max_length=prompt_slots, row_length=96)
    long = dataclasses.replace(data, max_length=96)
    tokenizer = reference.tokenizer()

    def read(name: str, kind: str, settings: DataConfig) -> Dataset:
        named = dataclasses.replace(settings, eval=str(root / "data" / name))
        return build_dataset(named, tokenizer, kind, "eval")

    return Examiner(
        world=world,
        questions=read(questions, "prompt", data),
        demonstrations=read(demonstrations, "sft", long),
        corpus=read("corpus_held_out.jsonl", "text", long),
        reference=reference,
        reference_params=reference.load(jax.sharding.get_mesh()),
        sampling=sampling,
        batch_size=64,
    )


def measure_reward_model(root: pathlib.Path, noise: float, *, take: int) -> dict[str, Any]:
    """Accuracy on held-out noisy labels, the best that any scorer could reach, and agreement with the judge."""
    reward = find_model(str(root / "reward"), "the quickstart's reward run")
    data = DataConfig(
        eval=str(root / "data/preference_held_out.jsonl"), take=take, max_length=96, row_length=192
    )
    dataset = build_dataset(data, reward.tokenizer(), "preference", "eval")
    params = reward.load(jax.sharding.get_mesh())
    rows, scores = pair_scores(params, reward.config, dataset, batch_size=16)
    records = [dataset.record(int(row)) for row in rows]
    gold = np.array([(r["chosen_score"], r["rejected_score"]) for r in records])
    margin, gold_margin = scores[:, 0] - scores[:, 1], gold[:, 0] - gold[:, 1]
    different = gold_margin != 0
    best = bayes_accuracy([tuple(pair) for pair in gold], noise)
    right = int(np.sum(margin > 0))
    agree = int(np.sum((margin * gold_margin)[different] > 0))
    return {
        "accuracy": proportion_interval(right, len(margin)),
        "bayes_accuracy": best,
        "ratio": right / len(margin) / best,
        "gold_accuracy": proportion_interval(agree, int(different.sum())),
        "gold_correlation": float(np.corrcoef(scores.ravel(), gold.ravel())[0, 1]),
    }
