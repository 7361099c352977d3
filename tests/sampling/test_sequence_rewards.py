"""A reward model's scores of answers against each read alone."""

import jax
import numpy as np
import pytest

from jaxalign import parallel
from jaxalign.models import ModelConfig, hidden_states, init_params
from jaxalign.sampling.answers import Answers, sequence_rewards

MODEL = ModelConfig(
    vocab_size=11, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32, max_length=16
)  # fmt: skip
PROMPTS, SLOTS = ([1, 2], [3, 4, 5], [6]), 3  # prompts are padded on the left
ANSWERS, NEW = ([7, 8, 10], [9], [2, 3, 4, 10]), 4


def test_scores_are_read_at_the_last_token_of_each_answer():
    shape = len(PROMPTS), SLOTS + NEW
    tokens, positions, segments, mask = (np.zeros(shape, np.int32) for _ in range(4))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        written = slice(SLOTS - len(prompt), SLOTS + len(answer))
        tokens[row, written] = prompt + answer
        positions[row, written] = np.arange(len(prompt) + len(answer))
        segments[row, written] = 1
        mask[row, SLOTS : SLOTS + len(answer)] = 1
    answers = Answers(
        ["x"] * 3, np.ones(3, bool), tokens, positions, segments, mask.astype(np.float32), np.zeros((3, NEW))
    )
    params = init_params(jax.random.key(0), MODEL, scalar=True)
    with parallel.use_mesh(parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])):
        found = sequence_rewards(params, MODEL, answers, batch_size=2)
    for score, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        last = np.asarray(hidden_states(params["transformer"], MODEL, np.array([prompt + answer]))[0])[0, -1]
        assert score == pytest.approx(
            float(last @ params["head"]["kernel"] + params["head"]["bias"]), abs=1e-5
        )
