"""Stages whose frozen models lie in host memory or are rounded."""

import numpy as np
import pytest
from tiny import final_state, history, run

from jaxalign.errors import ConfigError
from jaxalign.training.loop import Stopped

OPTIONS = {"dpo": {}, "ppo": {"ppo.critic_init": "reward"}}


@pytest.fixture(scope="module")
def plain(runs, tmp_path_factory):
    done = {}

    def get(stage):
        if stage not in done:
            done[stage] = tmp_path_factory.mktemp(stage)
            run(stage, runs, done[stage], **OPTIONS[stage])
        return done[stage]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_frozen_models_in_host_memory_change_no_number(stage, runs, plain, tmp_path):
    run(stage, runs, tmp_path, **OPTIONS[stage], **{"frozen.offload": True})
    for name, values in final_state(plain(stage)).items():
        np.testing.assert_allclose(final_state(tmp_path)[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_rounding_a_reference_moves_its_loss_a_little(stage, runs, plain, tmp_path):
    mesh = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    run(stage, runs, tmp_path, devices=8, **OPTIONS[stage], **mesh, **{"frozen.dtype": "int8"})
    name = "objective/kl" if stage == "ppo" else "loss"
    for (step, got), (_, wanted) in zip(history(tmp_path), history(plain(stage)), strict=True):
        assert got[name] != wanted[name]
        assert got[name] == pytest.approx(wanted[name], abs=0.02), step


@pytest.mark.slow
def test_a_resumed_run_may_move_its_reference_to_the_host(runs, plain, tmp_path):
    with pytest.raises(Stopped):
        run("dpo", runs, tmp_path, stop_at=lambda *now: now == (2, 0))
    run("dpo", runs, tmp_path, **{"frozen.offload": True})
    for (step, got), (number, wanted) in zip(history(tmp_path), history(plain("dpo")), strict=True):
        assert step == number
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


@pytest.mark.parametrize(("stage", "changes"), [("sft", {}), ("dpo", {"dpo.precompute_reference": True})])
def test_without_a_frozen_model_there_is_nothing_to_keep(stage, changes, runs, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.frozen is .*int8.* holds no frozen model"):
        run(stage, runs, tmp_path, **changes, **{"frozen.dtype": "int8"})
