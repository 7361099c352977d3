"""The numbers that a stage which samples logs, computed again in float64 NumPy: see raw_dumps.py."""

import json

import numpy as np
import pytest
from models.oracle import decode
from raw_dumps import Dumps, Sequence, assert_accounts_for, mean_over_tokens
from test_recomputed_metrics import SUPERVISED

import jaxalign
from jaxalign.sampling.answers import answer_text
from jaxalign.stages import NAMES

pytestmark = pytest.mark.slow

NEW = 8  # the most tokens of a completion, as the tiny configs have it
SHAPING = {
    "missing_eos_penalty": 0.4,
    "reward_scale": 0.5,
    "reward_clip": 0.9,
    "reward": "tiny:reward_function",
}
OPTIONS = {
    "ppo": SHAPING
    | {"kl_coef": 0.2, "ppo_epochs": 2, "num_minibatches": 2, "clip": 0.02, "value_clip": 0.05},
    "grpo": SHAPING
    | {"beta": 0.1, "num_iterations": 2, "num_minibatches": 2, "clip": 0.01, "loss_type": "grpo"},
    "rloo": SHAPING | {"kl_coef": 0.2, "num_iterations": 2, "num_minibatches": 2, "clip": 0.05},
}


class Episode:
    """A completion behind its prompt, as models and the reward function see it before the first update."""

    def __init__(self, tokens, mask, policy, reference, model, prompts):
        self.key = tuple(tokens)
        self.read = Sequence(tokens, mask, policy, model.config)
        self.before = Sequence(tokens, mask, reference, model.config)
        self.log_ratio = (self.read.logp - self.before.logp) * self.read.mask
        ids = tokens[mask > 0].tolist()
        self.stopped = ids[-1] in model.tokenizer.eos_ids
        text = model.tokenizer.decode(tokens[mask == 0].tolist())
        self.prompt = max((prompt for prompt in prompts if prompt in text), key=len)
        self.raw = 0.1 * len(answer_text(ids, model.tokenizer)) - 0.01 * len(self.prompt)
        shaped = np.clip(SHAPING["reward_scale"] * self.raw, -SHAPING["reward_clip"], SHAPING["reward_clip"])
        self.score = shaped - (0 if self.stopped else SHAPING["missing_eos_penalty"])


def rows_of(batch):
    """(tokens, mask) of each completion, with its prompt and without padding."""
    for row, ids in enumerate(batch.segment_ids):
        at = np.flatnonzero(ids)
        yield batch.tokens[row, at], batch.mask[row, at]


def episodes_of(dumps, runs, updates):
    """The completions of the second rollout, by their tokens and in the order of the minibatches of its first pass."""
    prompts = [json.loads(line)["prompt"] for line in (runs / "prompts.jsonl").read_text().splitlines()]
    reference = jaxalign.load(runs / "sft").params
    policy = updates[0][0]
    return [
        Episode(tokens, mask, policy, reference, dumps.model, prompts)
        for _, batch in updates[:2]
        for tokens, mask in rows_of(batch)
    ]


def rollout_numbers(episodes):
    """What is logged of the completions themselves."""
    count = sum(each.read.mask.sum() for each in episodes)
    mean = {
        "objective/entropy": [-each.read.total() for each in episodes],
        "objective/scores": [
            each.raw - (0 if each.stopped else SHAPING["missing_eos_penalty"]) for each in episodes
        ],
        "objective/raw_scores": [each.raw for each in episodes],
        "objective/kl": [each.log_ratio.sum() for each in episodes],
        "rewards/reward_function/mean": [each.raw for each in episodes],
        "completions/mean_length": [each.read.mask.sum() for each in episodes],
        "completions/clipped_ratio": [not each.stopped for each in episodes],
    }
    return {name: np.mean(values) for name, values in mean.items()} | {
        "rewards/reward_function/std": np.std([each.raw for each in episodes], ddof=1),
        "val/num_eos_tokens": sum(each.stopped for each in episodes),
        "completions/slot_occupancy": count / (NEW * len(episodes)),
        "policy/entropy_avg": mean_over_tokens([each.read for each in episodes], "entropy"),
    }


def whitened(x):
    x = np.concatenate(x)
    return (x - x.mean()) / np.sqrt(x.var() + 1e-8)


def advantages_and_returns(rewards, values, lam=0.95):
    """arXiv 1506.02438, equation 16, of one completion, without discount."""
    advantages, following = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        after = values[t + 1] if t + 1 < len(values) else 0.0
        following = rewards[t] + after - values[t] + lam * following
        advantages[t] = following
    return advantages, advantages + values


def values_of(tokens, mask, params, config):
    """What a critic says before each sampled token."""
    hidden, _ = decode(params["transformer"], config, tokens)
    head = {name: np.asarray(x, np.float64) for name, x in params["head"].items()}
    return (hidden @ head["kernel"] + head["bias"])[:-1][mask[1:] > 0]


