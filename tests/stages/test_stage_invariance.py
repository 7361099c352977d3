"""How a batch is laid out, sliced or recomputed changes neither the loss nor the gradient, in any stage."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ON_POLICY, PROMPT_LENGTH, assert_tree_close, every_stage, make_config

from jaxalign import parallel
from jaxalign.data.packing import collate
from jaxalign.models.scoring import score_scalar, score_tokens
from jaxalign.rl.rollout import Rollout
from jaxalign.stages import parse_config
from jaxalign.training.open import open_run
from jaxalign.training.saved_model import find_model
from jaxalign.training.stage import Stage
from jaxalign.training.state import gradients

LAYOUTS = ("unpacked", "wider and empty rows", "4 microbatches")
OPTIONS = {
    "pretrain": {"pretrain.z_loss": 1e-2},
    "sft": {"sft.z_loss": 1e-2},
    "ppo": {"ppo.entropy_coef": 0.1},
    "grpo": {"grpo.beta": 0.1, "grpo.clip": 0.3},
    "grpo-sequences": {"grpo.beta": 0.1, "grpo.loss_type": "grpo", "grpo.importance": "sequence_mean"},
    "grpo-dr": {"grpo.loss_type": "dr_grpo"},
    "rloo": {"rloo.clip": 2.0},
    "kto": {"kto.desirable_weight": 1.5},
    "kto-apo": {"kto.variant": "apo_zero_unpaired"},
    "distill-jsd": {"distill.divergence": "jsd"},
}
# A stage, or one of its losses behind a hyphen.
CASES = every_stage("dpo", "kto") + [
    pytest.param(case, marks=pytest.mark.slow) for case in OPTIONS if "-" in case
]


def opened(stage, runs, workdir, **changes):
    return open_run(parse_config(make_config(stage, runs, **changes)), workdir)


def load(path, mesh):
    return find_model(str(path), "path").load(mesh)


def objective(stage, run, params, batch, frozen, parts):
    declared, options, model = run.config.stage, run.config.options, run.model
    total = declared.total(model, options, num_microbatches=parts)(params, batch, frozen)
    policy = declared.objective(model, options, whole=parts == 1)
    if stage != "ppo":
        return lambda params, part: policy(params, part, total, frozen)
    critic = Stage(
        "critic", declared.data, declared.options, declared.critic_loss, declared.totals, scalar=True
    )

    def both(params, part):
        own = policy(params["policy"], part, total, {})
        other = critic.objective(model, options)(params["critic"], part, total, {})
        return own[0] + other[0], own[1] | other[1]

    return both


def measure(stage, run, params, frozen, batch, parts=1):
    batch = jax.tree.map(jnp.asarray, batch)

    def compute(params, frozen, batch):
        return gradients(objective(stage, run, params, batch, frozen, parts), params, batch, parts)[::2]

    return jax.jit(compute)(params, frozen, batch)


def everything(run, rows=None):
    """All rows of the data as one batch; fills up with empty ones to `rows`."""
    indices = list(range(len(run.train.rows)))
    return collate(run.train.rows, indices + [-1] * ((rows or len(indices)) - len(indices)))


def episodes(run, params) -> Rollout:
    """8 episodes with prompts and replies of random lengths, off policy enough for both clips to matter."""
    rng = np.random.default_rng(0)
    P, N = PROMPT_LENGTH, 8
    place = np.arange(P + N)[None, :]
    prompt, reply = rng.integers(2, P, (8, 1)), rng.integers(1, N + 1, (8, 1))
    live = (place >= P - prompt) & (place < P + reply)
    tokens = jnp.asarray(np.where(live, rng.integers(8, 300, live.shape), 0), jnp.int32)
    positions = jnp.asarray(np.where(live, place - (P - prompt), 0), jnp.int32)
    segments = jnp.asarray(live, jnp.int32)
    mask = np.asarray(live & (place >= P), np.float32)

    def noise(scale):
        return jnp.asarray(rng.normal(0, scale, mask.shape) * mask, jnp.float32)

    given = (run.model, tokens, positions, segments)
    logp = score_tokens(params["policy"], *given).logp
    more = {"advantages": noise(1.0), "ref_logp": logp + noise(0.3)}
    if "critic" in params:
        values = score_scalar(params["critic"], *given).values
        more = {"advantages": noise(1.0), "old_values": values + noise(0.3), "returns": values + noise(1.0)}
    return Rollout(
        tokens=tokens,
        positions=positions,
        segment_ids=segments,
        mask=jnp.asarray(mask),
        old_logp=logp + noise(0.3),
        **more,
    )


def two_a_row(rollout: Rollout) -> Rollout:
    half = len(rollout.tokens) // 2
    second = rollout.replace(segment_ids=2 * rollout.segment_ids)
    return jax.tree.map(lambda a, b: jnp.concatenate((a[:half], b[half:]), axis=1), rollout, second)


def relaid(stage, layout, run, runs, workdir, batch) -> tuple[Any, int]:
    """The same sequences in another layout, and in how many microbatches."""
    if "microbatches" in layout:
        return batch, int(layout[0])
    if layout == "unpacked":
        if stage in ("ppo", "distill"):
            return two_a_row(batch), 1
        if stage in ON_POLICY:  # a completion a row, in another order
            return jax.tree.map(lambda x: x[::-1], batch), 1
        other = everything(opened(stage, runs, workdir, **{"data.packing": False}))
        assert len(other.tokens) > 1.5 * len(batch.tokens)
        return other, 1
    if stage in ON_POLICY:
        wider = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (5, 3))), batch)
    else:
        wider = everything(opened(stage, runs, workdir, **{"data.row_length": 112}))
    return jax.tree.map(lambda x: np.concatenate((x, np.zeros_like(x))), wider), 1


@pytest.fixture(scope="module")
def problems(runs, tmp_path_factory):
    """case -> (run, params, frozen, batch, (loss, gradient)): computed once."""
    found: dict[str, tuple] = {}

    def get(case):
        if case in found:
            return found[case]
        stage = case.split("-")[0]
        with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])) as mesh:
            run = opened(stage, runs, tmp_path_factory.mktemp(case), **OPTIONS.get(case, {}))
            params, frozen = load(runs / "sft", mesh), {}
            if stage in ("dpo", "kto"):
                frozen = {"reference": load(runs / "pretrain", mesh)}
            if stage == "distill":
                frozen = {"teacher": load(runs / "pretrain", mesh)}
            if stage == "reward":
                params = load(runs / "reward", mesh)
            if stage == "ppo":
                params = {"policy": params, "critic": load(runs / "reward", mesh)}
                batch = episodes(run, params)
            elif stage in ON_POLICY:
                batch = episodes(run, {"policy": params})
            else:
                batch = everything(run, rows=-(-len(run.train.rows) // 4) * 4)
            if case == "kto":  # a baseline of 0 would hide how its mean is taken
                score = run.config.stage.total(run.model, run.config.options, num_microbatches=2)
                assert score(params, jax.tree.map(jnp.asarray, batch), frozen)["log_ratio"] > 0.1
            found[case] = (run, params, frozen, batch, measure(stage, run, params, frozen, batch))
        return found[case]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_the_layout_of_a_batch_changes_nothing(case, layout, problems, runs, tmp_path):
    run, params, frozen, batch, wanted = problems(case)
    stage = case.split("-")[0]
    with parallel.use_mesh(run.mesh):
        other, parts = relaid(stage, layout, run, runs, tmp_path, batch)
        got = measure(stage, run, params, frozen, other, parts)
    assert abs(float(wanted[0])) > 1e-2
    assert_tree_close(got, wanted)


@pytest.mark.parametrize("remat", ["full", "dots"])
@pytest.mark.parametrize("stage", every_stage())
def test_rematerialisation_changes_nothing(stage, remat, problems):
    run, params, frozen, batch, wanted = problems(stage)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, remat=remat))
    with parallel.use_mesh(run.mesh):
        assert_tree_close(measure(stage, run, params, frozen, batch), wanted)
