"""A task with a known answer: PPO, RLOO and DPO must end at the optimum of the KL-regularised objective.

    max_π E_π[r(y)] - β KL(π ‖ π_ref)    is solved by    π*(y) = π_ref(y) exp(r(y) / β) / Z

(arXiv 2305.18290, eq. 4). With 8 tokens and completions of exactly 3 there are 512 of them, few enough to
compute KL(π ‖ π*) exactly, in float64. The stages run as they are, their losses, sampler and optimizer
included; only files are replaced by what is made here.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxalign import parallel
from jaxalign.data import DataConfig, PairBatch, PromptBatch, Records, dataset_from_records
from jaxalign.losses import running_moments
from jaxalign.models import ModelConfig, Params, init_params
from jaxalign.models.scoring import score_tokens
from jaxalign.rl.rollout import score_completions
from jaxalign.sampling.generate import Completions
from jaxalign.stages import default_config, distill, dpo, grpo, parse_config, ppo, rloo
from jaxalign.training import loop
from jaxalign.training.open import Run, count_updates
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.saved_model import find_model, save_model

LETTERS = "abcdefgh"
PROMPT, NEW = "ab", 3
BETA = 0.5
TOLERANCE = 0.02  # nats
K = 8  # completions of a group
COMPLETIONS = np.array(list(itertools.product(range(len(LETTERS)), repeat=NEW)))  # [512, 3]
MODEL = ModelConfig(
    vocab_size=len(LETTERS),
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    mlp_dim=64,
    max_length=8,
    tie_embeddings=False,
    init_std=0.2,  # large, so that the reference is far from uniform
)


class Letters:
    """A `Tokenizer` of eight letters in which nothing ends a completion."""

    vocab_size = len(LETTERS)
    pad_id = 0  # a letter, too: masks may not depend on it
    bos_id = None
    eos_ids = ()
    template = None
    control_ids: dict[str, int] = {}  # noqa: RUF012
    special_tokens: dict[str, str] = {}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(LETTERS[i] for i in ids)

    decode_answer = decode

    def special_id(self, token: str) -> int:
        raise NotImplementedError

    def save(self, path: str | pathlib.Path) -> None:
        (pathlib.Path(path) / "tokenizer.txt").write_text(LETTERS)


def reward(prompt: str, completion: str) -> float:
    """A letter's own worth, and what only letters together have: a rhyme, a rise, a taboo."""
    x, y, z = Letters().encode(completion)
    rhyme, rise, taboo = x == z, x < y < z, (x + y + z) % 4 == 0
    return 0.1 * (x - y) + 1.0 * rhyme + 0.5 * rise - 0.7 * taboo


REWARDS = np.array([reward(PROMPT, Letters().decode(y)) for y in COMPLETIONS])


def every_sequence() -> np.ndarray:
    """The prompt followed by each completion: int32 [512, 5]."""
    prompt = np.tile(Letters().encode(PROMPT), (len(COMPLETIONS), 1))
    return np.concatenate((prompt, COMPLETIONS), axis=1).astype(np.int32)


def all_completions() -> tuple[PromptBatch, Completions]:
    """The same as if they had been sampled."""
    E, shape = len(COMPLETIONS), (len(COMPLETIONS), len(PROMPT))
    prompts = PromptBatch(
        tokens=jnp.asarray(every_sequence()[:, : len(PROMPT)]),
        positions=jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape),
        segment_ids=jnp.ones(shape, jnp.int32),
        rows=jnp.zeros(E, jnp.int32),
    )
    ones = jnp.ones(COMPLETIONS.shape, jnp.float32)
    return prompts, Completions(jnp.asarray(COMPLETIONS, jnp.int32), ones, -ones, jnp.zeros(E, bool))


