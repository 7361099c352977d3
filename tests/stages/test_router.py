"""A mixture of experts through the stages: what its router adds to a loss, however a batch is cut."""

import pytest
from tiny import assert_tree_close, final_state, history, run

MOE = {"model.num_experts": 4, "model.experts_per_token": 2, "model.mlp_dim": 16}
ROUTER = {"model.router_balance_coef": 0.5, "model.router_z_coef": 0.1}


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("moe")
    run("pretrain", runs, workdir, **MOE)
    return workdir


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def stages(runs, plain, tmp_path_factory):
    """The stages on one device, each from what the one before it left: (stage, changes) -> the run's folder."""
    root = tmp_path_factory.mktemp("stages")

    def start(stage):
        begin = plain if stage == "sft" else root / "sft"
        return (
            {"model.init_from": str(begin)}
            | ROUTER
            | ({"ppo.reward": str(root / "reward")} if stage == "ppo" else {})
        )

    for stage in STAGES_IN_ORDER:
        run(stage, runs, root / stage, **start(stage))
    return root, start


STAGES_IN_ORDER = ("sft", "reward", "dpo", "ppo")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES_IN_ORDER)
def test_a_stage_on_a_mesh_with_experts_equals_one_device(stage, stages, runs, tmp_path):
    """Step-0 checks inside compare cached decoding with scoring, and packed sequences with the same alone."""
    root, start = stages
    mesh = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.expert": 2}
    run(stage, runs, tmp_path, devices=8, **start(stage), **mesh)
    assert_tree_close(final_state(tmp_path, "model"), final_state(root / stage, "model"))
    for (_, a), (_, b) in zip(history(tmp_path), history(root / stage), strict=True):
        for name in b:
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), name
        assert 1.5 < a["router/balance_loss"] < 4
        assert stage != "ppo" or a["critic/router/balance_loss"] > 1.5
