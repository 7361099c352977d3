"""Several processes train what one process trains; none outlives a failure of another."""

import json
import pathlib
import random
import signal
import sys

import pytest
from cluster import call, finish, report, start, succeed, wait_until
from test_stage_resume import assert_same_numbers, newest
from tiny import baseline_changes, history, run, set_reward_function

from jaxalign.training.watchdog import EXIT_CODE
from jaxalign.training.writer import FILE_NAME, SAMPLES, read_metrics

HERE = pathlib.Path(__file__).parent
# How the devices of two processes with four each lie in the mesh.
SIDE_BY_SIDE = [0, 1, 2, 3, 4, 5, 6, 7]
INTERLEAVED = [0, 1, 4, 5, 2, 3, 6, 7]  # as on a torus: a process's rows are not neighbours
ALTERNATING = [0, 4, 1, 5, 2, 6, 3, 7]  # the last axis of the mesh crosses the processes
ALL_AXES = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
EIGHT_ROWS = {"mesh.data": 8}
# One of each kind: demonstrations, a scalar model, a reference that is not trained, and sampling with a critic.
KINDS = ("sft", "reward", "kto", "ppo")


def member(runs, workdir, jobs):
    return [str(HERE / "member.py"), str(runs), str(workdir), json.dumps(jobs)]


def members(runs, workdir, jobs, count=2, **options):
    return start([member(runs, workdir, jobs)] * count, **options)


def command_line(stage, runs, workdir, *flags):
    config = f"--config={HERE / 'tiny_config.py'}:{stage},{runs}"
    return ["-m", "jaxalign", "train", config, f"--workdir={workdir}", *flags]


@pytest.mark.slow
def test_two_processes_train_as_one_does(runs, baseline, tmp_path):
    on_all = ALL_AXES | {"hang_timeout": 120.0}  # what hangs ends itself, and is not left behind
    jobs = [[stage, stage, SIDE_BY_SIDE, baseline_changes(stage, runs) | on_all] for stage in KINDS]
    script = ["launch/local_cluster.sh", "2", "--devices-per-process=4", "--"]
    code, output = call(*script, sys.executable, *member(runs, tmp_path, jobs))
    assert code == 0, output
    for stage in KINDS:
        assert_same_numbers(tmp_path / stage, baseline(stage))
        for (step, mine), (_, theirs) in zip(
            history(tmp_path / stage, "eval"), history(baseline(stage), "eval"), strict=True
        ):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4), (stage, step)
        if stage in ("sft", "ppo"):
            mine, theirs = ((path / SAMPLES).read_text() for path in (tmp_path / stage, baseline(stage)))
            for a, b in zip(mine.splitlines(), theirs.splitlines(), strict=True):
                asked = [{**json.loads(line), "completion": "", "finished": 0, "score": 0} for line in (a, b)]
                assert asked[0] == asked[1], stage


@pytest.mark.slow
def test_rows_go_where_the_mesh_says(runs, tmp_path):
    scored = set_reward_function("reward_function") | {"data.eval": str(runs / "prompts.jsonl")}
    scored |= {"ppo.ptx_coef": 1.0, "ppo.ptx_data": str(runs / "pretrain.jsonl")}
    scored |= {"ppo.pack_completions": True, "data.max_length": 40}  # many rows that are mostly empty
    precomputed = {"dpo.precompute_reference": True, "data.eval": str(runs / "pairs.jsonl")}
    jobs = [
        ["rewards", "ppo", ALTERNATING, scored | {"mesh.data": 4, "mesh.tensor": 2}],
        ["reference", "dpo", INTERLEAVED, precomputed | EIGHT_ROWS],
    ]
    succeed(members(runs, tmp_path / "two", jobs))
    for name, stage, _, changes in jobs:
        run(
            stage,
            runs,
            tmp_path / "one" / name,
            **{key: x for key, x in changes.items() if "mesh" not in key},
        )
        assert_same_numbers(tmp_path / "two" / name, tmp_path / "one" / name)
    one, two = (
        sorted(path.name for path in (tmp_path / which / "reference" / "reference_logp").iterdir())
        for which in ("one", "two")
    )
    assert one == two  # weights and data have one digest
    lines = (tmp_path / "two" / "rewards" / FILE_NAME).read_text().splitlines()
    assert len(lines) == 4  # three steps and an evaluation, each written once


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_kill_the_rest_ends_and_one_process_can_go_on(victim, runs, tmp_path):
    changes = {"num_steps": 60, "checkpoint_every": 10}
    processes = members(
        runs, tmp_path, [["two", "orpo", SIDE_BY_SIDE, changes | ALL_AXES]], JAXALIGN_HEARTBEAT="12"
    )
    moment = random.randint(11, 39)
    wait_until(lambda: steps_done(tmp_path / "two") >= moment, processes)
    processes[victim].kill()
    ended = finish(processes)
    codes = [code for code, _ in ended]
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, -signal.SIGKILL), report(ended)
    assert "it was still there" not in ended[1 - victim][1], report(ended)
    assert 10 <= newest(tmp_path / "two") < 60
    run("orpo", runs, tmp_path / "two", **changes)
    run("orpo", runs, tmp_path / "one", num_steps=60)
    assert_same_numbers(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_processes_that_were_not_started_alike_refuse_by_name(runs, tmp_path):
    flags = [[], ["--config.seed=7", "--config.dpo.beta=0.5"]]
    ended = finish(start([command_line("dpo", runs, tmp_path / "run", *own) for own in flags], devices=1))
    for code, output in ended:
        assert code == 1, output
        assert "config.seed: process 0 has 0, process 1 has 7" in output
        assert "config.dpo.beta: process 0 has 0.1, process 1 has 0.5" in output
        assert "config.batch_size" not in output
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.slow
def test_a_reward_function_that_fails_in_one_process_fails_in_all(runs, tmp_path):
    changes = {"ppo.reward": "member:failing_on_process_1"}
    ended = finish(members(runs, tmp_path, [["ppo", "ppo", [0, 1], changes]], devices=1))
    assert [code for code, _ in ended] == [1, 1], report(ended)
    assert (
        "DistributedError: process 1 failed: the reward function failing_on_process_1 raised Zero"
        in ended[0][1]
    )
    assert "RewardError: the reward function failing_on_process_1 raised ZeroDivisionError" in ended[1][1]


@pytest.mark.slow
def test_a_hanging_step_is_named_and_ends_the_process(runs, tmp_path):
    changes = {"ppo.reward": "member:hanging", "hang_timeout": 20.0}
    (code, output), *_ = finish(members(runs, tmp_path, [["ppo", "ppo", [0], changes]], count=1, devices=1))
    assert code == EXIT_CODE, output
    assert "process 0 of 1 hangs: 20 s in step 3, rollout phase." in output
    assert 'member.py", line' in output and "in hanging" in output and "Thread" in output


def steps_done(workdir: pathlib.Path) -> int:
    if not (workdir / FILE_NAME).is_file():
        return 0
    return max((line["step"] for line in read_metrics(workdir)), default=0)
