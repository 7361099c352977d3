"""A mixture of experts through the stages: what its router adds to a loss, however a batch is cut."""

import jax
import numpy as np
import pytest
from tiny import assert_tree_close, final_state, history, run

MOE = {"model.num_experts": 4, "model.experts_per_token": 2, "model.mlp_dim": 16}
ROUTER = {"model.router_balance_coef": 0.5, "model.router_z_coef": 0.1}


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("moe")
    run("pretrain", runs, workdir, **MOE)
    return workdir


def test_loss_is_that_without_plus_the_weighted_router_losses(runs, plain, tmp_path):
    run("pretrain", runs, tmp_path, **MOE, **ROUTER, num_steps=1)
    without, values = history(plain)[0][1], history(tmp_path)[0][1]
    assert values["nll"] == pytest.approx(without["nll"], rel=1e-6)
    balance, z = values["router/balance_loss"], values["router/z_loss"]
    assert 1.9 < balance < 4 and z > 0
    assert values["loss"] == pytest.approx(values["nll"] + 0.5 * balance + 0.1 * z, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"num_microbatches": 4}, {"devices": 8}])
def test_cutting_a_batch_does_not_change_the_router_losses(runs, tmp_path, changes):
    run("pretrain", runs, tmp_path / "whole", **MOE, **ROUTER)
    run("pretrain", runs, tmp_path / "cut", **MOE, **ROUTER, **changes)
    for (_, a), (_, b) in zip(history(tmp_path / "whole"), history(tmp_path / "cut"), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    assert_tree_close(*(final_state(tmp_path / name, "model") for name in ("cut", "whole")))


@pytest.mark.slow
def test_every_stage_runs_on_a_mixture_of_experts(runs, plain, tmp_path):
    """From a pretrained mixture to PPO: step-0 checks compare cached decoding with scoring, packed with alone."""
    run("sft", runs, tmp_path / "sft", **{"model.init_from": str(plain)} | ROUTER)
    start = {"model.init_from": str(tmp_path / "sft")} | ROUTER
    run("reward", runs, tmp_path / "reward", **start)
    for stage in ("dpo", "ppo"):
        changes = {"ppo.reward_model": str(tmp_path / "reward")} if stage == "ppo" else {}
        run(stage, runs, tmp_path / stage, **start | changes)
    run("orpo", runs, tmp_path / "orpo", **{"model.init_from": str(plain)} | ROUTER)
    for stage in ("sft", "reward", "dpo", "ppo", "orpo"):
        values = history(tmp_path / stage)[-1][1]
        assert np.isfinite(list(values.values())).all()
        assert values["router/balance_loss"] > 1.5
    assert history(tmp_path / "ppo")[-1][1]["critic/router/balance_loss"] > 1.5
    assert jax.tree.leaves(final_state(tmp_path / "ppo", "model"))
