"""Preferences between a model's own answers, labelled by the judge."""

from typing import Any

from jaxalign.quickstart.evaluate import Examiner
from jaxalign.worlds import label_pairs


def on_policy_pairs(examiner: Examiner, seed: int) -> tuple[list[dict[str, Any]], int]:
    """Two answers of the examiner's reference to each of its questions, compared: see `label_pairs`."""
    both = [examiner.answers(examiner.reference_params, seed=2 * seed + 1 + side) for side in range(2)]
    one, other = ([judged.score for judged in examiner.judgements(answers)] for answers in both)
    return label_pairs(examiner.prompts, (both[0].texts, both[1].texts), (one, other), seed=seed)