def group_settings(stage: str, own: dict[str, Any]) -> dict[str, Any]:
    """A run of a stage that compares the completions of a prompt in groups of K."""
    return {
        "num_steps": 400,  # twice PPO's: without a critic the estimate of the gradient is noisier
        "batch_size": 512,
        "optimizer": {"learning_rate": 3e-3, "schedule": "linear"},
        stage: own
        | {
            "reward": f"{__name__}:reward",
            "sampling": {"max_new_tokens": NEW},
            "group_size": K,
            "num_iterations": 2,
            "num_minibatches": 2,
        },
    }


def completion_logp(params: Params) -> jax.Array:
    """log π(y) of all completions: float32 [512]."""
    tokens = every_sequence()
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    logp = score_tokens(params, MODEL, tokens, positions, np.ones_like(tokens)).logp
    return logp[:, -NEW:].sum(1)


def log_probabilities(params: Params) -> np.ndarray:
    """The same as float64, checked to be a distribution."""
    logp = np.asarray(jax.jit(completion_logp)(params), np.float64)
    np.testing.assert_allclose(np.exp(logp).sum(), 1.0, atol=1e-5)
    return logp


def optimum(ref_logp: np.ndarray, beta: float) -> np.ndarray:
    logits = ref_logp + REWARDS / beta
    return logits - np.log(np.exp(logits).sum())


def kl(logp: np.ndarray, other: np.ndarray) -> float:
    return float(np.sum(np.exp(logp) * (logp - other)))


def open_run(stage: str, workdir: pathlib.Path, mesh: jax.sharding.Mesh, settings: dict[str, Any]) -> Run:
    """A run from a random reference, as `training.run.open_run` makes one, with letters for tokens."""
    values = default_config(stage)
    # What opening a run would find.
    values.optimizer.learning_rate, values.batch_size, values.num_microbatches = 3e-4, 32, 1
    if "critic_learning_rate" in values[stage]:
        values[stage].critic_learning_rate = 1e-5
    if "pack_completions" in values[stage]:
        values[stage].pack_completions = False  # hundreds of steps, all of a few tokens
    values.update(settings)
    config = parse_config(values)
    updates = count_updates(config, config.num_steps)
    folder = workdir / "reference"
    save_model(folder, init_params(jax.random.key(3), MODEL), MODEL, Letters(), scalar=False, meta={})
    prompts = Records([{"prompt": PROMPT}], "prompts")
    return Run(
        config=config,
        workdir=workdir / stage,
        mesh=mesh,
        model=MODEL,
        tokenizer=Letters(),
        source=find_model(str(folder), "config.model.init_from"),
        train=dataset_from_records([prompts], DataConfig(max_length=4), Letters(), "prompt"),
        held_out=None,
        steps=config.num_steps,
        optimizer=make_optimizer(config.optimizer, updates),
        schedule=make_schedule(config.optimizer, updates),
    )


def preferences(rng: np.random.Generator, rows: int) -> PairBatch:
    """Every completion once, packed into rows, compared within a row in both orders.

    A pair weighs what Bradley–Terry gives its order, so the labels carry no sampling noise.
    """
    order = rng.permutation(len(COMPLETIONS)).reshape(rows, -1)
    S, length = order.shape[1], len(PROMPT) + NEW
    tokens = np.concatenate((np.tile(Letters().encode(PROMPT), (rows, S, 1)), COMPLETIONS[order]), axis=-1)

    def packed(per_token: np.ndarray, dtype: type) -> np.ndarray:
        return np.broadcast_to(per_token, (rows, S, length)).reshape(rows, -1).astype(dtype)

    chosen, rejected = np.array(list(itertools.permutations(range(S), 2))).T
    gap = REWARDS[order[:, chosen]] - REWARDS[order[:, rejected]]
    return PairBatch(
        tokens=packed(tokens, np.int32),
        positions=packed(np.arange(length), np.int32),
        segment_ids=packed(np.arange(1, S + 1)[:, None], np.int32),
        loss_mask=packed(np.arange(length) >= len(PROMPT), np.float32),
        rows=order.astype(np.int32),
        chosen=np.tile(chosen + 1, (rows, 1)).astype(np.int32),
        rejected=np.tile(rejected + 1, (rows, 1)).astype(np.int32),
        weight=(1 / (1 + np.exp(-gap))).astype(np.float32),
        margin=np.zeros(gap.shape, np.float32),
        ref_logp=np.zeros(order.shape, np.float32),
    )


