"""The numbers that a stage without sampling logs, computed again in float64 NumPy: see raw_dumps.py."""

import numpy as np
import pytest
from raw_dumps import Dumps, Sequence, assert_accounts_for, mean_over_tokens

import jaxalign

pytestmark = pytest.mark.slow


def checkpoint_params(workdir, step):
    """The parameters that were saved after a step, of a stage with one model."""
    return jaxalign.load(workdir / "checkpoints" / str(step)).params


def sequences(batch, params, config, mask=None):
    """(row, segment) -> Sequence, of every segment of a packed batch."""
    mask = batch.loss_mask if mask is None else mask
    found = {}
    for row, ids in enumerate(np.asarray(batch.segment_ids)):
        for segment in range(1, ids.max() + 1):
            at = np.flatnonzero(ids == segment)
            found[row, segment] = Sequence(
                np.asarray(batch.tokens)[row, at], np.asarray(mask)[row, at], params, config
            )
    return found


def token_numbers(read):
    return {
        "entropy": mean_over_tokens(read, "entropy"),
        "mean_token_accuracy": mean_over_tokens(read, "best"),
    }


def pair_token_numbers(read, pairs):
    """Entropy is over both responses, accuracy over the chosen ones."""
    chosen, rejected = ([read[pair[side]] for pair in pairs] for side in (0, 1))
    return {
        "entropy": mean_over_tokens(chosen + rejected, "entropy"),
        "mean_token_accuracy": mean_over_tokens(chosen, "best"),
        "logits/chosen": mean_over_tokens(chosen, "mean_logit"),
        "logits/rejected": mean_over_tokens(rejected, "mean_logit"),
    }


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def preferred(rewards, logps):
    """The numbers of pairs: rewards and log-probabilities [n, 2] of chosen and rejected."""
    rewards, logps = np.array(rewards), np.array(logps)
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": margin.mean(),
        "rewards/accuracies": (margin > 0).mean(),
        "logps/chosen": logps[:, 0].mean(),
        "logps/rejected": logps[:, 1].mean(),
    }


def demonstrations(batch, params, config, _):
    read = list(sequences(batch, params, config).values())
    nll = -mean_over_tokens(read, "logp")
    return {"loss": nll, "nll": nll} | token_numbers(read)


def pairs_of(batch):
    return [
        ((row, int(chosen)), (row, int(rejected)))
        for row in range(len(batch.tokens))
        for chosen, rejected in zip(batch.chosen[row], batch.rejected[row], strict=True)
        if chosen
    ]


def reward(batch, params, config, _):
    transformer, head = (
        params["transformer"],
        {k: np.asarray(v, np.float64) for k, v in params["head"].items()},
    )
    read = sequences(batch, transformer, config)
    score = {key: float(each.hidden[-1] @ head["kernel"] + head["bias"]) for key, each in read.items()}
    both = np.array([[score[side] for side in pair] for pair in pairs_of(batch)])
    margin = both[:, 0] - both[:, 1]
    return {
        "loss": -log_sigmoid(margin).mean(),
        "accuracy": ((margin > 0) + 0.5 * (margin == 0)).mean(),
        "margin": margin.mean(),
        "mean_reward": both.mean(),
        "min_reward": both.min(),
        "max_reward": both.max(),
    }


def dpo(batch, params, config, reference, beta=0.1):
    mine, theirs = (sequences(batch, given, config) for given in (params, reference))
    pairs = pairs_of(batch)
    ratio = np.array([[mine[side].total() - theirs[side].total() for side in pair] for pair in pairs])
    logps = [[mine[side].total() for side in pair] for pair in pairs]
    loss = -log_sigmoid(beta * (ratio[:, 0] - ratio[:, 1])).mean()
    return {"loss": loss} | preferred(beta * ratio, logps) | pair_token_numbers(mine, pairs)


def orpo(batch, params, config, _, coef=0.1):
    read, pairs = sequences(batch, params, config), pairs_of(batch)
    mean = np.array([[read[side].total() / read[side].mask.sum() for side in pair] for pair in pairs])
    odds = mean - np.log1p(-np.exp(mean))
    log_odds = odds[:, 0] - odds[:, 1]
    nll = -mean_over_tokens([read[chosen] for chosen, _ in pairs], "logp")
    ratio = log_sigmoid(log_odds).mean()
    found = {
        "loss": nll - coef * ratio,
        "nll_loss": nll,
        "log_odds_ratio": ratio,
        "log_odds_chosen": log_odds.mean(),
    }
    return found | preferred(coef * mean, mean) | pair_token_numbers(read, pairs)


def kto(batch, params, config, reference, beta=0.1):
    mine, theirs = (sequences(batch, given, config) for given in (params, reference))
    rows = [
        (
            bool(batch.desirable[row, k]),
            (row, int(batch.completion[row, k])),
            (row, int(batch.mismatched[row, k])),
        )
        for row in range(len(batch.tokens))
        for k in range(batch.completion.shape[1])
        if batch.completion[row, k]
    ]
    ratio = {key: mine[key].total() - theirs[key].total() for key in mine}
    baseline = max(0.0, np.mean([ratio[other] for _, _, other in rows if other[1]]))
    sign = np.array([1.0 if good else -1.0 for good, _, _ in rows])
    own = np.array([ratio[key] for _, key, _ in rows])
    logps, good = np.array([mine[key].total() for _, key, _ in rows]), sign > 0
    return {
        "loss": np.mean(1 - 1 / (1 + np.exp(-beta * sign * (own - baseline)))),
        "kl": baseline,
        "rewards/chosen": beta * own[good].mean(),
        "rewards/rejected": beta * own[~good].mean(),
        "rewards/margins": beta * (own[good].mean() - own[~good].mean()),
        "logps/chosen": logps[good].mean(),
        "logps/rejected": logps[~good].mean(),
    } | token_numbers([mine[key] for _, key, _ in rows])


SUPERVISED = {
    "pretrain": demonstrations,
    "sft": demonstrations,
    "reward": reward,
    "dpo": dpo,
    "orpo": orpo,
    "kto": kto,
}


@pytest.mark.parametrize("stage", SUPERVISED)
def test_supervised(stage, runs, tmp_path, monkeypatch):
    dumps = Dumps(stage, runs, tmp_path / "run", monkeypatch)
    reference = jaxalign.load(runs / "sft").params
    batch = dumps.batches[1]
    wanted = SUPERVISED[stage](batch, checkpoint_params(tmp_path / "run", 1), dumps.model.config, reference)
    tokens = sum(int((each.segment_ids > 0).sum()) for each in dumps.batches[:2])
    assert_accounts_for(dumps.line, wanted | {"num_tokens": tokens, "learning_rate": 1e-3})
