"""The best checkpoint is kept and exported, a run ends early, and neither depends on where it was interrupted."""

import json
import os
import shutil
import signal

import pytest
from tiny import assert_same_bits, final_state, history, run

from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.training import loop
from jaxalign.training.loop import Stopped
from jaxalign.training.open import Run

STEPS = 8


@pytest.fixture(scope="module")
def changes(runs):
    """A rate at which the loss falls, rises and falls again: the best evaluation before the end is not the last."""
    return {
        "num_steps": STEPS,
        "eval_every": 1,
        "eval_at_start": True,
        "eval_batch_size": 16,
        "data.eval": str(runs / "pretrain.jsonl"),
        "optimizer.learning_rate": 0.4,
        "best.metric": "loss",
        "best.patience": 2,
        "best.export": True,
        "keep_every": 2,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(runs, changes, folder):
    """A run that nothing disturbed; made in the first test, with whose compilation settings the others compare."""
    if not (folder / "summary.json").exists():
        run("pretrain", runs, folder, **changes)
    return folder


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def losses(workdir):
    return {step: values["loss"] for step, values in history(workdir, "eval")}


def weights(workdir, folder):
    return {n: x for n, x in final_state(workdir, folder).items() if n.startswith("params/")}


def only(workdir, position):
    folder = workdir / f"only-{position}"
    if not folder.exists():
        folder.mkdir()
        (folder / str(position)).symlink_to(workdir / "checkpoints" / str(position))
    return weights(workdir, folder.name)


def test_the_run_ends_early_and_leaves_its_best(whole):
    found = losses(whole)
    best = min(found, key=found.get)
    last = max(found)
    assert 0 < best < last < STEPS and last == best + 2 and list(found) == list(range(last + 1))
    said = summary(whole)
    assert said["best"] == {"metric": "loss", "step": best, "position": best, "value": found[best]}
    assert said["steps"] == last and said["eval"]["loss"] == found[best]
    assert kept(whole) == sorted({best, last} | set(range(2, last + 1, 2)))
    assert_same_bits(weights(whole, "model"), only(whole, best))
    assert (weights(whole, "model")["params/embedding"] != only(whole, last)["params/embedding"]).any()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3))])
def test_a_run_that_was_stopped_chooses_alike(stop, runs, changes, whole, tmp_path):
    with pytest.raises(Stopped):
        run("pretrain", runs, tmp_path, **changes, stop_at=lambda *now: now == (stop, 0))
    run("pretrain", runs, tmp_path, **changes)
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", range(3))
def test_a_run_that_was_killed_chooses_alike(evaluation, runs, changes, whole, tmp_path, monkeypatch):
    """Killed after an evaluation is written and before it is in a checkpoint, and right after it is in one."""

    class Killed(BaseException):
        pass

    take, count = loop.Selection.take, []

    def killing(self, step, position, values, **more):
        better = take(self, step, position, values, **more)
        count.append(step)
        if len(count) == evaluation + 1:
            raise Killed
        return better

    save = loop.Checkpointer.save

    def killed_after(self, *args):
        save(self, *args)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop.Selection, "take", killing)
        with pytest.raises(Killed):
            run("pretrain", runs, tmp_path, **changes)
    with monkeypatch.context() as patched:
        patched.setattr(loop.Checkpointer, "save", killed_after)
        with pytest.raises(Killed):
            run("pretrain", runs, tmp_path, **changes)
    run("pretrain", runs, tmp_path, **changes)
    assert_same(tmp_path, whole)


def assert_same(workdir, whole):
    assert_same_bits(final_state(workdir), final_state(whole))
    assert_same_bits(final_state(workdir, "model"), final_state(whole, "model"))
    assert history(workdir) == history(whole) and history(workdir, "eval") == history(whole, "eval")
    assert kept(workdir) == kept(whole)
    assert without_clocks(summary(workdir)) == without_clocks(summary(whole))


def without_clocks(found):
    train = {name: x for name, x in found["train"].items() if not name.startswith("perf/")}
    return found | {"seconds": 0, "train": train}


