"""What every loss promises: slices add up, garbage stays out, nothing is NaN, only float32 goes in."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.metrics import finalize, merge
from jaxalign.losses.nll import nll_loss
from jaxalign.losses.ppo import value_loss
from jaxalign.losses.reward import bradley_terry_loss

from .flat import dpo_loss, grpo_loss, kto_loss, orpo_loss, policy_loss


class Case(NamedTuple):
    loss: Callable
    arrays: dict[str, np.ndarray]
    mask: str  # the argument that holds the weights
    wrt: list[str]  # the arguments that are differentiated
    normalizers: dict[str, float]  # the denominators of the whole batch


def uniform(low, high, shape, seed):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def token_mask():
    mask = (uniform(0, 1, (4, 6), 99) < 0.6).astype(np.float32)
    mask[1, 2] = 0.5
    return mask


def token_case(loss, wrt, **bounds):
    arrays = {name: uniform(*bound, (4, 6), i) for i, (name, bound) in enumerate(bounds.items())}
    mask = token_mask()
    return Case(loss, arrays | {"mask": mask}, "mask", wrt, {"normalizer": mask.sum()})


def pair_case(loss, wrt, **bounds):
    arrays = {name: uniform(*bound, (4, 2), i) for i, (name, bound) in enumerate(bounds.items())}
    arrays["weight"] = np.array([[1, 1], [0, 1], [1, 0], [0.5, 1]], np.float32)
    normalizers = {"normalizer": arrays["weight"].sum()}
    if "nll_length" in arrays:
        normalizers["nll_normalizer"] = (arrays["weight"] * arrays["nll_length"]).sum()
    return Case(loss, arrays, "weight", wrt, normalizers)


def grpo_case(**settings):
    """dr_grpo, which always needs a normalizer, has its tests in test_grpo.py."""
    bounds = {"logp": (-2, -1), "old_logp": (-2, -1), "advantages": (-2, 2), "ref_logp": (-2, -1)}
    case = token_case(partial(grpo_loss, clip=0.2, clip_high=0.3, beta=0.1, **settings), ["logp"], **bounds)
    if settings.get("loss_type") != "grpo":
        return case
    return case._replace(normalizers={"normalizer": np.any(case.arrays["mask"], axis=1).sum()})


def kto_case(**settings):
    case = pair_case(partial(kto_loss, beta=0.3, **settings), ["logp"], logp=(-9, -1), ref_logp=(-9, -1))
    desirable = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32)
    return case._replace(arrays=case.arrays | {"desirable": desirable})


BOTH = ["chosen_logp", "rejected_logp"]
LOGPS = dict.fromkeys([*BOTH, "ref_chosen_logp", "ref_rejected_logp"], (-9, -1))
LENGTHS = {"chosen_length": (2, 6), "rejected_length": (2, 6)}
CASES = {
    "nll": token_case(partial(nll_loss, z_loss=0.01), ["logp", "logsumexp"], logp=(-5, 0), logsumexp=(2, 9)),
    "reward": pair_case(
        partial(bradley_terry_loss, centering=0.1),
        ["chosen", "rejected"],
        chosen=(-2, 2),
        rejected=(-2, 2),
        margin=(0, 1),
    ),
    "dpo": pair_case(partial(dpo_loss, beta=0.3, label_smoothing=0.1), BOTH, **LOGPS, **LENGTHS),
    "dpo_robust": pair_case(
        partial(dpo_loss, beta=0.3, variant="robust", label_smoothing=0.1), BOTH, **LOGPS, **LENGTHS
    ),
    "dpo_hinge": pair_case(
        partial(dpo_loss, beta=0.3, variant="hinge", nll_coef=0.2), BOTH, **LOGPS, **LENGTHS
    ),
    "dpo_norm": pair_case(partial(dpo_loss, beta=5.0, length_normalized=True), BOTH, **LOGPS, **LENGTHS),
    "ipo": pair_case(partial(dpo_loss, beta=0.3, variant="ipo"), BOTH, **LOGPS, **LENGTHS),
    "ipo_mean": pair_case(partial(dpo_loss, beta=0.3, variant="ipo_mean"), BOTH, **LOGPS, **LENGTHS),
    "orpo": pair_case(
        partial(orpo_loss, coef=0.5),
        [*BOTH, "nll"],
        chosen_logp=(-9, -1),
        rejected_logp=(-9, -1),
        nll=(2, 9),
        nll_length=(2, 6),
        **LENGTHS,
    ),
    "kto": kto_case(kl=np.float32(0.7), undesirable_weight=1.3),
    "apo_zero_unpaired": kto_case(variant="apo_zero_unpaired", desirable_weight=1.3),
    "dapo": grpo_case(),
    "grpo": grpo_case(loss_type="grpo"),
    "gspo": grpo_case(loss_type="grpo", importance="sequence_mean"),
    "rloo": grpo_case(loss_type="grpo", importance="sequence_sum"),
    "policy": token_case(
        partial(policy_loss, clip=0.2, clip_high=0.3, entropy_coef=0.1),
        ["logp", "entropy"],
        logp=(-2, -1),
        old_logp=(-2, -1),
        advantages=(-2, 2),
        entropy=(0, 3),
    ),
    "value": token_case(
        partial(value_loss, clip=0.2), ["values"], values=(-1, 1), old_values=(-1, 1), returns=(-1, 1)
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@partial(jax.jit, static_argnums=0)
def evaluate(loss, wrt, rest):
    return jax.value_and_grad(lambda wrt: loss(**wrt, **rest), has_aux=True)(wrt)


def run(case, arrays, **normalizers):
    wrt = {name: arrays[name] for name in case.wrt}
    rest = {name: x for name, x in arrays.items() if name not in wrt}
    (loss, metrics), gradients = evaluate(case.loss, wrt, rest | normalizers)
    assert loss.dtype == jnp.float32
    return loss, metrics, gradients


@every_case
def test_padding_makes_no_nan_on_the_way(case):
    """The zeros of empty entries, lengths among them: a NaN that is left out later would ring the NaN checks of JAX."""
    kept = case.arrays[case.mask] != 0
    arrays = {name: np.where(kept, x, np.float32(0)) if x.shape else x for name, x in case.arrays.items()}
    with jax.debug_nans(True), jax.disable_jit():
        jax.grad(lambda wrt: case.loss(**arrays | wrt)[0])(
            {name: jnp.asarray(arrays[name]) for name in case.wrt}
        )


@pytest.mark.slow
@every_case
def test_slices_with_the_global_normalizer_add_up_to_the_batch(case):
    loss, metrics, gradients = run(case, case.arrays)
    rows = [{name: x[i : i + 1] for name, x in case.arrays.items()} for i in range(4)]
    normalizers = {name: np.float32(x) for name, x in case.normalizers.items()}
    parts = [run(case, arrays, **normalizers) for arrays in rows]
    np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-6)
    for name in case.wrt:
        joined = np.concatenate([part[2][name] for part in parts])
        np.testing.assert_allclose(joined, gradients[name], rtol=1e-5, atol=1e-8)
    merged = finalize(merge(jax.tree.map(lambda *x: jnp.stack(x), *(part[1] for part in parts))))
    for name, value in finalize(metrics).items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@every_case
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_excluded_entries_reach_neither_value_nor_gradient(case, garbage):
    loss, metrics, gradients = run(case, case.arrays)
    excluded = case.arrays[case.mask] == 0
    dirty = {
        name: x if name == case.mask else np.where(excluded, np.float32(garbage), x)
        for name, x in case.arrays.items()
    }
    dirty_loss, dirty_metrics, dirty_gradients = run(case, dirty)
    assert dirty_loss == loss
    assert finalize(dirty_metrics) == finalize(metrics)
    for name in case.wrt:
        np.testing.assert_array_equal(dirty_gradients[name], gradients[name])
        assert not np.any(gradients[name][excluded])


@pytest.mark.slow
@every_case
def test_zero_weight_gives_zero(case):
    arrays = case.arrays | {case.mask: np.zeros_like(case.arrays[case.mask])}
    zero = {name: np.float32(0) for name in case.normalizers}
    for normalizers in ({}, zero):
        loss, metrics, gradients = run(case, arrays, **normalizers)
        assert loss == 0
        assert all(value == 0 for value in finalize(metrics).values())
        assert not any(np.any(gradient) for gradient in gradients.values())


@every_case
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_inputs_stay_finite(case, size):
    for name in case.wrt:
        arrays = case.arrays | {name: np.full_like(case.arrays[name], size)}
        if "logp" in name:
            arrays[name] = np.minimum(arrays[name], 0)
        loss, metrics, gradients = run(case, arrays)
        values = [loss, *finalize(metrics).values(), *gradients.values()]
        assert all(np.isfinite(value).all() for value in values), name


@pytest.mark.slow
@every_case
def test_one_entry(case):
    index = tuple(np.argwhere(case.arrays[case.mask] != 0)[0])
    one = {name: x[index].reshape(1, 1) for name, x in case.arrays.items()}
    only = np.zeros_like(case.arrays[case.mask])
    only[index] = case.arrays[case.mask][index]
    np.testing.assert_allclose(run(case, one)[0], run(case, case.arrays | {case.mask: only})[0], rtol=1e-6)


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_other_dtypes_are_refused(case, dtype):
    for name, x in case.arrays.items():
        with pytest.raises(TypeError, match=f"{name} is {jnp.dtype(dtype).name}"):
            case.loss(**case.arrays | {name: jnp.asarray(x).astype(dtype)})
    with pytest.raises(TypeError, match="normalizer is"):
        case.loss(**case.arrays, normalizer=jnp.ones((), dtype))


@every_case
def test_shapes_that_would_broadcast_are_refused(case):
    for name, x in case.arrays.items():
        with pytest.raises(ValueError, match="shapes differ"):
            case.loss(**case.arrays | {name: x[:, :1]})
