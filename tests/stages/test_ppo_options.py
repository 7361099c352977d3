"""Every option of PPO does what its equation says."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_stage_invariance import load, opened
from tiny import PROMPT_LENGTH, final_state, history, run, set_reward_function, write_jsonl

from jaxalign import parallel
from jaxalign.errors import ConfigError
from jaxalign.losses import running_moments
from jaxalign.losses.metrics import finalize
from jaxalign.models import hidden_states, unembedding
from jaxalign.rl.config import RolloutSampling
from jaxalign.rl.rollout import score_completions
from jaxalign.sampling.generate import Completions, join
from jaxalign.stages.ppo import PPOConfig, assign_advantages
from jaxalign.training.loop import Stopped

P, N, E = 4, 6, 5
LENGTHS = np.array([6, 1, 4, 6, 3])
STOPPED = np.array([False, True, True, True, True])


def scored_episodes():
    rng = np.random.default_rng(0)
    mask = np.zeros((E, P + N), np.float32)
    for row, length in enumerate(LENGTHS):
        mask[row, P : P + length] = 1
    arrays = {name: rng.normal(0, 0.5, mask.shape) * mask for name in ("old_logp", "kl", "old_values")}
    scored = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    scored |= {"kl1": scored["kl"], "entropy": scored["kl"] * 0, "mask": jnp.asarray(mask)}
    scored |= {name: jnp.zeros(mask.shape, jnp.int32) for name in ("tokens", "positions", "segment_ids")}
    completions = Completions(
        tokens=jnp.zeros((E, N), jnp.int32),
        mask=jnp.asarray(mask[:, P:]),
        logp=scored["old_logp"][:, P:],
        stopped=jnp.asarray(STOPPED),
    )
    return scored, jnp.asarray(rng.normal(0, 3, E), jnp.float32), completions


def advantages_by_hand(rewards, values, mask, gamma, lam):
    out = np.zeros_like(rewards)
    for row, length in enumerate(LENGTHS):
        following = advantage = 0.0
        for t in range(P + length - 1, P - 1, -1):
            advantage = rewards[row, t] + gamma * following - values[row, t] + gamma * lam * advantage
            out[row, t], following = advantage, values[row, t]
    return out


def test_a_completion_that_is_not_there_has_no_part_in_any_number():
    """The last rollout of a pass over the prompts may have such rows."""
    options = PPOConfig(
        reward="f:f", whiten_rewards=True, normalize_values=True, missing_eos_penalty=1.0, value_decay=0.9
    )
    scored, scores, completions = scored_episodes()
    moments = running_moments.RunningMoments(jnp.float32(0.3), jnp.float32(0.59), jnp.float32(1.0))

    def assign(*arrays):
        return assign_advantages(*arrays, jnp.float32(0.2), moments, options=options)

    def longer(x):
        return jnp.concatenate((x, jnp.zeros_like(x[:1])))

    more = jax.tree.map(longer, completions)
    more = dataclasses.replace(more, stopped=more.stopped.at[-1].set(True))
    rollout, after, metrics = assign(scored, scores, completions)
    found, found_after, found_metrics = assign(
        jax.tree.map(longer, scored), longer(scores).at[-1].set(50.0), more
    )
    np.testing.assert_allclose(found_after, after, rtol=1e-6)
    for name in ("advantages", "returns"):
        got = np.asarray(getattr(found, name))
        np.testing.assert_allclose(got[:-1], getattr(rollout, name), rtol=1e-5, atol=1e-6)
    want = jax.tree.map(float, finalize(metrics))
    assert jax.tree.map(float, finalize(found_metrics)) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.9, "lam": 0.5},
        {"reward_scale": 0.5, "reward_clip": 1.0},
        {"missing_eos_penalty": 2.0, "reward_clip": 1.0},
        {"whiten_rewards": True},
        {"whiten_advantages": True},
        {"normalize_values": True, "value_decay": 0.9},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_scores_become_advantages_as_by_hand(changes):
    options = PPOConfig(reward="f:f", **{"whiten_advantages": False} | changes)
    scored, scores, completions = scored_episodes()
    before = running_moments.RunningMoments(jnp.float32(0.3), jnp.float32(0.59), jnp.float32(1.0))
    rollout, after, metrics = assign_advantages(
        scored, scores, completions, jnp.float32(0.2), before, options=options
    )
    kl, values, mask = (np.asarray(scored[name], np.float64) for name in ("kl", "old_values", "mask"))
    live = mask > 0

    shaped = np.asarray(scores, np.float64) * options.reward_scale
    if options.reward_clip:
        shaped = np.clip(shaped, -options.reward_clip, options.reward_clip)
    if options.missing_eos_penalty:
        shaped = np.where(STOPPED, shaped, shaped - options.missing_eos_penalty)
    rewards = -0.2 * kl
    rewards[np.arange(E), P + LENGTHS - 1] += shaped
    if options.whiten_rewards:
        mean = rewards[live].mean()  # kept, as in TRL: only the spread becomes 1
        rewards = ((rewards - mean) / rewards[live].std() + mean) * live
    deviation = np.sqrt(0.59 - 0.3**2)
    if options.normalize_values:
        values = values * deviation + 0.3
    advantages = advantages_by_hand(rewards, values, mask, options.gamma, options.lam)
    returns = (advantages + values) * live
    if options.normalize_values:
        r = returns[live]
        mean, square, debias = (
            0.9 * old + 0.1 * new for old, new in ((0.3, r.mean()), (0.59, (r**2).mean()), (1, 1))
        )
        np.testing.assert_allclose(after, (mean, square, debias), rtol=1e-5)
        returns = (returns - mean) / np.sqrt(square - mean**2)
    else:
        np.testing.assert_array_equal(after, before)
    if options.whiten_advantages:
        advantages = (advantages - advantages[live].mean()) / advantages[live].std()
    np.testing.assert_allclose(np.asarray(rollout.advantages)[live], advantages[live], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(rollout.returns)[live], returns[live], rtol=1e-5, atol=1e-5)
    values = jax.tree.map(float, finalize(metrics))
    less = np.where(
        STOPPED, scores, np.asarray(scores) - (options.missing_eos_penalty or 0.0)
    )  # as TRL has it
    assert values["objective/scores"] == pytest.approx(less.mean(), rel=1e-5)
    if options.missing_eos_penalty:
        assert values["objective/raw_scores"] == pytest.approx(float(scores.mean()), rel=1e-5)
    k3 = np.asarray(kl) ** 2  # of whatever estimator: the KL that is logged is the one that is learned from
    other = dataclasses.replace(options, kl_estimator="k3")
    logged = assign_advantages(
        scored | {"kl": jnp.float32(k3)}, scores, completions, jnp.float32(0.2), before, options=other
    )[2]
    logged = finalize(logged)
    assert float(logged["objective/kl"]) == pytest.approx((k3 * mask).sum(1).mean(), rel=1e-5)
    assert float(logged["objective/kl_k1"]) == pytest.approx((kl * mask).sum(1).mean(), rel=1e-5)
    assert values["objective/rlhf_reward"] == pytest.approx(
        (shaped - 0.2 * (kl * mask).sum(1)).mean(), rel=1e-5
    )
    assert values["val/num_eos_tokens"] == STOPPED.sum()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_kl_estimators_are_what_they_are_called(estimator, runs, tmp_path):
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])) as mesh:
        opened_run = opened("ppo", runs, tmp_path)
        policy, reference = load(runs / "sft", mesh), load(runs / "pretrain", mesh)
        critic = load(runs / "reward", mesh)
        prompts = jax.tree.map(jnp.asarray, next(opened_run.loader()))
        tokens = jax.random.randint(jax.random.key(0), (8, N), 8, 300)
        completions = Completions(tokens, jnp.ones((8, N)), jnp.zeros((8, N)), jnp.ones(8, bool))
        model = opened_run.model
        scored = score_completions(
            policy, critic, reference, None, prompts, completions,
            model=model, critic_model=model, reward_config=None, temperature=0.7, kl_estimator=estimator,
        )  # fmt: skip
        *args, _ = join(prompts.tokens, prompts.positions, prompts.segment_ids, completions)

        def log_probabilities(params):
            logits = hidden_states(params, model, *args)[0] @ unembedding(params, model).T / 0.7
            return np.asarray(jax.nn.log_softmax(logits), np.float64)[:, PROMPT_LENGTH - 1 : -1]

        p, q = log_probabilities(policy), log_probabilities(reference)
    d = np.take_along_axis(p - q, np.asarray(tokens)[..., None], axis=2)[..., 0]
    wanted = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d, "exact": (np.exp(p) * (p - q)).sum(-1)}
    np.testing.assert_allclose(scored["kl"][:, PROMPT_LENGTH:], wanted[estimator], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scored["kl1"][:, PROMPT_LENGTH:], d, rtol=1e-4, atol=1e-5)
    assert np.abs(d).max() > 0.1


@pytest.mark.slow
def test_kl_coef_follows_the_controller(runs, tmp_path):
    run(
        "ppo", runs, tmp_path, **{"num_steps": 3, "log_every": 1, "ppo.kl_target": 1.0, "ppo.kl_horizon": 100}
    )
    lines = [values for _, values in history(tmp_path)]
    assert lines[0]["kl_coef"] == pytest.approx(0.05)
    for now, after in itertools.pairwise(lines):
        error = np.clip(now["objective/kl"] / 1.0 - 1, -0.2, 0.2)  # kl_target 1, horizon 100, 8 episodes
        assert after["kl_coef"] == pytest.approx(now["kl_coef"] * (1 + error * 8 / 100), rel=1e-6)
    assert lines[-1]["kl_coef"] != lines[0]["kl_coef"]


@pytest.mark.slow
def test_scores_of_a_model_and_a_function_are_weighted(runs, tmp_path):
    """Of one rollout, the first, whose completions do not depend on rewards."""
    model, function = str(runs / "reward"), "tiny:reward_function"
    both = {"ppo.reward": f"{model},{function}", "ppo.reward_weights": (0.5, 2.0)}
    scores = []
    for changes in ({"ppo.reward": model}, {"ppo.reward": function}, both):
        workdir = tmp_path / str(len(scores))
        run("ppo", runs, workdir, **{"num_steps": 1, "ppo.ppo_epochs": 1} | changes)
        scores.append(history(workdir)[0][1]["objective/scores"])
    assert scores[2] == pytest.approx(0.5 * scores[0] + 2.0 * scores[1], rel=1e-5)
    assert abs(scores[0]) > 1e-3 and abs(scores[1]) > 1e-3


@pytest.mark.slow
def test_average_reference_and_exported_weights_follow_the_policy(runs, tmp_path):
    run("ppo", runs, tmp_path, **{"num_steps": 1, "ppo.average_decay": 0.75, "ppo.reference_rate": 0.1})
    state, start, model = (
        final_state(tmp_path),
        final_state(runs / "sft", "model"),
        final_state(tmp_path, "model"),
    )
    for name, before in start.items():
        leaf = name.removeprefix("params/")
        after = state[f"policy/params/{leaf}"].astype(np.float64)
        np.testing.assert_allclose(
            state[f"average/{leaf}"], 0.75 * before + 0.25 * after, rtol=1e-5, atol=1e-7
        )
        np.testing.assert_allclose(
            state[f"reference/{leaf}"], 0.9 * before + 0.1 * after, rtol=1e-5, atol=1e-7
        )
        np.testing.assert_array_equal(model[name], state[f"average/{leaf}"])


@pytest.mark.slow
def test_early_stop_ends_the_policy_updates_of_a_rollout_only(runs, tmp_path):
    changes = {"num_steps": 2, "ppo.ppo_epochs": 4, "ppo.early_stop_kl": 1e-9, "optimizer.schedule": "linear"}
    run("ppo", runs, tmp_path, **changes, **{"ppo.critic_learning_rate": 5e-4})
    # The first update has ratio 1 and KL 0; the second one's KL is seen, and ends it.
    values = history(tmp_path)[0][1]
    assert values["policy/updates"] == 2
    assert values["critic/learning_rate"] == pytest.approx(5e-4 * (1 - 3 / 8), rel=1e-5)  # of update 3 of 8
    state = final_state(tmp_path)
    applied = state["policy/opt_state/1/count"]
    # Those that were left out have had their turn in the schedule, which is the critic's.
    assert (state["policy/step"], state["critic/step"]) == (8, 8) and 3 <= applied <= 4
    first, second = (values["learning_rate"] for _, values in history(tmp_path))
    assert first == pytest.approx(1e-3 * (1 - 1 / 8), rel=1e-5)  # of the last that was applied, 1 of 0 to 7
    assert second == pytest.approx(1e-3 * (1 - (applied + 1) / 8), rel=1e-5)


@pytest.mark.slow
def test_pretraining_text_is_mixed_in_with_its_weight(runs, tmp_path):
    """Its rows have a field text, whatever the prompts call theirs."""
    prompts = [json.loads(line)["prompt"] for line in (runs / "prompts.jsonl").read_text().splitlines()]
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"question": prompt} for prompt in prompts])
    changes = {"num_steps": 1, "ppo.ppo_epochs": 1, "ppo.ptx_coef": 0.5}
    changes |= {"data.train": asked, "data.fields": "prompt=question"}
    run("ppo", runs, tmp_path, **changes, **{"ppo.ptx_data": str(runs / "pretrain.jsonl")})
    values = history(tmp_path)[0][1]
    assert 2 < values["ptx/nll"] < np.log(336) + 1
    assert values["loss"] == pytest.approx(values["loss/policy_avg"] + 0.5 * values["ptx/nll"], rel=1e-5)


@pytest.mark.slow
def test_critic_starts_from_the_reward_model_or_from_zero_values(runs, tmp_path):
    for init in ("reward", "policy"):
        workdir = tmp_path / init
        with pytest.raises(Stopped):
            run("ppo", runs, workdir, stop_at=lambda *now: now == (0, 1), **{"ppo.critic_init": init})
        state = final_state(workdir)
        if init == "policy":
            assert not state["rollout/old_values"].any()
            continue
        for name, array in final_state(runs / "reward", "model").items():
            np.testing.assert_array_equal(state[f"critic/{name}"], array)
        assert state["rollout/old_values"].any()


@pytest.mark.slow
def test_all_held_out_prompts_count_alike_whatever_the_batch(runs, tmp_path):
    """23 prompts in batches of 8: the 24th row is empty, and is neither scored nor averaged."""
    prompts = runs / "prompts.jsonl"
    changes = set_reward_function("prompt_length_reward") | {"data.eval": str(prompts), "num_steps": 1}
    summary = run("ppo", runs, tmp_path, **changes)
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        train = opened("ppo", runs, tmp_path).train
    lengths = [len(train.record(item.row)["prompt"]) for item in train.rows.items]
    assert len(lengths) % 8
    assert summary["eval"]["objective/scores"] == pytest.approx(np.mean(lengths), rel=1e-5)


@pytest.mark.parametrize("truncation", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_truncated_sampling_is_refused(truncation):
    with pytest.raises(
        ConfigError, match=r"config\.ppo\.sampling uses top_k, top_p or min_p: the loss would divide"
    ):
        PPOConfig(reward="f:f", sampling=RolloutSampling(**truncation))


@pytest.mark.slow
def test_values_are_clipped_around_what_the_critic_said(runs, tmp_path):
    """With one update a rollout the critic has not moved when it is updated, so nothing is out of range."""
    changes = {"num_steps": 3, "ppo.ppo_epochs": 1, "ppo.normalize_values": True, "ppo.critic_init": "reward"}
    run("ppo", runs, tmp_path, **changes)
    lines = [values for _, values in history(tmp_path)]
    assert [values["val/clipfrac_avg"] for values in lines] == [0, 0, 0]
    assert all(values["critic/grad_norm"] > 1e-3 for values in lines)


@pytest.mark.slow
def test_the_weights_that_are_exported_are_evaluated(runs, tmp_path):
    """An average that hardly moves is the reference still, however far the policy itself has gone."""
    changes = {"num_steps": 3, "ppo.average_decay": 1 - 1e-6, "optimizer.learning_rate": 1e-2}
    summary = run("ppo", runs, tmp_path, **changes, **{"data.eval": str(runs / "prompts.jsonl")})
    assert history(tmp_path)[-1][1]["objective/kl"] > 0.1
    assert abs(summary["eval"]["objective/kl"]) < 1e-3
