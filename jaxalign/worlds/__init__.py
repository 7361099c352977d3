"""Synthetic worlds whose true reward is known. Embedded: the HHH world (helpful, honest, harmless)."""

from jaxalign.worlds.corpus import corpus
from jaxalign.worlds.dataset import DatasetSizes, response_pair, write_dataset
from jaxalign.worlds.japanese import japanese_corpus
from jaxalign.worlds.judge import Judgement, judge, judge_reward
from jaxalign.worlds.on_policy import label_pairs
from jaxalign.worlds.preferences import (
    DEFAULT_NOISE,
    bayes_accuracy,
    preference_probability,
    sample_preference,
)
from jaxalign.worlds.questions import Intent, Question, questions, read_question
from jaxalign.worlds.responses import demonstration, mixture, respond
from jaxalign.worlds.world import World

__all__ = [
    "DEFAULT_NOISE",
    "DatasetSizes",
    "Intent",
    "Judgement",
    "Question",
    "World",
    "bayes_accuracy",
    "corpus",
    "demonstration",
    "japanese_corpus",
    "judge",
    "judge_reward",
    "label_pairs",
    "mixture",
    "preference_probability",
    "questions",
    "read_question",
    "respond",
    "response_pair",
    "sample_preference",
    "write_dataset",
]
