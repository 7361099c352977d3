"""The sequences of the study of RLOO: what is said of all of them is what sampling finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.ablation.files import own_studies
from jaxalign.config_files import load_function


@pytest.fixture(scope="module")
def study():
    return load_function(str(own_studies()["rloo"]), "get_study", "study", "").__globals__


def test_expected_reward_and_kl_are_those_of_samples(study):
    rng = np.random.default_rng(0)
    demonstrated = rng.integers(0, 8, (16, 4))
    best = jnp.asarray(rng.integers(0, 8, (16, 4)))
    start = study["learn_start"](jax.random.key(0), jnp.asarray(demonstrated))
    moved = jax.tree.map(lambda x: 1.1 * x, start)
    reward, kl = study["measure"](moved, start, best)
    prompts = jnp.tile(jnp.arange(16), 1_000)
    tokens = study["sample"](moved, prompts, jax.random.key(1))
    logps = [study["token_logps"](x, prompts, tokens).sum(1) for x in (moved, start)]
    for wanted, found in ((reward, study["reward"](best, prompts, tokens)), (kl, logps[0] - logps[1])):
        assert float(wanted) == pytest.approx(float(found.mean()), abs=4 * float(found.std()) / 16_000**0.5)
    assert float(kl) > 0.05


def test_the_start_answers_as_demonstrators_do(study):
    demonstrated = np.random.default_rng(0).integers(0, 8, (16, 4))
    start = study["learn_start"](jax.random.key(0), jnp.asarray(demonstrated))
    logps = study["token_logps"](start, jnp.arange(16), jnp.asarray(demonstrated))
    assert np.exp(np.asarray(logps)).mean() == pytest.approx(study["LIKELY"], abs=0.05)