@pytest.fixture
def _compiled_well() -> Iterator[None]:
    """For what runs for hundreds of steps of 512 completions."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def mesh() -> Iterator[jax.sharding.Mesh]:
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])) as mesh:
        yield mesh


def check_optimal(params: Params, reference: Params, record_property: Callable[[str, object], None]) -> None:
    reached = kl(log_probabilities(params), optimum(log_probabilities(reference), BETA))
    record_property("kl_to_optimum_nats", reached)
    print(f"KL(policy || optimum) = {reached:.5f} nats")
    assert reached <= TOLERANCE


@pytest.mark.slow
def test_only_the_optimum_is_within_tolerance(mesh: jax.sharding.Mesh, tmp_path: pathlib.Path) -> None:
    ref_logp = log_probabilities(open_run("dpo", tmp_path, mesh, {"num_steps": 1}).load_init())
    best = optimum(ref_logp, BETA)
    entropy = -np.sum(np.exp(ref_logp) * ref_logp)
    assert entropy < np.log(len(COMPLETIONS)) - 1
    # A model of r that adds up one number a letter and place misses more than half of its variance.
    letters = np.eye(len(LETTERS))[COMPLETIONS].reshape(len(COMPLETIONS), -1)
    additive = letters @ np.linalg.lstsq(letters, REWARDS, rcond=None)[0]
    assert np.var(REWARDS - additive) > 0.5 * np.var(REWARDS)
    uniform = np.full_like(ref_logp, -np.log(len(COMPLETIONS)))
    elsewhere = [
        ref_logp,
        optimum(uniform, BETA),
        optimum(ref_logp, 0.8 * BETA),
        optimum(ref_logp, 1.25 * BETA),
    ]
    assert min(kl(other, best) for other in elsewhere) > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("estimator", ["k1", "k3", "exact"])  # k2 is biased, by design
def test_ppo_follows_the_gradient_of_the_objective(estimator: str, whiten: bool) -> None:
    """Over all completions, each weighted by its probability, the expectation is exact.

    Whitened rewards, of completions of equal length, change the gradient by a factor alone.
    """
    policy, reference = (init_params(jax.random.key(seed), MODEL) for seed in (4, 3))
    critic = init_params(jax.random.key(5), MODEL, scalar=True)
    options = ppo.PPOConfig(
        reward="unused:f",
        kl_estimator=estimator,
        whiten_rewards=whiten,
        lam=1.0,
        whiten_advantages=False,
    )
    logp = log_probabilities(policy)
    E = len(COMPLETIONS)
    prompts, completions = all_completions()

    @jax.jit
    def ppo_gradient(policy: Params) -> Params:
        models = {"model": MODEL, "critic_model": MODEL, "reward_config": None}
        scored = score_completions(
            policy,
            critic,
            reference,
            None,
            prompts,
            completions,
            temperature=1.0,
            kl_estimator=estimator,
            **models,
        )
        scores, beta = jnp.asarray(REWARDS, jnp.float32), jnp.float32(BETA)
        rollout, _, _ = ppo.assign_advantages(
            scored, scores, completions, beta, running_moments.init(), options=options
        )
        weight = jnp.asarray(E * np.exp(logp), jnp.float32)[:, None]
        rollout = rollout.replace(advantages=rollout.advantages * weight)
        total = ppo.STAGE.total(MODEL, options)(policy, rollout, {})
        loss = ppo.STAGE.objective(MODEL, options)
        return jax.grad(lambda params: loss(params, rollout, total, {})[0])(policy)

    @jax.jit
    def objective_gradient(policy: Params) -> Params:
        def per_token(params: Params) -> jax.Array:
            mine, ref = completion_logp(params), completion_logp(reference)
            return jnp.sum(jnp.exp(mine) * (jnp.asarray(REWARDS, jnp.float32) - BETA * (mine - ref))) / NEW

        return jax.grad(per_token)(policy)

    actual, _ = ravel_pytree(ppo_gradient(policy))
    expected, _ = ravel_pytree(objective_gradient(policy))
    if whiten:
        actual, expected = actual / jnp.linalg.norm(actual), expected / jnp.linalg.norm(expected)
    # Rewards of size exp(-d), in k3, cancel in float32; with another estimator's gradient every entry is off.
    np.testing.assert_allclose(-actual, expected, atol=1e-4 * float(jnp.max(jnp.abs(expected))))


# RLOO as it is, and with what GRPO does in its place, which has the same gradient on policy but for a factor.
GROUPS = [{}, {"importance": "token", "baseline": "mean", "loss_type": "dapo"}]


@pytest.mark.slow
@pytest.mark.parametrize("settings", GROUPS, ids=["rloo", "grpo"])
def test_rloo_follows_the_gradient_of_the_objective(settings: dict[str, str]) -> None:
    """Over all completions in one group, each weighted by its probability, the expectation is exact.

    A baseline that no completion's own probability weighs is any constant, and changes nothing.
    """
    policy, reference = (init_params(jax.random.key(seed), MODEL) for seed in (4, 3))
    E = len(COMPLETIONS)
    options = rloo.RLOOConfig(reward="unused:f", group_size=E, kl_coef=BETA, **settings)
    weight = jnp.asarray(E * np.exp(log_probabilities(policy)), jnp.float32)[:, None]
    prompts, completions = all_completions()

    @jax.jit
    def rloo_gradient(policy: Params) -> Params:
        scored = score_completions(policy, None, reference, None, prompts, completions, model=MODEL)
        rollout, _, _ = rloo.credit(scored, jnp.asarray(REWARDS, jnp.float32), completions, {}, options)
        rollout = rollout.replace(advantages=rollout.advantages * weight)
        total = rloo.STAGE.total(MODEL, options)(policy, rollout, {})
        loss = rloo.STAGE.objective(MODEL, options)
        return jax.grad(lambda params: loss(params, rollout, total, {})[0])(policy)

    @jax.jit
    def objective_gradient(policy: Params) -> Params:
        def objective(params: Params) -> jax.Array:
            mine, ref = completion_logp(params), completion_logp(reference)
            return jnp.sum(jnp.exp(mine) * (jnp.asarray(REWARDS, jnp.float32) - BETA * (mine - ref)))

        return jax.grad(objective)(policy)

    # Leaving one out makes of a score less the mean k / (k - 1) of it; dapo divides by tokens, not by completions.
    factor = 1 / NEW if settings else E / (E - 1)
    actual, _ = ravel_pytree(rloo_gradient(policy))
    expected, _ = ravel_pytree(objective_gradient(policy))
    np.testing.assert_allclose(
        -actual, factor * expected, atol=1e-4 * factor * float(jnp.max(jnp.abs(expected)))
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_well")
def test_rloo_reaches_the_optimum(
    mesh: jax.sharding.Mesh, tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    run = open_run("rloo", tmp_path, mesh, group_settings("rloo", {"kl_coef": BETA}))
    loop.train(rloo.STAGE.build(run), quiet=True)
    check_optimal(find_model(str(run.workdir), "workdir").load(mesh), run.load_init(), record_property)


def forward_kl_optimum(ref_logp: np.ndarray, beta: float) -> np.ndarray:
    """Where the gradient of E[r] less beta times GRPO's KL term is 0: log π of all completions.

    Sampled from π, the gradient of exp(-d) - 1 + d at a token is that of KL(π_ref ‖ π) at it. So in each state
    π(a) (Q(a) - V) + beta (π_ref(a) - π(a)) = 0: with λ = V + beta, π(a) = beta π_ref(a) / (λ - Q(a)).
    """
    logp = ref_logp.reshape((len(LETTERS),) * NEW)
    value, steps = REWARDS.reshape(logp.shape), []
    for _ in range(NEW):
        prefix = np.log(np.exp(logp).sum(-1))
        ref = np.exp(logp - prefix[..., None])
        low, high = (
            value.max(-1),
            value.max(-1) + beta,
        )  # λ lies between: the sum is at most 1 at the upper end
        for _ in range(100):
            middle = (low + high) / 2
            above = (beta * ref / (middle[..., None] - value)).sum(-1) > 1
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        steps.append(np.log(beta * ref / (high[..., None] - value)))
        value, logp = high - beta, prefix
    first, second, third = reversed(steps)
    return (first[:, None, None] + second[:, :, None] + third).reshape(-1)


def grpo_value_and_gradient(reference: Params) -> Callable[[Params], tuple[jax.Array, Params]]:
    """GRPO's loss over all completions, each as often as the policy samples it, and its gradient."""
    own = {"beta": BETA, "scale": "none", "loss_type": "dapo"}
    options = grpo.GRPOConfig(reward="unused:f", group_size=len(COMPLETIONS), **own)
    prompts, completions = all_completions()
    loss = grpo.STAGE.objective(MODEL, options)

    def value_and_gradient(policy: Params) -> tuple[jax.Array, Params]:
        scored = score_completions(policy, None, reference, None, prompts, completions, model=MODEL)
        rollout, _, _ = grpo.credit(scored, jnp.asarray(REWARDS, jnp.float32), completions, {}, options)
        often = len(COMPLETIONS) * jnp.exp(completion_logp(policy))
        rollout = rollout.replace(mask=rollout.mask * often[:, None])
        total = grpo.STAGE.total(MODEL, options)(policy, rollout, {})
        return jax.value_and_grad(lambda params: loss(params, rollout, total, {})[0])(policy)

    return jax.jit(value_and_gradient)


