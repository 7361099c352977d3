"""What of PPO is needed (arXiv 2402.14740): RLOO, plain policy gradients and PPO's parts on sequences so short that
every one of them can be looked at."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.ablation import Chart, Claim, Effect, Outcome, Study, Trial, Tuning, value
from jaxalign.ablation.effects import Arm, arm_name
from jaxalign.ablation.sequence_training import LEAVE_ONE_OUT
from jaxalign.ablation.sequences import (
    LENGTH,
    PROMPTS,
    SEQUENCES,
    VOCABULARY,
    WIDTH,
    Params,
    demonstrate,
    first_params,
    habits,
    learn_start,
    measure,
    read,
    reward,
    sample,
    token_logps,
)
from jaxalign.losses.advantages import gae, token_rewards
from jaxalign.losses.grpo import group_advantages
from jaxalign.losses.ppo import PPOObjective, policy_loss, value_loss

LIKELY = 0.6  # of the demonstrators' token at each place; the others share the rest
ROLLOUTS, EPISODES, PARTS = 80, 64, 2  # completions of a rollout, and updates on it, each on a part
BETA = 0.05
CLIP, NO_CLIP = 0.2, 1e9
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
POINTS = 10  # of a curve


@dataclasses.dataclass(frozen=True)
class Way:
    """How an arm learns from completions."""

    method: str  # "rloo", "plain", "average" or "ppo"
    samples: int = 1  # of a prompt
    lam: float = 0.95
    clip: float = CLIP


@functools.partial(jax.jit, static_argnames="way")
def train(start: Params, key: jax.Array, best: jax.Array, rate: jax.Array, way: Way) -> tuple[jax.Array, ...]:
    """Expected reward, KL and the share of what was clipped, after each of `POINTS` equal parts of the rollouts."""
    critic_key, key = jax.random.split(key)
    optimizer = optax.adam(rate)
    mask = jnp.ones((EPISODES, LENGTH))

    def credit(
        critic: Params, prompts: jax.Array, tokens: jax.Array, old: jax.Array, average: jax.Array
    ) -> tuple:
        """Advantages and returns [E, L], one a token or the same for all tokens, and what the critic says [E, L]."""
        scores = reward(best, prompts, tokens)
        log_ratios = old - token_logps(start, prompts, tokens)
        if way.method == "ppo":
            values = read(critic, prompts, tokens)[..., 0]
            rewards = token_rewards(scores, log_ratios, mask, kl_coef=BETA)
            return *gae(rewards, values, mask, gamma=1.0, lam=way.lam), values
        whole = scores - BETA * log_ratios.sum(1)
        if way.method == "rloo":
            whole = group_advantages(whole.reshape(-1, way.samples), LEAVE_ONE_OUT)[0].reshape(-1)
        elif way.method == "average":
            whole = whole - average
        return *(jnp.broadcast_to(whole[:, None], old.shape),) * 2, jnp.zeros_like(old)

    def rollout(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state, critic, critic_state, average = carry
        prompt_key, sample_key, order_key = jax.random.split(key, 3)
        prompts = jnp.repeat(
            jax.random.randint(prompt_key, (EPISODES // way.samples,), 0, PROMPTS), way.samples
        )
        tokens = sample(params, prompts, sample_key)
        old = token_logps(params, prompts, tokens)
        advantages, returns, values = credit(critic, prompts, tokens, old, average)
        average = 0.9 * average + 0.1 * returns[:, 0].mean()
        objective = PPOObjective(way.clip)
        clipped = jnp.zeros(())
        for rows in jnp.split(jax.random.permutation(order_key, EPISODES), PARTS):

            def loss(params: Params, rows: jax.Array = rows) -> tuple[jax.Array, jax.Array]:
                logp, before = token_logps(params, prompts[rows], tokens[rows]), old[rows]
                gain, seen = advantages[rows], mask[rows]
                if way.method != "ppo":  # a completion is one action
                    logp, before = logp.sum(1, keepdims=True), before.sum(1, keepdims=True)
                    gain, seen = gain[:, :1], seen[:, :1]
                total, metrics = policy_loss(logp, before, gain, seen, objective)
                share: Any = metrics["policy/clipfrac_avg"]
                return total, share.total / share.weight

            def critic_loss(critic: Params, rows: jax.Array = rows) -> jax.Array:
                said = read(critic, prompts[rows], tokens[rows])[..., 0]
                return value_loss(said, values[rows], returns[rows], mask[rows], clip=float("inf"))[0]

            gradient, share = jax.grad(loss, has_aux=True)(params)
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)
            clipped += share / PARTS
            if way.method == "ppo":
                updates, critic_state = optimizer.update(jax.grad(critic_loss)(critic), critic_state)
                critic = optax.apply_updates(critic, updates)
        return (params, state, critic, critic_state, average), clipped

    def part(carry: tuple, keys: jax.Array) -> tuple[tuple, tuple]:
        carry, clipped = jax.lax.scan(rollout, carry, keys)
        return carry, (*measure(carry[0], start, best), clipped.mean())

    critic = first_params(critic_key, 1)
    begin = (start, optimizer.init(start), critic, optimizer.init(critic), jnp.zeros(()))
    keys = jax.random.split(key, ROLLOUTS).reshape(POINTS, -1)
    return jax.lax.scan(part, begin, keys)[1]


def run(trial: Trial) -> Outcome:
    """Trains an arm on the prompts of a seed."""
    demonstrated, best = demonstrate(np.random.default_rng(trial.seed))
    key, right = jax.random.key(trial.seed), jnp.asarray(best)
    start = learn_start(key, habits(jnp.asarray(demonstrated), LIKELY))
    rate = jnp.float32(trial.tuned["rate"])
    trained = train(start, jax.random.fold_in(key, 2), right, rate, Way(**trial.arm))
    rewards, kl, clipped = (np.asarray(x, float) for x in trained)
    first = float(measure(start, start, right)[0])
    objective = np.array([first, *(rewards - BETA * kl)])
    at = np.linspace(0, ROLLOUTS * EPISODES, POINTS + 1)
    return Outcome(
        {
            "objective": float(objective[-1]),
            "half": float(objective[POINTS // 2]),
            "reward": float(rewards[-1]),
            "kl": float(kl[-1]),
            "clipped": float(clipped.mean()),
        },
        {"objective": list(zip(at.tolist(), objective.tolist(), strict=True))},
    )


def arm(method: str, **settings: Any) -> Arm:
    """The arm of a method, with what is not as usual."""
    return {"method": method} | settings


RLOO, PAIRS = arm("rloo", samples=4), arm("rloo", samples=2)
PPO, UNCLIPPED = arm("ppo"), arm("ppo", clip=NO_CLIP)
LAMBDAS = (0.0, 0.5, 1.0)


def get_study(size: str) -> Study:
    """What is affordable on two cores."""
    del size

    def of(arm: Arm, measure: str = "objective") -> Effect:
        return value(measure, **arm)

    return Study(
        name="rloo",
        title="RLOO, plain policy gradients, and what of PPO is needed",
        papers=("arXiv 2402.14740",),
        question=(
            "A model that was fine-tuned before is a strong start, the paper says, so that most of what PPO does "
            "against the variance of its gradients is not needed: whole completions as single actions, without a "
            "critic and without clipping, do as well or better from as many samples; RLOO, whose baseline is the "
            "mean of a prompt's other samples, best of all. What of that holds where the expected reward of a policy "
            "is known exactly?"
        ),
        setting=(
            f"{PROMPTS} prompts, sequences of {LENGTH} tokens out of {VOCABULARY}, so that all {len(SEQUENCES):,} of "
            "them can be summed over: expected rewards and KL are exact. A network of width "
            f"{WIDTH} reads the prompt and the tokens so far. It starts from demonstrations, which have one token at "
            f"each place with probability {LIKELY:g}; at half of the places another token is better. The reward is "
            "half for the right tokens, half for all of them together. "
            f"{ROLLOUTS} rollouts of {EPISODES} completions, {PARTS} updates on each, each on one half, with Adam; "
            f"β {BETA:g}, in the reward of each token for PPO, of each completion for the others. RLOO takes 4 or 2 "
            "samples of a prompt, all others 1: rollouts are equally large. PPO's critic is a network of its own. "
            f"Every arm tries the same {len(RATES)} learning rates first, on seeds of their own. A seed is the "
            "prompts' tokens, the networks' starts, and all that is sampled. Before the rules were written only "
            "seed 300 was looked at, with RLOO and PPO at one rate each: after 150 rollouts both had reached all "
            "there is to reach, so that there are fewer here."
        ),
        arms=(
            RLOO,
            PAIRS,
            arm("plain"),
            arm("average"),
            PPO,
            UNCLIPPED,
            *(arm("ppo", lam=lam) for lam in LAMBDAS),
        ),
        seeds=tuple(range(20)),
        tuning=Tuning(tuple({"rate": rate} for rate in RATES), tuple(range(200, 205)), "objective"),
        measures={
            "objective": f"expected reward less {BETA:g} of the KL to the start: what all methods maximise",
            "half": "the same after half of the rollouts",
            "reward": "expected reward, 0 to 1",
            "kl": "KL to the start, in nats",
            "clipped": "share of tokens, or completions, whose loss clipping changes",
        },
        run=run,
        recipes={arm_name(RLOO): "rloo_tldr_pythia_6_9b", arm_name(PPO): "ppo_tldr_pythia_6_9b"},
        claims=(
            Claim(
                "RLOO is better than PPO",
                "with 4 samples of a prompt, RLOO reaches more from as many completions",
                of(RLOO) - of(PPO),
                smallest=0.02,
                paper="win rates 77.9, 43.7, 64.1 against 67.6, 29.2, 32.0 (Table 1)",
                seeds=20,
            ),
            Claim(
                "so are plain policy gradients",
                "REINFORCE without any baseline does, too",
                of(arm("plain")) - of(PPO),
                smallest=0.02,
                paper="+3.2 to +20.3 points of win rate over PPO",
                seeds=20,
            ),
            Claim(
                "samples of one prompt are a better baseline",
                "RLOO reaches more than REINFORCE with the moving average of all rewards as its baseline",
                of(RLOO) - of(arm("average")),
                smallest=0.02,
                paper="RLOO before REINFORCE with a baseline on all three data sets (Table 1)",
                seeds=20,
            ),
            Claim(
                "four samples are better than two",
                "of equally many completions, 4 for each prompt are better than 2",
                of(RLOO) - of(PAIRS),
                smallest=0.01,
                seeds=20,
            ),
            Claim(
                "bootstrapping hurts",
                "PPO with λ = 1, without any bootstrapping from the critic, reaches more than with λ = 0",
                of(arm("ppo", lam=1.0)) - of(arm("ppo", lam=0.0)),
                smallest=0.02,
                paper="rewards fall as λ goes from 1 to 0 (its Fig. on variance and bias)",
                seeds=20,
            ),
            Claim(
                "and the less the better",
                "between λ = 0.5 and λ = 1, too",
                of(arm("ppo", lam=1.0)) - of(arm("ppo", lam=0.5)),
                smallest=0.01,
                paper="rewards fall as λ goes from 1 to 0",
                seeds=20,
            ),
            Claim(
                "clipping is not needed",
                "PPO without clipping reaches the same",
                of(UNCLIPPED) - of(PPO),
                smallest=0.02,
                near=0.0,
                paper="without clipping as good or better; less than 5 % of the losses are clipped",
                seeds=20,
            ),
        ),
        discussion=(
            "What helps is the other samples of the same prompt: RLOO is .08 better than the moving average of all "
            "rewards. Between RLOO with 4 samples and PPO with λ = .95 there is no difference that counts (.007 ± "
            ".029), though RLOO has no critic to train. Without any baseline REINFORCE stays .21 below PPO, where the "
            "paper has it above. Rewards are never negative here, so that without a baseline whatever was sampled "
            "becomes likelier; with the moving average the gap closes to .08. That the paper's models are surer of "
            "themselves, which it makes responsible, is not what is missing here: from a start whose habits have "
            "probability .95 in place of .6, REINFORCE, PPO and RLOO all learn next to nothing in as many rollouts "
            "(at most .26; seeds 300 to 304, three learning rates). λ matters as the paper says, and most near 0: "
            "a critic that has to be learned in 80 rollouts is no guide. With clipping and without, PPO ends at the "
            "same point (.00003 ± .024), but the interval is wider than the .02 that the rule allows; clipping "
            "touches .9 % of the tokens. For every arm the largest rate that was tried was the "
            "best one, .01; larger ones were not tried."
        ),
        charts=(
            Chart("Reward less β KL", "objective", "lines", x="completions", y="E[reward] - β KL"),
            Chart("Share that clipping changes", "clipped"),
        ),
    )
