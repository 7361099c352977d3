"""Each option of each stage changes the loss of a first update as its formula, written here in NumPy, says.

Formulas read logits of the whole vocabulary in float64; nothing of the losses, of their masks and means, or of the
alignment of tokens is shared with the stages.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp
from test_stage_invariance import episodes, everything, load, opened
from tiny import STAGES

from jaxalign import parallel
from jaxalign.losses.metrics import finalize
from jaxalign.models import hidden_states, init_head, unembedding
from jaxalign.sampling.generate import Completions
from jaxalign.stages import find_stage
from jaxalign.training.stage import Stage, token_metrics

STATES: dict = {}
SCORES: dict = {}


@pytest.fixture(scope="module")
def state(runs, tmp_path_factory):
    """(stage) -> (run, parameters of the policy and of the reference, batch, float64 logits of both)."""

    def get(stage):
        if stage in STATES:
            return STATES[stage]
        run = opened(stage, runs, tmp_path_factory.mktemp(stage))
        mesh = run.mesh
        policy, reference = load(runs / "pretrain", mesh), load(runs / "sft", mesh)
        if stage == "reward":
            policy = load(runs / "reward", mesh)
        if run.train.rows.kind == "prompt":
            critic = {"transformer": reference, "head": init_head(jax.random.key(3), run.model)}
            batch = episodes(run, {"policy": policy, "critic": critic})
        else:
            batch, critic = jax.tree.map(jnp.asarray, everything(run)), None

        def logits(params):
            body = params.get("transformer", params)
            hidden = hidden_states(body, run.model, batch.tokens, batch.positions, batch.segment_ids)[0]
            if "head" in params:
                return np.asarray(hidden, np.float64) @ np.asarray(params["head"]["kernel"], np.float64)
            return np.asarray(hidden, np.float64) @ np.asarray(unembedding(params, run.model), np.float64).T

        models = {"policy": policy, "reference": reference} | ({"critic": critic} if critic else {})
        read = {name: logits(params) for name, params in models.items()}
        STATES[stage] = run, models, batch, read
        return STATES[stage]

    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        yield get
    STATES.clear()
    SCORES.clear()


class Oracle:
    """What a batch and the logits of two models say of each token, sequence and pair."""

    def __init__(self, batch, read, temperature, bias):
        self.batch, self.bias = jax.tree.map(np.asarray, batch), bias
        self.logits = {name: logits / temperature for name, logits in read.items()}
        self.live = np.zeros(self.batch.tokens.shape, bool)
        for name, logits in read.items():
            if logits.ndim == 3:
                setattr(self, name, self.tokens(logits / temperature))
            else:
                setattr(self, name, logits)
        ids = self.batch.segment_ids
        self.live[:, 1:] = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > 0)

    def tokens(self, logits):
        """(log-probability, log-sum-exp, entropy) of what stands at each place but the first, [B, T] each."""
        lse = logsumexp(logits, axis=-1)
        logp = np.take_along_axis(logits[:, :-1], self.batch.tokens[:, 1:, None], 2)[..., 0] - lse[:, :-1]
        entropy = lse - (np.exp(logits - lse[..., None]) * logits).sum(-1)
        return tuple(np.pad(x, ((0, 0), (1, 0))) for x in (logp, lse[:, :-1], entropy[:, :-1]))

    def pairs(self):
        """(row, chosen, rejected, weight, margin) of each pair."""
        b = self.batch
        for row, place in zip(*np.nonzero(b.weight), strict=True):
            yield (
                row,
                b.chosen[row, place],
                b.rejected[row, place],
                b.weight[row, place],
                b.margin[row, place],
            )

    def sum(self, x, row, segment, mask=None):
        mask = self.batch.loss_mask if mask is None else mask
        return float((x * mask)[row][self.batch.segment_ids[row] == segment].sum())

    def length(self, row, segment, mask=None):
        return self.sum(np.ones_like(self.batch.loss_mask), row, segment, mask)


def text(o, z_loss=0.0):
    logp, lse, _ = o.policy
    mask = o.batch.loss_mask
    return ((-logp + z_loss * lse**2) * mask).sum() / mask.sum()


def reward(o, use_margin=True, centering=0.0):
    total = weights = 0.0
    for row, chosen, rejected, weight, margin in o.pairs():
        c, r = (
            o.policy[row][o.batch.segment_ids[row] == segment][-1] + o.bias for segment in (chosen, rejected)
        )
        total += weight * (-np.log(expit(c - r - margin * use_margin)) + centering * (c + r) ** 2)
        weights += weight
    return total / weights


def dpo(
    o, beta=0.1, variant="sigmoid", label_smoothing=0.0, target_margin=0.0, length_normalized=False,
    reference_free=False, nll_coef=0.0,
):  # fmt: skip
    total = weights = 0.0
    for row, chosen, rejected, weight, _ in o.pairs():
        ratio, lengths = [], []
        for segment in (chosen, rejected):
            lengths.append(o.length(row, segment))
            logratio = o.sum(o.policy[0] - (0 if reference_free else o.reference[0]), row, segment)
            ratio.append(logratio / (lengths[-1] if length_normalized or variant == "ipo_mean" else 1))
        h, e = ratio[0] - ratio[1], label_smoothing
        x = beta * h - target_margin
        value = {
            "sigmoid": -(1 - e) * np.log(expit(x)) - e * np.log(expit(-x)),
            "robust": (-(1 - e) * np.log(expit(x)) + e * np.log(expit(-x))) / (1 - 2 * e),
            "hinge": max(0.0, 1 - x),
            "ipo": (h - 1 / (2 * beta)) ** 2,
            "ipo_mean": (h - 1 / (2 * beta)) ** 2,
        }[variant]
        total += weight * (value - nll_coef * o.sum(o.policy[0], row, chosen) / lengths[0])
        weights += weight
    return total / weights


def orpo(o, coef=0.1, nll_on_prompt=False):
    nll = tokens = ratio = weights = 0.0
    for row, chosen, rejected, weight, _ in o.pairs():
        mask = o.live if nll_on_prompt else o.batch.loss_mask
        nll -= weight * o.sum(o.policy[0], row, chosen, mask)
        tokens += weight * o.length(row, chosen, mask)
        p = [o.sum(o.policy[0], row, segment) / o.length(row, segment) for segment in (chosen, rejected)]
        odds = [x - np.log1p(-np.exp(x)) for x in p]
        ratio += weight * np.log(expit(odds[0] - odds[1]))
        weights += weight
    return nll / tokens - coef * ratio / weights


def surrogate(o, clip=0.2, clip_high=None, entropy_coef=0.0):
    b = o.batch
    r = np.exp(o.policy[0] - b.old_logp)
    clipped = np.clip(r, 1 - clip, 1 + (clip if clip_high is None else clip_high))
    each = -np.minimum(r * b.advantages, clipped * b.advantages) - entropy_coef * o.policy[2]
    return (each * b.mask).sum() / b.mask.sum()


def values(o, value_clip=0.2):
    b = o.batch
    v = np.pad(o.critic[:, :-1], ((0, 0), (1, 0)))
    near = v if value_clip is None else np.clip(v, b.old_values - value_clip, b.old_values + value_clip)
    return (0.5 * np.maximum((v - b.returns) ** 2, (near - b.returns) ** 2) * b.mask).sum() / b.mask.sum()


def distill(o, divergence="reverse_kl", jsd_beta=0.5):
    p, q = (x - logsumexp(x, axis=-1)[..., None] for x in (o.logits["policy"], o.logits["reference"]))

    def kl(a, b):
        return (np.exp(a) * (a - b)).sum(-1)

    m = np.logaddexp(np.log1p(-jsd_beta) + p, np.log(jsd_beta) + q)
    each = {
        "reverse_kl": kl(p, q),
        "forward_kl": kl(q, p),
        "jsd": jsd_beta * kl(q, m) + (1 - jsd_beta) * kl(p, m),
    }[divergence]
    mask = o.batch.mask
    return (np.pad(each[:, :-1], ((0, 0), (1, 0))) * mask).sum() / mask.sum()


CASES = [
    *(("pretrain", text, {"z_loss": z}) for z in (0.0, 1e-2)),
    *(("sft", text, {"z_loss": z}) for z in (0.0, 1e-2)),
    *(("reward", reward, x) for x in ({}, {"use_margin": False}, {"centering": 0.1})),
    ("dpo", dpo, {"beta": 0.4}),
    ("dpo", dpo, {"label_smoothing": 0.1}),
    ("dpo", dpo, {"label_smoothing": 0.1, "variant": "robust"}),
    *(("dpo", dpo, {"variant": variant, "beta": 0.3}) for variant in ("hinge", "ipo", "ipo_mean")),
    ("dpo", dpo, {"target_margin": 0.5}),
    ("dpo", dpo, {"length_normalized": True}),
    ("dpo", dpo, {"reference_free": True}),
    ("dpo", dpo, {"nll_coef": 0.3}),
    *(("orpo", orpo, x) for x in ({}, {"coef": 0.7}, {"nll_on_prompt": True})),
    *(("ppo", surrogate, x) for x in ({}, {"clip": 0.1}, {"clip_high": 0.4}, {"entropy_coef": 0.3})),
    *(("ppo", values, {"value_clip": clip}) for clip in (0.2, 0.05, None)),
    *(("distill", distill, {"divergence": kind}) for kind in ("reverse_kl", "forward_kl", "jsd")),
    ("distill", distill, {"divergence": "jsd", "jsd_beta": 0.2}),
    *((stage, oracle, {"temperature": 0.6}) for stage, oracle in (("ppo", surrogate), ("distill", distill))),
]


def name_of(value):
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def loss_of(stage, run, models, batch, options, *, critic=False):
    """What the stage says, from parameters to its loss; with which options it reads alike, it reads once."""
    declared, policy = stage, models["policy"]
    if critic:
        declared = Stage("critic", stage.data, stage.options, stage.critic_loss, stage.totals, scalar=True)
        policy = models["critic"]
    frozen = dict.fromkeys(declared.frozen(options), models["reference"])
    asked = np.asarray(declared.tokens_read(batch, options) if declared.reads else 0).tobytes()
    reading = (stage.name, critic, *sorted(declared.reading(options).items()), *frozen, asked)
    if reading not in SCORES:
        SCORES[reading] = jax.jit(declared.scores(run.model, options))(policy, batch, frozen)
    scores, fixed = SCORES[reading]
    return float(declared.loss(scores, batch, fixed, options, declared.totals(batch, options))[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "formula", "changes"), CASES, ids=name_of)
def test_the_loss_is_that_of_the_formula(name, formula, changes, state):
    run, models, batch, read = state(name)
    if name == "reward":  # every second pair has a margin
        batch = batch.replace(margin=0.7 * (batch.weight > 0) * (jnp.arange(batch.weight.shape[1])[None] % 2))
    temperature = changes.get("temperature", 1.0)
    more = {key: value for key, value in changes.items() if key != "temperature"}
    options = dataclasses.replace(run.config.options, **more)
    if "temperature" in changes:
        sampling = dataclasses.replace(options.sampling, temperature=temperature)
        options = dataclasses.replace(options, sampling=sampling)
    bias = float(models["policy"]["head"]["bias"]) if name == "reward" else 0.0
    wanted = formula(Oracle(batch, read, temperature, bias), **more)
    got = loss_of(find_stage(name), run, models, batch, options, critic=formula is values)
    assert got == pytest.approx(wanted, rel=2e-5)
    default = {key: getattr(run.config.options, key) for key in more}
    if more != default or "temperature" in changes:
        other = formula(Oracle(batch, read, 1.0, bias), **default)
        assert abs(wanted - other) > 1e-3 * abs(other), "the option makes no difference here"


GROUPS = (
    {},
    {"mask_overlong": True},
    {"drop_equal_groups": True},
    {"scale": "none"},
    {"scale": "batch"},
    {"baseline": "leave_one_out"},
    {"group_size": 6},
)


@pytest.mark.slow
@pytest.mark.parametrize("changes", GROUPS, ids=str)
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_groups_become_advantages_as_by_hand(name, changes):
    k, N = changes.get("group_size", 3), 4
    stage = find_stage(name)
    settings = {"reward": "unused:f", "group_size": 3} | ({"kl_coef": 0.3} if name == "rloo" else {})
    options = stage.options(**settings | changes)
    rng = np.random.default_rng(0)
    scores = rng.normal(1, 2, 12)
    scores[:6] = scores[0]
    mask = (np.arange(N) < rng.integers(1, N + 1, (12, 1))).astype(np.float64)
    kl, stopped = rng.normal(0, 0.2, mask.shape), np.arange(12) % 4 > 0
    scored = {key: jnp.zeros(mask.shape, jnp.int32) for key in ("tokens", "positions", "segment_ids")}
    scored |= {key: jnp.zeros(mask.shape) for key in ("old_logp", "entropy", "ref_logp")}
    scored |= {"mask": jnp.float32(mask), "kl1": jnp.float32(kl), "kl": jnp.float32(kl)}
    completions = Completions(
        jnp.zeros(mask.shape, jnp.int32), jnp.float32(mask), jnp.zeros(mask.shape), stopped
    )
    rollout, _, _ = stage.credit(scored, jnp.float32(scores), completions, {}, options)

    rewards = scores - (0.3 * (kl * mask).sum(1) if name == "rloo" else 0.0)
    groups = rewards.reshape(-1, k)
    mean = groups.mean(1, keepdims=True)
    leave_out = changes.get("baseline", "leave_one_out" if name == "rloo" else "mean") == "leave_one_out"
    advantages = groups - ((groups.sum(1, keepdims=True) - groups) / (k - 1) if leave_out else mean)
    scale = changes.get("scale", "none" if name == "rloo" else "group")
    advantages = (
        advantages
        / {
            "none": 1.0,
            "batch": rewards.std(ddof=1) + 1e-4,
            "group": groups.std(1, ddof=1, keepdims=True) + 1e-4,
        }[scale]
    )
    kept = np.ones(12)
    if options.mask_overlong:
        kept *= stopped
    if options.drop_equal_groups:
        kept *= np.repeat(np.ptp(groups, axis=1) > 0, k)
    live = mask * kept[:, None] > 0
    np.testing.assert_array_equal(np.asarray(rollout.mask) > 0, live)
    wanted = np.broadcast_to(advantages.reshape(-1, 1), mask.shape)
    np.testing.assert_allclose(np.asarray(rollout.advantages)[live], wanted[live], rtol=1e-4, atol=1e-4)


# Where the other options of each stage are held to a value; a name after a dot is one stage's alone.
ELSEWHERE = {
    "test_pack_completions.test_a_run_learns_the_same": "pack_completions",
    "test_ppo_options.test_scores_become_advantages_as_by_hand": (
        "gamma lam reward_scale reward_clip missing_eos_penalty whiten_rewards whiten_advantages "
        "normalize_values value_decay"
    ),
    "test_ppo_options.test_kl_estimators_are_what_they_are_called": "kl_estimator",
    "test_ppo_options.test_kl_coef_follows_the_controller": "kl_coef kl_target kl_horizon",
    "test_ppo_options.test_average_reference_and_exported_weights_follow_the_policy": (
        "average_decay reference_rate"
    ),
    "test_ppo_options.test_early_stop_ends_the_policy_updates_of_a_rollout_only": (
        "early_stop_kl ppo_epochs num_minibatches critic_learning_rate num_iterations"
    ),
    "test_ppo_options.test_pretraining_text_is_mixed_in_with_its_weight": "ptx_coef ptx_data ptx_batch_size",
    "test_ppo_options.test_critic_starts_from_the_reward_model_or_from_zero_values": "critic_init",
    "test_trl_stages.test_kto": "kto.beta kto.variant kto.desirable_weight kto.undesirable_weight",
    "test_trl_stages.test_grpo": "grpo.beta loss_type importance grpo.clip grpo.clip_high",
    "test_trl_stages.test_rloo": "rloo.clip rloo.clip_high rloo.beta",
    "test_step_zero.test_dpo_begins_with_loss_ln2_and_no_margin": "dpo.precompute_reference",
    "test_step_zero.test_kto_begins_with_half_the_weights_and_no_margin": "kto.precompute_reference",
    "test_stage_errors.test_config_errors_name_key_value_and_way_out": "reward teacher",
    "test_ppo_options.test_scores_of_a_model_and_a_function_are_weighted": "reward_weights",
}


@pytest.mark.parametrize("stage", STAGES)
def test_no_option_is_left_out(stage):
    here = {option for name, _, changes in CASES if name == stage for option in changes}
    groups = {"group_size", "mask_overlong", "drop_equal_groups", "scale", "baseline"}
    elsewhere = {name for names in ELSEWHERE.values() for name in names.split()}
    known = here | groups | elsewhere | {name.removeprefix(f"{stage}.") for name in elsewhere}
    options = {each.name for each in dataclasses.fields(find_stage(stage).options)}
    assert options - known - {"sampling"} == set()
    for place in ELSEWHERE:
        file, test = place.split(".")
        assert f"def {test}" in (pathlib.Path(__file__).parent / f"{file}.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_metrics_of_tokens_are_trls(name, state):
    """entropy, mean_token_accuracy, logits/chosen and logits/rejected, by the definitions of TRL's trainers."""
    run, models, batch, read = state(name)
    stage, options = find_stage(name), run.config.options
    frozen = dict.fromkeys(stage.frozen(options), models["reference"])
    policy = jax.jit(stage.scores(run.model, options))(models["policy"], batch, frozen)[0]
    got = jax.tree.map(float, finalize(token_metrics(policy.statistics, batch)))
    oracle = Oracle(batch, read, 1.0, 0.0)
    mask, logits = oracle.batch.loss_mask > 0, read["policy"]
    before = np.zeros_like(mask)
    before[:, :-1] = mask[:, 1:]  # the places whose logits are about a supervised token
    assert got["entropy"] == pytest.approx(oracle.policy[2][mask].mean(), rel=1e-5)
    right = logits.argmax(-1)[before] == oracle.batch.tokens[mask]
    if name == "sft":
        assert got.keys() == {"entropy", "mean_token_accuracy"}
        assert got["mean_token_accuracy"] == pytest.approx(right.mean(), rel=1e-6) and 0 < right.mean() < 1
        return
    sides = {"chosen": np.zeros_like(mask), "rejected": np.zeros_like(mask)}
    for row, chosen, rejected, _, _ in oracle.pairs():
        sides["chosen"][row] |= mask[row] & (oracle.batch.segment_ids[row] == chosen)
        sides["rejected"][row] |= mask[row] & (oracle.batch.segment_ids[row] == rejected)
    for side, here in sides.items():
        before = np.zeros_like(here)
        before[:, :-1] = here[:, 1:]
        assert got[f"logits/{side}"] == pytest.approx(logits.mean(-1)[before].mean(), rel=1e-4, abs=1e-6)
    correct = (logits.argmax(-1)[:, :-1] == oracle.batch.tokens[:, 1:])[sides["chosen"][:, 1:]]
    assert got["mean_token_accuracy"] == pytest.approx(correct.mean(), rel=1e-6)