def pooled(updates):
    """Sums of numbers and of counts over the minibatches: the mean of each name."""
    names = dict.fromkeys(name for update in updates for name in update)
    found = {}
    for name in names:
        values = np.concatenate([np.atleast_1d(update[name]).astype(np.float64) for update in updates])
        found[name] = values.mean()
    return found


def clipped(ratio, advantages, clip):
    """The loss of PPO's equation 7, and where clipping made it larger."""
    free, bounded = -ratio * advantages, -np.clip(ratio, 1 - clip, 1 + clip) * advantages
    return np.maximum(free, bounded), bounded > free


def ratios(found):
    """`policy/ratio_var` of the pooled mean and mean square."""
    return found | {"policy/ratio_var": found.pop("square") - found["val/ratio"] ** 2}


def test_ppo(runs, tmp_path, monkeypatch):
    dumps = Dumps("ppo", runs, tmp_path / "run", monkeypatch, **OPTIONS["ppo"])
    policies, critics = dumps.policy[4:], dumps.critic[4:]
    episodes, config, own = episodes_of(dumps, runs, policies), dumps.model.config, OPTIONS["ppo"]
    old, made = {}, {}
    for each in episodes:
        live = each.read.mask > 0
        rewards = -own["kl_coef"] * each.log_ratio[live]
        rewards[-1] += each.score
        old[each.key] = (
            each.read.logp[live],
            values_of(each.read.tokens, each.read.mask, critics[0][0], config),
        )
        made[each.key] = advantages_and_returns(rewards, old[each.key][1])
    white = whitened([made[each.key][0] for each in episodes])
    parts = np.split(white, np.cumsum([len(made[each.key][0]) for each in episodes])[:-1])
    advantages = {each.key: part for each, part in zip(episodes, parts, strict=True)}
    seen, losses = [], []
    for (policy, batch), (critic, _) in zip(policies, critics, strict=True):
        one = {
            name: []
            for name in ("loss/policy_avg", "policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio")
        }
        one |= {"loss/value_avg": [], "val/clipfrac_avg": [], "square": []}
        for tokens, mask in rows_of(batch):
            key, live = tuple(tokens), mask > 0
            (old_logp, old_values), (_, returns) = old[key], made[key]
            log_ratio = Sequence(tokens, mask, policy, config).logp[live] - old_logp
            loss, over = clipped(np.exp(log_ratio), advantages[key], own["clip"])
            values = values_of(tokens, mask, critic, config)
            held = np.clip(values, old_values - own["value_clip"], old_values + own["value_clip"])
            squares = (values - returns) ** 2, (held - returns) ** 2
            one["loss/policy_avg"].extend(loss)
            one["policy/clipfrac_avg"].extend(over)
            one["policy/approxkl_avg"].extend(log_ratio**2 / 2)
            one["val/ratio"].extend(np.exp(log_ratio))
            one["square"].extend(np.exp(2 * log_ratio))
            one["loss/value_avg"].extend(np.maximum(*squares) / 2)
            one["val/clipfrac_avg"].extend(squares[1] > squares[0])
        seen.append(one)
        losses.append([np.mean(one["loss/policy_avg"]), np.mean(one["loss/value_avg"])])
    non_score = [-own["kl_coef"] * each.log_ratio.sum() for each in episodes]
    wanted = (
        rollout_numbers(episodes)
        | ratios(pooled(seen))
        | {
            "loss": np.mean(losses, 0)[0],
            "critic/loss": np.mean(losses, 0)[1],
            "objective/non_score_reward": np.mean(non_score),
            "objective/rlhf_reward": np.mean(non_score) + np.mean([each.score for each in episodes]),
            "kl_coef": own["kl_coef"],
            "policy/updates": 4,
            "learning_rate": 1e-3,
            "critic/learning_rate": 1e-3,
            "num_tokens": dumps.first["num_tokens"] + sum(len(each.read.tokens) for each in episodes),
        }
    )
    assert 0 < wanted["policy/clipfrac_avg"] < 1 and 0 < wanted["val/clipfrac_avg"] < 1
    assert len({each.stopped for each in episodes}) == 2
    assert_accounts_for(dumps.line, wanted)


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_groups(stage, runs, tmp_path, monkeypatch):
    dumps = Dumps(stage, runs, tmp_path / "run", monkeypatch, **OPTIONS[stage])
    updates, own = dumps.policy[4:], OPTIONS[stage]
    episodes, config = episodes_of(dumps, runs, updates), dumps.model.config
    groups, score = {}, {}
    for each in episodes:
        penalty = own["kl_coef"] * each.log_ratio.sum() if stage == "rloo" else 0.0
        groups.setdefault(tuple(each.read.tokens[each.read.mask == 0]), []).append(
            (each, each.score - penalty)
        )
    for group in groups.values():
        scores = np.array([given for _, given in group])
        others = scores if stage == "grpo" else scores[::-1]  # of two, the other one is all but oneself
        scale = scores.std(ddof=1) + 1e-4 if stage == "grpo" else 1.0
        baseline = scores.mean() if stage == "grpo" else others
        for (each, _), advantage in zip(group, (scores - baseline) / scale, strict=True):
            score[each.key] = advantage
    given = np.array([given for group in groups.values() for _, given in group])
    wanted = rollout_numbers(episodes) | {
        "reward": given.mean(),
        "reward_std": given.std(ddof=1),
        "frac_reward_zero_std": np.mean(
            [len({given for _, given in group}) == 1 for group in groups.values()]
        ),
    }
    by_key = {each.key: each for each in episodes}
    seen, losses, extremes = [], [], []
    for policy, batch in updates:
        one = {name: [] for name in ("loss/policy_avg", "policy/approxkl_avg", "val/ratio", "square", "kl")}
        one |= {f"clip_ratio/{name}_mean": [] for name in ("low", "high", "region")}
        kl_loss = []
        for tokens, mask in rows_of(batch):
            each, live = by_key[tuple(tokens)], mask > 0
            logp, advantage = Sequence(tokens, mask, policy, config).logp[live], score[tuple(tokens)]
            token_ratio = logp - each.read.logp[live]
            log_ratio = token_ratio if stage == "grpo" else np.array([token_ratio.sum()])
            loss, over = clipped(np.exp(log_ratio), advantage, own["clip"])
            d = logp - each.before.logp[live]
            k3 = np.exp(-d) - 1 + d
            one["kl"].extend(k3)
            kl_loss.append(k3.mean())
            one["loss/policy_avg"].append(loss.mean())  # the mean over tokens, then over completions
            one["policy/approxkl_avg"].extend(token_ratio**2 / 2)
            one["val/ratio"].extend(np.exp(log_ratio))
            one["square"].extend(np.exp(2 * log_ratio))
            low, high = over & (advantage < 0), over & (advantage > 0)
            one["clip_ratio/low_mean"].extend(low)
            one["clip_ratio/high_mean"].extend(high)
            one["clip_ratio/region_mean"].extend(low | high)
            extremes.append((low.mean(), high.mean()))
        seen.append(one)
        losses.append(np.mean(one["loss/policy_avg"]) + own.get("beta", 0.0) * np.mean(kl_loss))
    wanted |= ratios(pooled(seen)) | {
        "clip_ratio/low_min": min(low for low, _ in extremes),
        "clip_ratio/high_max": max(high for _, high in extremes),
        "loss": np.mean(losses),
        "policy/updates": 4,
        "learning_rate": 1e-3,
        "num_tokens": dumps.first["num_tokens"] + sum(len(each.read.tokens) for each in episodes),
    }
    if stage == "rloo":
        del wanted["kl"]  # it stands in the reward, not in the loss
    assert wanted["clip_ratio/region_mean"] > 0 and len({each.stopped for each in episodes}) == 2
    assert_accounts_for(dumps.line, wanted)


