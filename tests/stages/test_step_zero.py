"""What must hold before the first update holds, and a violation stops the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_stage_invariance import opened
from tiny import history, run

from jaxalign import parallel
from jaxalign.errors import StepZeroError
from jaxalign.models import transformer
from jaxalign.models.attention import View, see
from jaxalign.models.scoring import score_tokens
from jaxalign.rl import rollout
from jaxalign.rl import stage as rl_stage
from jaxalign.training import supervised


@pytest.mark.slow
@pytest.mark.parametrize("precompute", [False, True])
def test_dpo_begins_with_loss_ln2_and_no_margin(precompute, runs, tmp_path):
    run("dpo", runs, tmp_path, **{"dpo.precompute_reference": precompute, "num_steps": 1})
    first = history(tmp_path)[0][1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_dpo_with_reference_rows_in_another_order_is_refused(runs, tmp_path, monkeypatch):
    # The margins of all rows still add up to 0: only a check of every sequence sees it.
    swap = lambda rows: rows[::-1]  # noqa: E731
    load = np.load
    monkeypatch.setattr("jaxalign.training.reference.np.load", lambda path, **how: swap(load(path, **how)))
    with pytest.raises(StepZeroError, match=r"the log-probabilities of a sequence differ by .* other data"):
        run("dpo", runs, tmp_path, **{"dpo.precompute_reference": True})


def test_dpo_with_another_reference_model_is_refused(runs, tmp_path, monkeypatch):
    right = supervised.load_frozen

    def wrong(wanted, run):
        run, frozen = right(wanted, run)
        reference = frozen.params["reference"]
        frozen.params["reference"] = reference | {"embedding": reference["embedding"] * 1.01}
        return run, frozen

    monkeypatch.setattr(supervised, "load_frozen", wrong)
    with pytest.raises(StepZeroError, match="belong to other weights"):
        run("dpo", runs, tmp_path)


# At the tolerance of a tenth of the largest log-probability, 6 nats here, all of these passed.
WRONG = [
    ({"model.dtype": "bfloat16"}, 1.01),
    ({"model.dtype": "bfloat16", "frozen.dtype": "bfloat16"}, 1.1),
    ({"frozen.dtype": "bfloat16"}, 1.1),
    ({"frozen.dtype": "int8"}, 1.1),
    ({"model.dtype": "bfloat16", "dpo.precompute_reference": True}, 1.1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "factor"), [WRONG[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in WRONG[1:])]
)
def test_rounding_does_not_hide_another_reference(changes, factor, runs, tmp_path, monkeypatch):
    """The right reference passes in every precision, one with larger tables in none."""
    run("dpo", runs, tmp_path / "right", num_steps=1, **changes)
    keep, score = supervised.keep, supervised.score_dataset
    larger = lambda params: params | {"embedding": params["embedding"] * factor}  # noqa: E731
    monkeypatch.setattr(supervised, "keep", lambda params, config: keep(larger(params), config))
    monkeypatch.setattr(supervised, "score_dataset", lambda run, params: score(run, larger(params)))
    with pytest.raises(StepZeroError, match=r"of a sequence differ by .*, and rounding explains"):
        run("dpo", runs, tmp_path / "wrong", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["xla", "block_sparse"])
def test_a_reward_model_whose_attention_ignores_segments_is_refused(attention, runs, tmp_path, monkeypatch):
    def mask(q_positions, q_segments, k_positions, k_segments, window=0):
        return k_positions[:, None, :] <= q_positions[:, :, None]

    def backwards(segment_ids, window=0):
        view = see(segment_ids)
        return View(jnp.zeros_like(view.first), view.last)

    monkeypatch.setattr(transformer, "attention_mask", mask)
    monkeypatch.setattr(transformer, "see", backwards)
    with pytest.raises(StepZeroError, match="lets segments see each other"):
        run("reward", runs, tmp_path, **{"model.attention": attention})


@pytest.mark.slow
def test_ppo_begins_with_ratio_1_and_no_kl(runs, tmp_path):
    run("ppo", runs, tmp_path, **{"num_steps": 1, "ppo.ppo_epochs": 1})
    first = history(tmp_path)[0][1]
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/ratio_var"] == pytest.approx(0, abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["rollout_logp_diff_max"] == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "tie"), [("grpo", {"grpo.beta": 0.1, "grpo.loss_type": "grpo"}), ("rloo", {})]
)
def test_groups_begin_with_ratio_1_no_kl_and_a_loss_of_0(stage, tie, runs, tmp_path):
    """The advantages of a group add up to 0, and so does a loss that weighs its completions alike."""
    run(stage, runs, tmp_path, **{"num_steps": 1}, **tie)
    first = history(tmp_path)[0][1]
    assert first["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["policy/ratio_var"] == pytest.approx(0, abs=1e-5)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] == pytest.approx(0, abs=1e-5)
    assert first["grad_norm"] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precompute", [False, True])
def test_kto_begins_with_half_the_weights_and_no_margin(precompute, runs, tmp_path):
    """Every log-ratio and the baseline are 0, where the sigmoid is one half."""
    changes = {"kto.precompute_reference": precompute, "num_steps": 1}
    changes |= {
        "kto.desirable_weight": 1.5,
        "kto.undesirable_weight": 0.8,
        "data.eval": str(runs / "unpaired.jsonl"),
    }
    run("kto", runs, tmp_path, **changes)
    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        batch = next(opened("kto", runs, tmp_path).loader())
    share = float(batch.desirable.sum() / batch.weight.sum())
    assert 0 < share < 1
    first = history(tmp_path)[0][1]
    assert first["loss"] == pytest.approx(0.5 * (1.5 * share + 0.8 * (1 - share)), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, runs, tmp_path):
    run(
        "distill",
        runs,
        tmp_path,
        **{"num_steps": 1, "distill.divergence": kind, "distill.teacher": str(runs / "sft")},
    )
    first = history(tmp_path)[0][1]
    assert first["loss"] == pytest.approx(0, abs=1e-6)
    # The one is divided on the device in float32, the other for the log in float64.
    assert first["distill/divergence"] == pytest.approx(first["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo"])
def test_a_rollout_that_scores_differently_is_refused(stage, runs, tmp_path, monkeypatch):
    def shifted(*args, **options):
        scored = score_tokens(*args, **options)
        return scored._replace(logp=scored.logp - 0.1)

    monkeypatch.setattr(rollout, "score_tokens", shifted)  # policy and reference alike: their KL is still 0
    with pytest.raises(StepZeroError, match=r"π_θ / π_old must be 1, but its mean is 1\.105"):
        # Of the ratio of a whole completion, RLOO's, the mean over its tokens is shifted alike.
        own = {"rloo": {"rloo.importance": "sequence_mean"}, "grpo": {"grpo.num_iterations": 2}}
        run(stage, runs, tmp_path, **own.get(stage, {}))


@pytest.mark.slow
def test_a_sampling_that_says_otherwise_is_refused(runs, tmp_path, monkeypatch):
    """With one update a rollout nothing but the sampling has said what the policy thinks of its completions."""
    sample = rl_stage.generate

    def shifted(*args, **options):
        completions = sample(*args, **options)
        return completions.replace(logp=completions.logp - 0.1 * completions.mask)

    monkeypatch.setattr(rl_stage, "generate", shifted)
    with pytest.raises(StepZeroError, match=r"their log-probabilities differ by 0\.1000 a token"):
        run("grpo", runs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "tie"), [("ppo", {}), ("grpo", {"grpo.beta": 0.1}), ("rloo", {})])
def test_another_reference_than_the_policy_is_refused(stage, tie, runs, tmp_path, monkeypatch):
    load = rl_stage.load_models

    def other(declared, run):
        models = load(declared, run)
        table = models.reference["embedding"] * 1.1
        object.__setattr__(models, "reference", models.reference | {"embedding": table})
        return models

    monkeypatch.setattr(rl_stage, "load_models", other)
    with pytest.raises(StepZeroError, match="the policy is its reference, yet objective/kl is"):
        run(stage, runs, tmp_path, **tie)