@pytest.mark.slow
def test_grpo_follows_the_gradient_of_its_own_objective() -> None:
    """Its KL is not PPO's: at each token it is that of the reference from the policy, and not through sampling."""
    policy, reference = (init_params(jax.random.key(seed), MODEL) for seed in (4, 3))

    def conditional(params: Params) -> list[jax.Array]:
        """The log-probabilities of each letter after every beginning, and before these those of the beginnings."""
        joint = completion_logp(params).reshape((len(LETTERS),) * NEW)
        begun = [jax.nn.logsumexp(joint, axis=tuple(range(n, NEW))) for n in range(NEW)] + [joint]
        return [begun[n + 1] - begun[n][..., None] for n in range(NEW)] + begun[:NEW]

    @jax.jit
    def objective_gradient(policy: Params) -> Params:
        ref = conditional(reference)[:NEW]

        def per_token(params: Params) -> jax.Array:
            found = conditional(params)
            mine, begun = found[:NEW], jax.lax.stop_gradient(found[NEW:])
            apart = [
                jnp.sum(jnp.exp(begun[n]) * jnp.sum(jnp.exp(ref[n]) * (ref[n] - mine[n]), -1))
                for n in range(NEW)
            ]
            earned = jnp.sum(jnp.exp(completion_logp(params)) * jnp.asarray(REWARDS, jnp.float32))
            return (earned - BETA * sum(apart)) / NEW

        return jax.grad(per_token)(policy)

    _, gradient = grpo_value_and_gradient(reference)(policy)
    actual, _ = ravel_pytree(gradient)
    expected, _ = ravel_pytree(objective_gradient(policy))
    np.testing.assert_allclose(-actual, expected, atol=1e-4 * float(jnp.max(jnp.abs(expected))))


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_well")
def test_grpo_ends_at_the_optimum_of_its_own_kl(record_property: Callable[[str, object], None]) -> None:
    """By its exact gradient: to reach it by sampling takes more steps than are worth waiting for."""
    reference = init_params(jax.random.key(3), MODEL)
    optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, 800))
    gradient = grpo_value_and_gradient(reference)

    @jax.jit
    def step(params: Params, state: Any) -> tuple[Params, Any]:
        updates, state = optimizer.update(gradient(params)[1], state)
        return optax.apply_updates(params, updates), state

    params, state = reference, optimizer.init(reference)
    for _ in range(800):
        params, state = step(params, state)
    reached, ref_logp = log_probabilities(params), log_probabilities(reference)
    best = forward_kl_optimum(ref_logp, BETA)
    np.testing.assert_allclose(np.exp(best).sum(), 1, atol=1e-9)
    record_property("kl_to_optimum_nats", kl(reached, best))
    print(f"KL(policy || optimum) = {kl(reached, best):.5f} nats")
    assert kl(reached, best) <= TOLERANCE
    others = ref_logp, optimum(ref_logp, BETA), forward_kl_optimum(ref_logp, 0.75 * BETA)
    assert min(kl(other, best) for other in others) > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_distillation_reaches_the_teacher(
    kind: str, mesh: jax.sharding.Mesh, tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    teacher = init_params(jax.random.key(4), MODEL)
    save_model(tmp_path / "teacher", teacher, MODEL, Letters(), scalar=False, meta={})
    settings = {
        "num_steps": 200,
        "batch_size": 64,
        "optimizer": {"learning_rate": 3e-3, "schedule": "linear"},
        "distill": {
            "teacher": str(tmp_path / "teacher"),
            "divergence": kind,
            "sampling": {"max_new_tokens": NEW},
        },
    }
    run = open_run("distill", tmp_path, mesh, settings)
    before = kl(log_probabilities(run.load_init()), log_probabilities(teacher))
    loop.train(distill.STAGE.build(run), quiet=True)
    trained = log_probabilities(find_model(str(run.workdir), "workdir").load(mesh))
    reached = kl(trained, log_probabilities(teacher))
    record_property("kl_to_teacher_nats", reached)
    print(f"KL(student || teacher) = {before:.5f} before, {reached:.5f} nats after")
    assert reached <= TOLERANCE < before


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_well")
def test_ppo_reaches_the_optimum(
    mesh: jax.sharding.Mesh, tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    # Advantages vanish at the optimum, where r - β log π/π_ref is constant; whitened, they would stay noise of size 1.
    settings = {
        "num_steps": 120,
        "batch_size": 512,
        "optimizer": {"learning_rate": 3e-3, "schedule": "linear"},
        "ppo": {
            "reward": f"{__name__}:reward",
            "sampling": {"max_new_tokens": NEW},
            "kl_coef": BETA,
            "whiten_advantages": False,
            "value_clip": None,
            "critic_learning_rate": 4e-3,
            "ppo_epochs": 2,
            "num_minibatches": 2,
        },
    }
    run = open_run("ppo", tmp_path, mesh, settings)
    loop.train(ppo.STAGE.build(run), quiet=True)
    trained = find_model(str(run.workdir), "workdir").load(mesh)
    check_optimal(trained, run.load_init(), record_property)


@pytest.mark.slow
@pytest.mark.usefixtures("_compiled_well")
def test_dpo_reaches_the_optimum(
    mesh: jax.sharding.Mesh, tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
    settings = {
        "num_steps": 200,
        "batch_size": 16,
        "optimizer": {"learning_rate": 3e-3, "schedule": "linear"},
        "dpo": {"beta": BETA},
    }
    run = open_run("dpo", tmp_path, mesh, settings)
    stage = dpo.STAGE.build(run)
    ((_, update),) = stage.phases
    rng = np.random.default_rng(0)
    state = stage.init()
    stage.verify(state, run.put(preferences(rng, run.config.batch_size)))
    for _ in range(run.steps):
        state, _ = update(state, run.put(preferences(rng, run.config.batch_size)))
    check_optimal(stage.params(state), run.load_init(), record_property)
