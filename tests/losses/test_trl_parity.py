"""The formulas against those of TRL itself, run on given log-probabilities or logits without a model.

TRL's losses are methods of its trainers: they run on a stand-in that holds their settings.
"""

import collections
import os
import types
import warnings
from functools import partial

import jax
import numpy as np
import pytest

from jaxalign.losses import GRPOObjective, finalize, grpo_normalizer, kl_baseline
from jaxalign.models.logprobs import token_divergence

from .flat import grpo_loss, kto_loss
from .oracle import assert_close
from .test_logprobs import problem

torch = pytest.importorskip("torch")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("trl", minversion="1.16")
    from trl.experimental.gkd import GKDTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

BETA, NEW_TOKENS = 0.2, 11


def identity(x, *args, **kwargs):
    return x


def stand_in(**settings):
    """What a trainer's loss reads of it on one process: its settings, and a place for metrics."""
    accelerator = types.SimpleNamespace(
        device="cpu", num_processes=1, gather=identity, gather_for_metrics=identity, reduce=identity
    )
    return types.SimpleNamespace(
        accelerator=accelerator,
        model=types.SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
        **settings,
    )


def last_metrics(trainer):
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}


def tensors(arrays):
    return {name: torch.tensor(x, dtype=torch.float64) for name, x in arrays.items()}


@pytest.mark.parametrize("variant", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("drift", [0.4, -0.4])
def test_kto(variant, drift):
    rng = np.random.default_rng(0)
    names = ("logp", "ref_logp", "kl_logp", "ref_kl_logp")
    arrays = {name: -rng.uniform(5, 15, 6).astype(np.float32) for name in names}
    arrays["kl_logp"] = arrays["ref_kl_logp"] + np.float32(drift) * rng.uniform(0, 2, 6).astype(np.float32)
    desirable = np.array([1, 0, 0, 1, 1, 0], np.float32)
    weights = {"beta": BETA, "desirable_weight": 1.3, "undesirable_weight": 0.8}

    x = tensors(arrays)
    # Each completion is one token after a prompt of one.
    token_logp = x["logp"][:, None].requires_grad_()
    zeros = torch.zeros(6, 1)
    has_kl = variant == "kto"
    trainer = stand_in(
        loss_type=variant,
        calculate_KL=has_kl,
        precompute_ref_logps=True,
        _compute_kl_logps=lambda model, batch: x["kl_logp"] if has_kl else None,
        _total_train_tokens=0,
        _tp_size=1,
        **weights,
    )
    batch = {
        "input_ids": torch.zeros(6, 2, dtype=torch.long),
        "attention_mask": torch.ones(6, 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * 6),
        "label": torch.tensor(desirable, dtype=torch.bool),
        "ref_logps": x["ref_logp"],
        "ref_KL_logps": x["ref_kl_logp"],
    }
    outputs = types.SimpleNamespace(log_probs=token_logp, entropy=zeros, mean_logits=zeros)
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)
    loss.backward()

    ones = np.ones(6, np.float32)
    kl = kl_baseline(arrays["kl_logp"], arrays["ref_kl_logp"], ones) if has_kl else None

    def ours(logp):
        rest = {"ref_logp": arrays["ref_logp"], "desirable": desirable, "weight": ones, "kl": kl}
        return kto_loss(logp=logp, **rest, variant=variant, **weights)

    (value, metrics), gradient = jax.value_and_grad(ours, has_aux=True)(arrays["logp"])
    assert_close(value, loss.item())
    assert_close(gradient, token_logp.grad[:, 0].numpy())
    theirs, final = last_metrics(trainer), finalize(metrics)
    shared = {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"}
    for name in shared | ({"kl"} if has_kl else set()):
        assert_close(final[name], theirs[name])
    assert not has_kl or (final["kl"] > 0) == (drift > 0)


def policy_arrays():
    rng = np.random.default_rng(1)
    arrays = {
        name: -rng.uniform(1, 1.6, (4, 7)).astype(np.float32) for name in ("logp", "old_logp", "ref_logp")
    }
    arrays["advantages"] = rng.normal(size=4).astype(np.float32)
    arrays["mask"] = (np.arange(7) < np.array([[7], [2], [4], [5]])).astype(np.float32)
    return arrays


def run_theirs(method, arrays, **settings):
    """(loss, gradient at logp, metrics) of a trainer's `_compute_loss`."""
    x = tensors(arrays)
    logp = x["logp"].requires_grad_()
    trainer = stand_in(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros(4, 7), None), **settings
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros(4, 7, dtype=torch.long),
        "completion_mask": x["mask"],
        "advantages": x["advantages"],
        "old_per_token_logps": x["old_logp"],
        "ref_per_token_logps": x["ref_logp"],
        "old_logps": (x["old_logp"] * x["mask"]).sum(1),
        "num_items_in_batch": x["mask"].sum(),
    }
    loss = method(trainer, None, inputs)
    loss.backward()
    return loss.item(), logp.grad.numpy(), last_metrics(trainer)


