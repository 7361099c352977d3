"""A run that begins with the state of another: its weights and moments, under settings of its own."""

import re
import shutil

import numpy as np
import pytest
from tiny import assert_same_bits, final_state, history, make_config, run

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.stages import parse_config, train

SPED_UP = {"optimizer.learning_rate": 2e-3, "optimizer.schedule": "linear", "batch_size": 4, "num_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("ppo", marks=pytest.mark.slow)])
def test_weights_and_moments_are_taken_over_and_steps_begin_anew(stage, runs, tmp_path, capsys):
    """Without a step they are what the other run had; with some, rate and batch are the new run's own."""
    first, second = tmp_path / "first", tmp_path / "second"
    run(stage, runs, first, num_steps=3)
    before = final_state(first)
    changes = SPED_UP | {"resume_from": f"{first}@3", "checkpoint_every": 1, "keep_checkpoints": 9}
    capsys.readouterr()
    run(
        stage,
        runs,
        second,
        **changes,
        eval_at_start=True,
        **{"data.eval": str(runs / f"{DATA[stage]}.jsonl")},
    )
    assert "begins with the weights and the optimizer of " in (said := capsys.readouterr().err)
    assert "after step 3; steps, learning rates and data begin anew" in said
    still = {"optimizer.learning_rate": 1e-30, "num_steps": 1}
    still |= {"ppo.critic_learning_rate": 1e-30} if stage == "ppo" else {}
    run(stage, runs, tmp_path / "kept", **changes | still)
    names = [n for n in before if "params/" in n]
    kept = final_state(tmp_path / "kept")
    assert_same_bits({n: kept[n] for n in names}, {n: before[n] for n in names})
    # Adam counts on: three updates before, and those of one step.
    count = next(n for n in before if re.search(r"opt_state/1/count$", n))
    assert kept[count] == before[count] // 3 * 4
    assert [step for step, _ in history(second)] == [1, 2]
    rates = [values["learning_rate"] for _, values in history(second)]
    # PPO's is that of the last of a step's two updates.
    assert rates == pytest.approx([2e-3, 1e-3] if stage == "sft" else [1.5e-3, 0.5e-3], rel=1e-5)


DATA = {"sft": "sft", "ppo": "prompts"}


@pytest.mark.slow
def test_a_run_with_a_reference_keeps_it_and_step_0_does_not_refuse(runs, tmp_path):
    """The policy comes from the other run, the reference from model.init_from: margins go on where they were."""
    run("dpo", runs, tmp_path / "a", num_steps=3, **{"optimizer.learning_rate": 1e-2})
    last = history(tmp_path / "a")[-1][1]["rewards/margins"]
    run("dpo", runs, tmp_path / "b", num_steps=1, resume_from=str(tmp_path / "a"))
    assert history(tmp_path / "b")[0][1]["rewards/margins"] > max(last, 0.01)


@pytest.mark.slow
def test_it_resumes_from_its_own_checkpoints_and_no_longer_looks_at_the_other(runs, tmp_path):
    run("sft", runs, tmp_path / "a", num_steps=2)
    changes = {"resume_from": str(tmp_path / "a"), "num_steps": 3, "checkpoint_every": 1}
    run("sft", runs, tmp_path / "whole", **changes)
    with pytest.raises(Exception, match="stopped after step 1"):
        run("sft", runs, tmp_path / "b", **changes, stop_at=lambda *now: now == (1, 0))
    shutil.rmtree(tmp_path / "a")
    run("sft", runs, tmp_path / "b", **changes)
    assert_same_bits(final_state(tmp_path / "b"), final_state(tmp_path / "whole"))


@pytest.mark.slow
def test_what_is_no_state_of_this_stage_is_refused(runs, tmp_path):
    with pytest.raises(
        ConfigError, match=r"resume_from='.*pretrain': a state of the stage pretrain, and this is sft"
    ):
        run("sft", runs, tmp_path, resume_from=str(runs / "pretrain"))
    with pytest.raises(
        CheckpointError, match=r"resume_from='.*model': a model alone, without the state of its opt"
    ):
        run("sft", runs, tmp_path, resume_from=str(runs / "sft" / "model"))
    with pytest.raises(
        CheckpointError, match=r"resume_from='.*sft': .*arrays differ(.|\n)*config.optimizer.name"
    ):
        run("sft", runs, tmp_path, resume_from=str(runs / "sft"), **{"optimizer.name": "lion"})
    run("sft", runs, tmp_path, num_steps=1)
    with pytest.raises(
        CheckpointError, match=f"--config.resume_from={tmp_path} to begin with the state of this one"
    ):
        run("sft", runs, tmp_path, num_steps=2, batch_size=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "told"), [("cosine", True), pytest.param("constant", False, marks=pytest.mark.slow)]
)
def test_a_longer_run_says_what_the_rate_does(schedule, told, runs, tmp_path, capsys):
    """Of two steps with a cosine the last rate is half the peak, the next would be 0, and over four is half again."""
    changes = {"optimizer.schedule": schedule}
    run("sft", runs, tmp_path, num_steps=2, **changes)
    capsys.readouterr()
    train(parse_config(make_config("sft", runs, num_steps=4, **changes)), tmp_path, quiet=True)
    said = capsys.readouterr().err
    words = "the learning rate, 0.0005 in step 2, is 0.0005 in the next one, where it would have been 0"
    assert (words in said) == told and ("is laid anew" in said) == told
    assert np.isfinite(history(tmp_path)[-1][1]["loss"])
