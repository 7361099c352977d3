"""KTO, GRPO and RLOO as whole stages against TRL's trainers, on the same weights, sequences and rewards.

TRL runs its own loss on a Llama of transformers in float64; a stage runs from what it samples or reads to its gradient.
"""

import collections
import os
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.hf_state import load_state, save_state
from test_stage_invariance import everything, opened

from jaxalign import parallel
from jaxalign.data import PromptBatch
from jaxalign.models.hf import config_from_hf
from jaxalign.rl.rollout import score_completions
from jaxalign.sampling.generate import Completions, SamplingConfig
from jaxalign.stages import grpo, kto, rloo

torch = pytest.importorskip("torch")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("trl", minversion="1.16")
    import transformers
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer
    from trl.trainer.utils import add_fused_lm_head

LLAMA = {
    "vocab_size": 336,  # that of the tiny runs' tokenizer
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
}
NAME = "LlamaForCausalLM"
CONFIG = config_from_hf(LLAMA, "llama")
PROMPTS, K, P, N, TEMPERATURE = 3, 4, 5, 6, 0.7
OUTPUTS = ("log_probs", "entropy", "mean_logits")


def identity(x, *args, **kwargs):
    return x


def make_llama(seed, temperature=1.0, near=None):
    """(TRL's model, our parameters) of random weights; `near` moves those of another one a little."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    if near is not None:
        for mine, other in zip(model.parameters(), near.parameters(), strict=True):
            mine.data = other.data.float() + 0.1 * mine.data * (mine.dim() > 1)
    params = load_state({name: x.numpy() for name, x in model.state_dict().items()}, NAME, CONFIG)
    add_fused_lm_head(model, temperature=temperature, outputs=OUTPUTS)
    return model.double(), params


def stand_in(cls, **settings):
    """What a trainer's loss reads of it on one process, with its own forward pass."""
    accelerator = types.SimpleNamespace(
        device="cpu",
        num_processes=1,
        is_main_process=True,
        gather=identity,
        gather_for_metrics=identity,
        reduce=identity,
        autocast=warnings.catch_warnings,  # a context that changes nothing
    )
    trainer = types.SimpleNamespace(
        accelerator=accelerator,
        model=types.SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
        **settings,
    )
    for name in ("_get_per_token_logps_and_entropies", "_compute_kl_logps"):
        if hasattr(cls, name):
            setattr(trainer, name, types.MethodType(getattr(cls, name), trainer))
    return trainer


def assert_same(value, gradient, loss, model):
    """The loss to 1e-5, and the gradient to 1e-5 of its largest entry, tensor by tensor."""
    assert abs(loss.item()) > 1e-2
    assert float(value) == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    loss.backward()
    mine = save_state(jax.device_get(gradient), NAME, CONFIG)
    theirs = {name: x.grad.numpy() for name, x in model.named_parameters()}
    assert mine.keys() == theirs.keys()
    largest = max(np.abs(x).max() for x in theirs.values())
    assert largest > 1e-2
    for name, wanted in theirs.items():
        np.testing.assert_allclose(mine[name], wanted, rtol=0, atol=1e-5 * largest, err_msg=name)


def sequences_of(batch, segments):
    """The sequences that an unpaired batch counts, in its order: padded tokens, attention mask, completion mask."""
    found = []
    for row in range(len(batch.tokens)):
        for place in np.flatnonzero(batch.weight[row]):
            here = batch.segment_ids[row] == segments[row][place]
            assert segments[row][place] > 0
            found.append((batch.tokens[row][here], batch.loss_mask[row][here] > 0))
    width = max(len(tokens) for tokens, _ in found)
    out = torch.zeros(3, len(found), width, dtype=torch.long)
    for i, (tokens, mask) in enumerate(found):
        n = len(tokens)
        out[0, i, :n], out[1, i, :n] = torch.tensor(tokens), 1
        out[2, i, :n] = torch.tensor(mask)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["kto", "apo_zero_unpaired"])