def test_distill(runs, tmp_path, monkeypatch):
    dumps = Dumps("distill", runs, tmp_path / "run", monkeypatch)
    ((policy, batch),) = dumps.policy[1:]
    teacher, config = jaxalign.load(runs / "pretrain").params, dumps.model.config
    mine, theirs = (
        [Sequence(tokens, mask, given, config) for tokens, mask in rows_of(batch)]
        for given in (policy, teacher)
    )
    for each, other in zip(mine, theirs, strict=True):
        each.divergence = np.sum(np.exp(each.table) * (each.table - other.table), -1)
    stopped = [each.tokens[-1] in dumps.model.tokenizer.eos_ids for each in mine]
    divergence, lengths = mean_over_tokens(mine, "divergence"), [each.mask.sum() for each in mine]
    wanted = {
        "loss": divergence,
        "distill/divergence": divergence,
        "policy/entropy_avg": mean_over_tokens(mine, "entropy"),
        "objective/entropy": -np.mean([each.total() for each in mine]),
        "completions/mean_length": np.mean(lengths),
        "completions/clipped_ratio": 1 - np.mean(stopped),
        "completions/slot_occupancy": np.mean(lengths) / NEW,
        "val/num_eos_tokens": np.sum(stopped),
        "policy/updates": 1,
        "learning_rate": 1e-3,
        "num_tokens": dumps.first["num_tokens"] + sum(len(each.tokens) for each in mine),
    }
    assert_accounts_for(dumps.line, wanted)


def test_every_stage_is_here():
    assert {*SUPERVISED, *OPTIONS, "distill"} == set(NAMES)
