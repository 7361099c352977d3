"""`jaxalign train` in several processes, as launch/local_cluster.sh starts them."""

import pathlib
import re
import sys

import pytest
from cluster import call
from tiny import assert_same_bits, final_state, history

HERE = pathlib.Path(__file__).parent
SCRIPT = "launch/local_cluster.sh"


def train(stage, runs, workdir, *flags):
    config = f"--config={HERE / 'tiny_config.py'}:{stage},{runs}"
    patience = "--config.hang_timeout=60"  # what hangs ends itself, says where, and is not left behind
    return ["--", sys.executable, "-m", "jaxalign", "train", config, f"--workdir={workdir}", patience, *flags]


def scored_by(name):
    return [f"--config.ppo.reward=member:{name}"]


@pytest.mark.slow
def test_the_failure_of_one_process_ends_the_other(runs, tmp_path):
    code, output = call(SCRIPT, "2", *train("ppo", runs, tmp_path, *scored_by("dying_on_process_1")))
    assert code == 3, output
    assert "process 1 failed with exit code 3" in output and "hangs" not in output


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_the_run_goes_on(runs, tmp_path):
    flags = [*scored_by("interrupted_once"), "--config.num_steps=5"]
    restarting = f'source launch/common.sh; keep_running {SCRIPT} 2 "$@"'
    command = train("ppo", runs, tmp_path / "stopped", *flags)
    code, output = call("bash", "-c", restarting, "bash", *command, ONCE=str(tmp_path / "once"))
    assert code == 0, output
    stopped = re.findall(r"^\[(\d)\] jaxalign train: (stopped .*)$", output, re.MULTILINE)
    assert sorted(process for process, _ in stopped) == ["0", "1"], output
    assert len({message for _, message in stopped}) == 1 and "state saved" in stopped[0][1], output
    assert output.count("stopped with its state saved; running it again") == 1, output
    code, output = call(SCRIPT, "2", *train("ppo", runs, tmp_path / "whole", *flags), ONCE=str(tmp_path))
    assert code == 0 and "stopped" not in output, output
    assert_same_bits(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