def assert_same_loss(arrays, theirs, **settings):
    loss, gradient, metrics = theirs
    objective = GRPOObjective(loss_type=settings["loss_type"])
    normalizer = grpo_normalizer(arrays["mask"], objective, NEW_TOKENS)

    def ours(logp):
        return grpo_loss(**arrays | {"logp": logp}, **settings, normalizer=normalizer)

    (value, our_metrics), our_gradient = jax.value_and_grad(ours, has_aux=True)(arrays["logp"])
    assert_close(value, loss)
    assert_close(our_gradient, gradient)
    final = finalize(our_metrics)
    names = {f"clip_ratio/{name}" for name in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")}
    for name in names | ({"kl"} if settings.get("beta") else set()):
        assert_close(final[name], metrics[name])


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("level, importance", [("token", "token"), ("sequence", "sequence_mean")])
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_grpo(loss_type, level, importance, beta):
    arrays = policy_arrays()
    theirs = run_theirs(
        GRPOTrainer._compute_loss,
        arrays,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=0.1,
        epsilon_high=0.2,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        current_gradient_accumulation_steps=1,
        max_completion_length=NEW_TOKENS,
        _entropy_bonus_enabled=False,
    )
    settings = {"clip": 0.1, "clip_high": 0.2, "beta": beta, "loss_type": loss_type, "importance": importance}
    assert_same_loss(arrays, theirs, **settings)


def test_rloo():
    arrays = policy_arrays()
    theirs = run_theirs(RLOOTrainer._compute_loss, arrays, epsilon_low=0.2, epsilon_high=0.4)
    settings = {"loss_type": "grpo", "importance": "sequence_sum", "clip": 0.2, "clip_high": 0.4}
    assert_same_loss(arrays, theirs, **settings)


@pytest.mark.parametrize(
    "kind, beta, theirs",
    [("forward_kl", 0.5, 0.0), ("reverse_kl", 0.5, 1.0), ("jsd", 0.5, 0.5), ("jsd", 0.2, 0.2)],
)
def test_divergences(kind, beta, theirs):
    hidden, head, _ = problem()
    ref_hidden, ref_head, _ = problem(width=4, seed=2)
    student = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (hidden, head)]
    teacher = [torch.tensor(x, dtype=torch.float64) for x in (ref_hidden, ref_head)]
    logits = [torch.einsum("btd,vd->btv", *pair) for pair in (student, teacher)]
    expected = GKDTrainer.generalized_jsd_loss(*logits, beta=theirs, temperature=1.3, reduction="none").sum(
        -1
    )
    weight = np.random.default_rng(3).normal(size=hidden.shape[:2]).astype(np.float32)
    (expected * torch.tensor(weight)).sum().backward()
    function = partial(token_divergence, kind=kind, beta=beta, temperature=1.3)

    def ours(*policy):
        divergence = function(*policy, ref_hidden, ref_head)
        return (weight * divergence).sum(), divergence

    gradients, divergence = jax.grad(ours, argnums=(0, 1), has_aux=True)(hidden, head)
    assert_close(divergence, expected.detach().numpy())
    for actual, wanted in zip(gradients, student, strict=True):
        assert_close(actual, wanted.grad.numpy())
