"""The numbers that a run logs, computed again in float64 NumPy from what it read, sampled and trained.

Of the second step of a run every batch, or every minibatch of a rollout, is written down as the update receives it,
with the parameters that it begins with. A decoder in NumPy reads the sequences one by one, and nothing of jaxalign's
losses, advantages or metrics is used. What is left to other tests: the norm of the gradient, and what a clock says.
"""

import jax
import numpy as np
import pytest
from models.oracle import decode
from tiny import history, run

import jaxalign
from jaxalign.rl import stage as rl_stage
from jaxalign.training.open import Run

TOLERANCE = 1e-5
UNCHECKED = ("alarms", "epoch", "grad_norm", "critic/grad_norm", "skipped_steps", "critic/skipped_steps")
# Sampling and reading are two programs, whose difference is rounding alone.
ROUNDING = ("rollout_logp_diff", "rollout_logp_diff_max")


class Dumps:
    """What the updates of a run receive: (parameters, batch) of each, as NumPy arrays."""

    def __init__(self, stage, runs, workdir, monkeypatch, **options):
        self.batches, self.policy, self.critic = [], [], []
        monkeypatch.setattr(Run, "put", _recording(Run.put, lambda _, batch: self.batches.append(batch)))
        monkeypatch.setattr(rl_stage, "make_learner", self._make_learner)
        changes = {"num_steps": 2, "checkpoint_every": 1, "keep_checkpoints": 9, "data.share_prompts": False}
        changes |= {f"{stage}.{key}": value for key, value in options.items()}
        run(stage, runs, workdir, **changes)
        self.first, self.line = (values for _, values in history(workdir))
        self.model = jaxalign.load(workdir)

    def _make_learner(self, run, policy_update, value_update, **rest):
        def policy(state, batch, *_):
            self.policy.append(jax.device_get((state.params, batch[0])))  # beside it, text of pretraining

        def critic(state, batch, *_):
            self.critic.append(jax.device_get((state.params, batch)))

        value_update = value_update and _recording(value_update, critic)
        return _make_learner(run, _recording(policy_update, policy), value_update, **rest)


_make_learner = rl_stage.make_learner


def _recording(function, record):
    def recorded(*arguments):
        record(*arguments)
        return function(*arguments)

    return recorded


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Sequence:
    """One sequence of a row, and what a model says of it: [T] each, 0 for the first token, which nothing predicts."""

    def __init__(self, tokens, mask, params, config):
        self.tokens, self.mask = tokens, mask.astype(np.float64)
        self.hidden, logits = decode(params, config, tokens)
        self.table = np.concatenate((np.zeros((1, logits.shape[1])), log_softmax(logits)[:-1]))
        self.mean_logit = np.concatenate(([0.0], logits[:-1].mean(-1)))
        self.logp = self.table[np.arange(len(tokens)), tokens]
        self.entropy = -np.sum(np.exp(self.table) * self.table, -1)
        self.best = self.table.argmax(-1) == tokens

    def total(self, x=None):
        return float(np.sum((self.logp if x is None else x) * self.mask))


def mean_over_tokens(read, name):
    """Of sequences, the mean of a number over their supervised tokens."""
    return sum(each.total(getattr(each, name)) for each in read) / sum(each.mask.sum() for each in read)


def assert_accounts_for(line, wanted):
    """Every number of a line is either computed again or named as unchecked."""
    left = {name for name in line if name not in wanted} - set(UNCHECKED) - set(ROUNDING)
    assert not left
    for name, value in wanted.items():
        assert line[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), name
    for name in ROUNDING:
        assert 0 <= line.get(name, 0.0) < 1e-5
