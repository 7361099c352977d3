"""slurm.sbatch as SLURM runs it: a copy in a spool folder, srun starting the tasks of several processes."""

import shutil

import pytest

from .conftest import AWKWARD, ROOT

JOB = ["--config=c.py", "--workdir=w"]
STEP = ["srun", "--kill-on-bad-exit=0", "--wait=600"]
# srun with two tasks: runs what follows its own options in each, and returns the highest exit code.
SRUN = """
command = argv[next(i for i, word in enumerate(argv) if not word.startswith('--')):]
tasks = [subprocess.run(command, env=os.environ | {'SLURM_PROCID': str(k)}) for k in range(2)]
code = max(task.returncode for task in tasks)
"""


@pytest.fixture
def sbatch(fakes, checkout, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    script = shutil.copy(checkout / "launch/slurm.sbatch", spool / "slurm_script")

    def run(*flags, codes=(), **environment):
        """Runs the job; `codes` are those of the tasks, in turn, of one step after the other."""
        for _ in codes[::2]:
            fakes.answer("srun", run=SRUN)
        for code in codes:
            fakes.answer("jaxalign", "train", code=code)
        job = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(checkout)}
        return fakes.run("bash", str(script), *JOB, *flags, cwd=spool, **job | environment)

    return run


def called(fakes, program):
    return [call for call in fakes.calls if call[0] == program]


def test_every_task_runs_the_training(fakes, sbatch, checkout):
    assert sbatch(*AWKWARD, codes=[0, 0]).returncode == 0
    (step,) = called(fakes, "srun")
    assert step[:5] == [*STEP, "bash", "-c"]
    assert step[6:] == ["task", ".venv/bin/jaxalign", "train", *JOB, *AWKWARD]
    assert called(fakes, "jaxalign") == [["jaxalign", "train", *JOB, *AWKWARD]] * 2
    assert called(fakes, "scontrol") == []


def test_75_goes_back_into_the_queue(fakes, sbatch):
    assert sbatch(codes=[75, 75]).returncode == 0
    assert called(fakes, "scontrol") == [["scontrol", "requeue", "77"]]


@pytest.mark.parametrize("codes, result", [([1, 75], 1), ([75, 70], 70), ([0, 2], 2), ([137, 75], 137)])
def test_an_error_is_not_hidden_by_a_75(fakes, sbatch, codes, result):
    """srun returns the highest code of its tasks."""
    ran = sbatch(codes=codes)
    assert ran.returncode == result
    assert f"failed with exit code {result}" in ran.stderr
    assert called(fakes, "scontrol") == []


def test_restarts_after_errors_are_counted(fakes, sbatch):
    assert sbatch("--max-restarts=1", codes=[1, 1, 0, 0]).returncode == 0
    assert len(called(fakes, "srun")) == 2


def test_in_a_container(fakes, sbatch):
    assert sbatch("--container=/i.sqsh", "--container-mounts=/a b:/c").returncode == 0
    (step,) = called(fakes, "srun")
    assert step[:7] == [*STEP, "--container-image=/i.sqsh", "--container-mounts=/a b:/c", "bash", "-c"]
    assert step[8:] == ["task", "jaxalign", "train", *JOB]


def test_a_venv_elsewhere(fakes, sbatch):
    assert sbatch("--venv=/shared/my venv").returncode == 0
    assert called(fakes, "srun")[0][6:8] == ["task", "/shared/my venv/bin/jaxalign"]


def test_one_process_for_each_gpu(fakes, sbatch):
    refused = sbatch(SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="8")
    assert refused.returncode == 2
    assert "8 tasks but 4 GPUs on a node" in refused.stderr and "--ntasks-per-node=4" in refused.stderr
    assert sbatch(SLURM_GPUS_ON_NODE="8", SLURM_NTASKS_PER_NODE="8").returncode == 0


def test_a_job_submitted_from_elsewhere_says_so(fakes, sbatch, tmp_path):
    refused = sbatch(SLURM_SUBMIT_DIR=str(tmp_path))
    assert refused.returncode == 2 and "call sbatch from its folder" in refused.stderr


def test_the_directives_ask_for_notice_and_for_the_queue():
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= asked
    tasks, gpus = (
        next(word.split("=")[1] for word in asked if word.startswith(f"--{name}="))
        for name in ("ntasks-per-node", "gpus-per-node")
    )
    assert tasks == gpus
