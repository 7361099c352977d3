"""A trace holds the steps that were asked for, and no others; a range outside the run is refused."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from jaxalign.errors import ConfigError
from jaxalign.training.profile import Profiler, Steps


@pytest.mark.parametrize("text", ["3", "3:", "a:b", "-1:3", "3:4:5", "1.5:2"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ConfigError, match=rf"--profile={text} is not of the form START:STOP; .*10:12"):
        Steps.parse(text)


@pytest.mark.parametrize("text", ["0:3", "5:4"])
def test_a_range_without_a_step_is_refused(text):
    with pytest.raises(ConfigError, match=rf"--profile={text} holds no step: steps count from 1"):
        Steps.parse(text)


@pytest.mark.parametrize(
    ("text", "done", "told"),
    [
        (
            "9:11",
            0,
            "--profile=9:11 is outside the run: the steps 1 to 10 are to be done; name some of these",
        ),
        ("4:6", 4, "--profile=4:6 is outside the run: the steps 5 to 10 are to be done; name some of these"),
        ("2:3", 10, "--profile=2:3: the run has done all of its 10 steps; leave the flag out"),
    ],
)
def test_a_range_outside_the_run_is_refused(text, done, told):
    with pytest.raises(ConfigError) as error:
        Steps.parse(text).check(done, 10)
    assert str(error.value) == told


def test_all_steps_of_a_run_may_be_traced():
    Steps.parse("1:10").check(0, 10)
    Steps.parse("5:5").check(4, 10)


def trace(folder, steps, ends=True):
    """Runs six steps; those of the trace, by the number that each is annotated with."""
    double = jax.jit(lambda x: x * 2)
    x = double(jnp.ones(8))
    with Profiler(steps, folder) as profiler:
        for step in range(1, 7 if ends else 5):
            if profiler.begins(step):
                profiler.start(x)
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                x = double(x)
            if profiler.ends(step):
                profiler.stop(x)
    (found,) = (folder / "profile/plugins/profile").glob("*/*.trace.json.gz")
    assert found.with_name(found.name.replace(".trace.json.gz", ".xplane.pb")).stat().st_size > 1000
    events = json.loads(gzip.decompress(found.read_bytes()))["traceEvents"]
    return found, [int(each["args"]["step_num"]) for each in events if each.get("name") == "step"]


def test_a_trace_holds_its_steps_and_no_others(tmp_path, capfd):
    found, steps = trace(tmp_path, Steps(3, 4))
    assert steps == [3, 4] and found.parent.name == "steps_3_4" and found.name.endswith("_0.trace.json.gz")
    assert capfd.readouterr().err == f"steps 3 to 4 are traced in {found.parent}\n"


def test_a_run_that_ends_in_the_middle_leaves_what_there_is(tmp_path):
    assert trace(tmp_path, Steps(3, 6), ends=False)[1] == [3, 4]


def test_without_a_range_nothing_is_written(tmp_path):
    with Profiler(None, tmp_path) as profiler:
        assert not profiler.begins(1) and not profiler.ends(1)
    assert list(tmp_path.iterdir()) == []
