"""A run whose completions wait for slots learns what it would learn if all were sampled at once."""

import jax
import numpy as np
import pytest
from tiny import assert_tree_close, final_state, history, run


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_slots_change_no_number_of_a_run(devices, runs, tmp_path):
    settings = {"num_steps": 2, "devices": devices, "grpo__num_iterations": 2}
    run("grpo", runs, tmp_path / "whole", **settings)
    run("grpo", runs, tmp_path / "slots", grpo__sampling__slots=4, **settings)
    whole, slots = final_state(tmp_path / "whole"), final_state(tmp_path / "slots")
    np.testing.assert_array_equal(slots["rollout/tokens"], whole["rollout/tokens"])
    assert_tree_close(jax.tree.map(np.asarray, slots), jax.tree.map(np.asarray, whole))
    for (_, got), (_, want) in zip(history(tmp_path / "slots"), history(tmp_path / "whole"), strict=True):
        assert (
            0 < want.pop("completions/slot_occupancy") <= 1 and 0 < got.pop("completions/slot_occupancy") <= 1
        )
        assert got == pytest.approx(want, rel=1e-4, abs=1e-5)