@pytest.mark.slow
def test_a_signal_in_an_evaluation_stops_within_a_batch(runs, changes, whole, tmp_path, monkeypatch, capfd):
    batches, read = Run.eval_batches, []

    def counted(self, *names):
        read.append(0)
        for batch in batches(self, *names):
            read[-1] += 1
            if len(read) == 2 and read[-1] == 2:  # the first time they are read for the totals
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    small = changes | {"eval_batch_size": 2}
    monkeypatch.setattr(Run, "eval_batches", counted)
    with pytest.raises(Stopped, match="stopped in the evaluation after step 0; state saved"):
        run("pretrain", runs, tmp_path, **small)
    assert read[0] > 3 and read[1:] == [2] and kept(tmp_path) == [0]
    assert not (tmp_path / "metrics.jsonl").exists()
    said = capfd.readouterr().err
    assert "stopping as soon as the state is saved, as SIGTERM asks; a Ctrl-C ends it at once" in said
    monkeypatch.setattr(Run, "eval_batches", batches)
    run("pretrain", runs, tmp_path, **small)
    assert_same_bits(final_state(tmp_path), final_state(whole))
    for step, value in losses(whole).items():
        assert losses(tmp_path)[step] == pytest.approx(value, rel=1e-6)  # batches of another size


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_with_more_patience(runs, changes, whole, tmp_path, capsys):
    run("pretrain", runs, tmp_path, **changes)
    assert "ends after step" in capsys.readouterr().err
    run("pretrain", runs, tmp_path, **changes | {"best.patience": 0})
    found = losses(tmp_path)
    assert list(found) == list(range(STEPS + 1))
    assert {step: found[step] for step in losses(whole)} == losses(whole)
    assert summary(tmp_path)["best"]["step"] == min(found, key=found.get)


@pytest.mark.slow
def test_values_on_other_data_are_not_compared(runs, changes, whole, tmp_path, capsys):
    held_out = tmp_path / "held_out.jsonl"
    rows = (runs / "pretrain.jsonl").read_text().splitlines(keepends=True)
    held_out.write_text("".join(rows))
    changes = changes | {"data.eval": str(held_out), "best.patience": 0}
    with pytest.raises(Stopped):
        run("pretrain", runs, tmp_path / "run", stop_at=lambda *now: now == (3, 0), **changes)
    before = losses(tmp_path / "run")
    assert before == {step: losses(whole)[step] for step in before}
    held_out.write_text("".join(rows[:9]))
    capsys.readouterr()
    run("pretrain", runs, tmp_path / "run", **changes)
    assert "the held-out data are not those of before; evaluations before and" in capsys.readouterr().err
    after = {step: value for step, value in losses(tmp_path / "run").items() if step not in before}
    assert summary(tmp_path / "run")["best"]["step"] == min(after, key=after.get)


@pytest.mark.slow
def test_where_the_best_is_damaged_or_gone_the_way_out_leads_out(runs, changes, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    best = folder / "checkpoints" / str(summary(whole)["best"]["position"])
    for damage in ((best / "meta" / "metadata").unlink, lambda: shutil.rmtree(best)):
        damage()
        with pytest.raises(
            CheckpointError, match=r"or go on with --config\.best\.export=False to export the last"
        ):
            run("pretrain", runs, folder, **changes)
    run("pretrain", runs, folder, **changes | {"best.export": False})
    last = final_state(whole)["params/embedding"]
    assert (final_state(folder, "model")["params/embedding"] == last).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"best.metric": "accuracy"},
            r"config.best.metric='accuracy' is no number .* gives .*eval/loss, .*eval/nll",
        ),
        ({"data.eval": ""}, r"config.best.metric='loss' needs held-out data: name them in config.data.eval"),
        ({"eval_every": 0}, r"config.best.metric='loss' compares evaluations: set config.eval_every"),
        ({"eval_batch_size": -1}, r"config.eval_batch_size=-1 must be 0 or more"),
    ],
)
def test_a_selection_that_cannot_work_is_refused_before_the_first_step(
    change, message, runs, changes, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        run("pretrain", runs, tmp_path, **changes | {"eval_at_start": False} | change)
    assert not (tmp_path / "metrics.jsonl").exists() or history(tmp_path) == []