def test_kto(variant, runs, tmp_path):
    policy, params = make_llama(0)
    reference, frozen = make_llama(1, near=policy)
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        batch = everything(opened("kto", runs, tmp_path))
        options = kto.KTOConfig(beta=0.3, variant=variant, desirable_weight=1.4, undesirable_weight=0.7)
        arrays = jax.tree.map(jnp.asarray, batch)
        total = kto.STAGE.total(CONFIG, options)(params, arrays, {})
        loss = kto.STAGE.objective(CONFIG, options)
        grad = jax.jit(jax.value_and_grad(lambda x: loss(x, arrays, total, {"reference": frozen})[0]))
        value, gradient = grad(params)

    names = ("input_ids", "attention_mask", "completion_mask")
    inputs = dict(zip(names, sequences_of(batch, batch.completion), strict=True))
    mismatched = zip(names, sequences_of(batch, batch.mismatched), strict=True)
    inputs |= {f"KL_{name}": x for name, x in mismatched}
    inputs["label"] = torch.tensor(batch.desirable[batch.weight > 0] > 0)
    assert 0 < inputs["label"].sum() < len(inputs["label"]) == batch.weight.sum()
    trainer = stand_in(
        KTOTrainer,
        loss_type=variant,
        calculate_KL=variant == "kto",
        precompute_ref_logps=False,
        ref_model=reference,
        beta=0.3,
        desirable_weight=1.4,
        undesirable_weight=0.7,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer.model = policy.train()
    reference.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL asks transformers for an attribute that is to be renamed
        theirs = KTOTrainer._compute_loss(trainer, policy, inputs, False)
    assert variant != "kto" or trainer._metrics["train"]["kl"][0] > 0
    assert_same(value, gradient, theirs, policy)


def sampled():
    """Prompts [G, P], their completions [G k, N], rewards, some of them of one group alike."""
    rng = np.random.default_rng(0)
    place = np.arange(P)[None]
    start = rng.integers(0, P - 1, (PROMPTS, 1))
    live = place >= start
    prompts = PromptBatch(
        tokens=np.where(live, rng.integers(8, 300, live.shape), 0).astype(np.int32),
        positions=np.where(live, place - start, 0).astype(np.int32),
        segment_ids=live.astype(np.int32),
        rows=np.arange(PROMPTS, dtype=np.int32),
    )
    mask = np.arange(N)[None] < rng.integers(1, N + 1, (PROMPTS * K, 1))
    tokens = np.where(mask, rng.integers(8, 300, mask.shape), 0).astype(np.int32)
    mask = mask.astype(np.float32)
    stopped = np.ones(len(mask), bool)
    scores = rng.normal(1, 2, PROMPTS * K).astype(np.float32)
    return prompts, Completions(tokens, mask, np.zeros_like(mask), stopped), scores


def compare_on_policy(stage, options, cls, advantages_of, **settings):
    """One update on completions of an older policy: ours from the scores on, theirs from given advantages."""
    old, old_params = make_llama(2, TEMPERATURE)
    policy, params = make_llama(3, TEMPERATURE, near=old)
    reference, ref_params = make_llama(4, TEMPERATURE, near=old)
    prompts, completions, scores = sampled()
    needs = stage.STAGE.reference(options)

    @jax.jit
    def ours(params, old_params, ref_params):
        scored = score_completions(
            old_params,
            None,
            ref_params if needs else None,
            None,
            *arrays,
            model=CONFIG,
            temperature=TEMPERATURE,
        )
        rollout, _, _ = stage.STAGE.credit(scored, jnp.asarray(scores), arrays[1], {}, options)
        total = stage.STAGE.total(CONFIG, options)(params, rollout, {})
        loss = stage.STAGE.objective(CONFIG, options)
        return jax.value_and_grad(lambda x: loss(x, rollout, total, {})[0])(params)

    arrays = jax.tree.map(jnp.asarray, (prompts, completions))
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        value, gradient = ours(params, old_params, ref_params)

    trainer = stand_in(cls, **settings)
    ids = np.repeat(prompts.tokens, K, axis=0), completions.tokens
    masks = np.repeat(prompts.segment_ids, K, axis=0), completions.mask
    ids, masks = (tuple(torch.tensor(x).long() for x in pair) for pair in (ids, masks))

    def logps(model):
        given = (torch.cat(ids, 1), torch.cat(masks, 1), N)
        with torch.no_grad():
            return cls._get_per_token_logps_and_entropies(trainer, model, *given)[0]

    old_logps, ref_logps = logps(old), logps(reference)
    inputs = {
        "prompt_ids": ids[0],
        "prompt_mask": masks[0],
        "completion_ids": ids[1],
        "completion_mask": masks[1],
        "old_per_token_logps": old_logps,
        "old_logps": (old_logps * masks[1]).sum(1),
        "ref_per_token_logps": ref_logps,
        "advantages": advantages_of(torch.tensor(scores).double(), old_logps, ref_logps, masks[1]),
        "num_items_in_batch": masks[1].sum(),
    }
    assert_same(value, gradient, cls._compute_loss(trainer, policy.train(), inputs), policy)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("level, importance", [("token", "token"), ("sequence", "sequence_mean")])
def test_grpo(loss_type, level, importance):
    options = grpo.GRPOConfig(
        reward="unused:f",
        group_size=K,
        num_iterations=2,  # the policy has moved since it sampled
        beta=0.2,
        clip=0.1,
        clip_high=0.3,
        loss_type=loss_type,
        importance=importance,
        sampling=SamplingConfig(max_new_tokens=N, temperature=TEMPERATURE),
    )

    def advantages(scores, *_):
        groups = scores.view(-1, K)
        return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)

    compare_on_policy(
        grpo,
        options,
        GRPOTrainer,
        advantages,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=0.2,
        epsilon_low=0.1,
        epsilon_high=0.3,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        current_gradient_accumulation_steps=1,
        max_completion_length=N,
        _entropy_bonus_enabled=False,
    )


def test_rloo():
    options = rloo.RLOOConfig(
        reward="unused:f",
        group_size=K,
        kl_coef=0.3,
        clip=0.2,
        clip_high=0.4,
        sampling=SamplingConfig(max_new_tokens=N, temperature=TEMPERATURE),
    )

    def advantages(scores, old_logps, ref_logps, mask):
        """As TRL has them: the KL of a completion is taken off its reward, then the mean of the others."""
        rewards = (scores - 0.3 * ((old_logps - ref_logps) * mask).sum(1)).view(-1, K)
        return (rewards - (rewards.sum(1, keepdim=True) - rewards) / (K - 1)).view(-1)

    compare_on_policy(rloo, options, RLOOTrainer, advantages, epsilon_low=0.2, epsilon_high=0.4)
