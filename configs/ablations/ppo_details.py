"""Which details of PPO matter? Ten of "The N implementation details of RLHF with PPO", screened together."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.ablation import (
    Chart,
    Claim,
    Outcome,
    Study,
    Trial,
    Tuning,
    assign,
    contrast,
    plackett_burman,
    table_of,
)
from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.sequences import (
    LENGTH,
    PROMPTS,
    SEQUENCES,
    VOCABULARY,
    WIDTH,
    Params,
    demonstrate,
    habits,
    learn_start,
    measure,
    read,
    reward,
    sample,
    token_logps,
)
from jaxalign.losses import running_moments
from jaxalign.models.scoring import Scores
from jaxalign.sampling.generate import Completions
from jaxalign.stages.ppo import PPOConfig, assign_advantages, critic_loss, loss
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer

LIKELY = 0.6  # of the demonstrators' token at each place; the others share the rest
ROLLOUTS, EPISODES = 80, 64  # completions of a rollout
BETA = 0.05
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
NO_CLIP = 1e16  # a ratio is never so large
SMALLEST = 0.02  # effect that counts


class Detail(NamedTuple):
    """A detail: its two levels, and what is said of it."""

    key: str  # of PPO's or the optimizer's settings
    usual: Any  # the level as the papers have it
    other: Any
    claim: str
    says: str
    paper: str


BLOG = "in OpenAI's code (blog"
DETAILS = (
    Detail(
        "whiten_advantages", True, False, "advantages are whitened",
        "advantages of mean 0 and variance 1 over a rollout reach more",
        "70.6 % to 71.6 % (2404.10719, Table 3); " + BLOG + ", policy 9)",
    ),
    Detail(
        "whiten_rewards", True, False, "rewards are whitened",
        "rewards divided by their deviation over a rollout reach more",
        BLOG + ", policy 9); left out of the main runs of 2403.17031",
    ),
    Detail(
        "value_clip", 0.2, None, "values are clipped", "a critic whose change is clipped to .2 reaches more",
        BLOG + ", policy 10)",
    ),
    Detail(
        "clip", 0.2, NO_CLIP, "ratios need no clipping", "whether ratios are clipped to 1 ± .2 makes no difference",
        "without clipping as good or better (2402.14740)",
    ),
    Detail(
        "lam", 0.95, 1.0, "λ = 1 before .95", "without any bootstrapping from the critic PPO reaches more",
        "rewards fall as λ goes from 1 to 0 (2402.14740)",
    ),
    Detail(
        "ppo_epochs", 4, 1, "four epochs",
        "four passes over each rollout reach more than one, from as many completions",
        "four in OpenAI's code (blog) and in 2403.17031",
    ),
    Detail(
        "num_minibatches", 1, 4, "one minibatch",
        "updates on the whole rollout reach more than four times as many on quarters of it",
        "one in 2403.17031; 8 in 2203.02155",
    ),
    Detail(
        "eps", 1e-5, 1e-8, "Adam's ε is large", "ε of 1e-5 reaches more than 1e-8, as it holds the first updates back",
        "KL grows sixfold where ε weighs less in the first updates (blog)",
    ),
    Detail(
        "schedule", "linear", "constant", "the rate is annealed",
        "a learning rate that falls to 0 in a line reaches more than a constant one",
        BLOG + ", general 5)",
    ),
    Detail(
        "zero_head", True, False, "values are 0 at first",
        "a critic whose head begins with 0 reaches more than with N(0, 1/√(d + 1))",
        BLOG + ", policy 2)",
    ),
)  # fmt: skip
OF_OPTIMIZER = ("eps", "schedule")
DESIGN = plackett_burman(mirrored=True)
SETTINGS = assign({x.key: (x.usual, x.other) for x in DETAILS}, DESIGN)
ROWS = tuple({"row": row + 1} for row in range(len(DESIGN)))


@dataclasses.dataclass(frozen=True)
class Way:
    """How an arm learns."""

    ppo: PPOConfig
    optimizer: OptimizerConfig
    zero_head: bool


def way_of(row: int) -> Way:
    """The settings of a row of the design."""
    levels = dict(SETTINGS[row - 1])
    zero_head = levels.pop("zero_head")
    optimizer = {key: levels.pop(key) for key in OF_OPTIMIZER}
    # The rate that is tuned is multiplied in afterwards.
    adam = OptimizerConfig(learning_rate=1.0, b2=0.999, **optimizer)
    return Way(PPOConfig(kl_coef=BETA, **levels), adam, zero_head)


class Drawn(NamedTuple):
    """A rollout before credit is given."""

    prompts: jax.Array  # [E]
    scored: dict[str, jax.Array]  # what models say of its tokens
    scores: jax.Array  # [E]


@jax.jit
def draw(models: dict[str, Params], start: Params, best: jax.Array, key: jax.Array) -> Drawn:
    """Samples completions, and reads them with all models."""
    prompt_key, sample_key = jax.random.split(key)
    prompts = jax.random.randint(prompt_key, (EPISODES,), 0, PROMPTS)
    tokens = sample(models["policy"], prompts, sample_key)
    logp = token_logps(models["policy"], prompts, tokens)
    log_ratios = logp - token_logps(start, prompts, tokens)
    scored = {
        "tokens": tokens,
        "positions": jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape),
        "segment_ids": jnp.ones_like(tokens),
        "mask": jnp.ones(tokens.shape),
        "old_logp": logp,
        "kl": log_ratios,
        "kl1": log_ratios,
        "old_values": read(models["critic"], prompts, tokens)[..., 0],
    }
    return Drawn(prompts, scored, reward(best, prompts, tokens))


@functools.partial(jax.jit, static_argnames="way")
def learn(
    models: dict[str, Params], state: dict[str, Any], drawn: Drawn, key: jax.Array, rate: jax.Array, way: Way
) -> tuple[dict[str, Params], dict[str, Any]]:
    """The updates of a rollout, of policy and critic; so many as the way has."""
    options, optimizer = way.ppo, make_optimizer(way.optimizer, ROLLOUTS * way.ppo.updates_per_step)
    ended = jnp.ones(EPISODES, bool)
    tokens, mask, logp = (drawn.scored[name] for name in ("tokens", "mask", "old_logp"))
    episodes, _, _ = assign_advantages(
        drawn.scored,
        drawn.scores,
        Completions(tokens, mask, logp, ended),
        jnp.float32(options.kl_coef),
        running_moments.init(),
        options=options,
    )

    def update(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        models, state = carry
        own, prompts = jax.tree.map(lambda x: x[rows], (episodes, drawn.prompts))
        total = {"episodes": own.mask.sum()}

        def of_policy(params: Params) -> jax.Array:
            return loss(Scores(logp=token_logps(params, prompts, own.tokens)), own, {}, options, total)[0]

        def of_critic(params: Params) -> jax.Array:
            values = read(params, prompts, own.tokens)[..., 0]
            return critic_loss(Scores(values=values), own, {}, options, total)[0]

        for name, objective in (("policy", of_policy), ("critic", of_critic)):
            gradient = jax.grad(objective)(models[name])
            change, moved = optimizer.update(gradient, state[name], models[name])
            change = jax.tree.map(lambda x: rate * x, change)
            models = models | {name: optax.apply_updates(models[name], change)}
            state = state | {name: moved}
        return (models, state), None

    every = jnp.broadcast_to(jnp.arange(EPISODES), (options.passes, EPISODES))
    rows = jax.random.permutation(key, every, axis=1, independent=True)
    return jax.lax.scan(update, (models, state), rows.reshape(options.updates_per_step, -1))[0]


def share(seed: int, folder: pathlib.Path) -> tuple[Params, jax.Array]:
    """What the arms of a seed begin with: a policy that answers by habit, and the best tokens."""
    del folder
    demonstrated, best = demonstrate(np.random.default_rng(seed))
    return learn_start(jax.random.key(seed), habits(jnp.asarray(demonstrated), LIKELY)), jnp.asarray(best)


def run(trial: Trial) -> Outcome:
    """Trains an arm on the prompts of a seed."""
    start, best = trial.shared
    way, rate = way_of(trial.arm["row"]), jnp.float32(trial.tuned["rate"])
    head_key, *keys = jax.random.split(jax.random.fold_in(jax.random.key(trial.seed), 2), 1 + ROLLOUTS)
    head = jnp.zeros((WIDTH, 1))
    if not way.zero_head:
        head = jax.random.normal(head_key, head.shape) / np.sqrt(WIDTH + 1)
    models = {"policy": start, "critic": start | {"out": head}}
    optimizer = make_optimizer(way.optimizer, ROLLOUTS * way.ppo.updates_per_step)
    state = {name: optimizer.init(params) for name, params in models.items()}
    found = []
    for number, key in enumerate(keys, 1):
        draw_key, order_key = jax.random.split(key)
        drawn = draw(models, start, best, draw_key)
        models, state = learn(models, state, drawn, order_key, rate, way)
        if number in (ROLLOUTS // 2, ROLLOUTS):
            found.append([float(x) for x in measure(models["policy"], start, best)])
    half, last = (gold - BETA * kl for gold, kl in found)
    gold, kl = found[-1]
    return Outcome({"objective": last, "half": half, "reward": gold, "kl": kl})


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def claim_of(column: int, detail: Detail) -> Claim:
        same, other_way = detail.key == "clip", detail.key == "lam"
        effect = contrast("objective", ROWS, -DESIGN[:, column] if other_way else DESIGN[:, column])
        near = 0.0 if same else None
        return Claim(detail.claim, detail.says, effect, SMALLEST, near=near, paper=detail.paper, seeds=20)

    return Study(
        name="ppo_details",
        title="Which details of PPO matter",
        papers=(
            "The N Implementation Details of RLHF with PPO (blog, 2023)",
            "arXiv 2403.17031",
            "arXiv 2404.10719",
            "arXiv 2402.14740",
        ),
        question=(
            "Reproductions of PPO list details that its papers leave out and its code has, from whitening to the ε of "
            "Adam. Few were tried one by one. Which of them change what PPO reaches, beyond what seeds do?"
        ),
        setting=(
            f"{PROMPTS} prompts, sequences of {LENGTH} tokens out of {VOCABULARY}, so that all {len(SEQUENCES):,} of "
            "them can be summed over: expected rewards and KL are exact. The policy, a network of width "
            f"{WIDTH}, starts from demonstrations, which have one token at each place with probability {LIKELY:g}; at "
            "half of the places another token is better. The reward is half for the right tokens, half for all of "
            "them together. PPO as this library has it, advantages, losses and AdamW alike, "
            f"β {BETA:g}, gradients clipped to norm 1, {ROLLOUTS} rollouts of {EPISODES} completions; the critic is "
            "a network of its own that begins as the policy, but for its head. "
            f"{len(DETAILS)} details have two levels each. The arms are the 12 rows of a Plackett-Burman design and "
            "their mirror images; the effect of a detail is the mean of the 12 arms with one level less that of the "
            "12 with the other, in each seed, so that every run counts for all of them, and what two details do only "
            "together falls out. A column that no detail has shows what else there is. Every arm tries the same "
            f"{len(RATES)} learning rates first, on seeds of their own, for policy and critic alike. A seed is the "
            "prompts' tokens, the networks' starts, and all that is sampled. Before the rules were written only seed "
            "300 was looked at, with each rate. A first run, on seeds 0 to 19, is not counted: it had the 12 rows "
            "without their mirror images, and the column that no detail has showed as much (.028 ± .011) as the "
            "details (at most .040).\n\n"
            f"{table_of(SETTINGS)}"
        ),
        arms=ROWS,
        seeds=tuple(range(20, 40)),
        tuning=Tuning(tuple({"rate": rate} for rate in RATES), tuple(range(210, 213)), "objective"),
        measures={
            "objective": f"expected reward less {BETA:g} of the KL to the start: what PPO maximises",
            "half": "the same after half of the rollouts",
            "reward": "expected reward, 0 to 1",
            "kl": "KL to the start, in nats",
        },
        run=run,
        share=share,
        recipes={arm_name(ROWS[-1]): "ppo_tldr_pythia_6_9b"},  # all details as they usually are
        claims=(
            *(claim_of(column, detail) for column, detail in enumerate(DETAILS)),
            Claim(
                "details act apart",
                "the column that no detail has shows nothing, as if no more than two details ever met",
                contrast("objective", ROWS, DESIGN[:, -1]),
                SMALLEST,
                near=0.0,
                paper="what a screen takes for granted",
                seeds=20,
            ),
        ),
        discussion=(
            "How many steps of Adam there are explains most of it. With one epoch in one minibatch there are 80 in "
            "all, and PPO ends at .48 in the mean over arms; with 320 at .56, with 1,280 at .59; where the rate falls "
            "to 0 fewer of them count (.39 in place of .58 with 80). 80 rollouts are no end of training here, so that "
            "epochs and minibatches help and annealing hurts; half-way annealing still helped, by .02. One arm stands "
            "apart: row 13, where all that slows learning meets, ends at .26 and moves every effect by about .02. "
            "By least squares on the other 23 arms whitened advantages (.031), epochs (.039), minibatches (-.030) and "
            "annealing (-.049) still count, and nothing else does: a head of 0 (.016), clipped ratios (.013), ε "
            "(.008), clipped values (-.001), λ (-.004) and whitened rewards (-.012) do not. In the first run, on 12 "
            "rows alone, whitened rewards cost .038 beyond doubt. That was what other details do in pairs: here, too, "
            "it is -.035 in those 12 rows, and .048 in their mirror images. A screen of 12 arms can be wrong by as "
            "much as it finds."
        ),
        charts=(
            Chart("What each detail adds", "objective", "claims", x="E[reward] - β KL"),
            Chart("Reward less β KL", "objective"),
        ),
    )
