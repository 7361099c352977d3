"""Compiled programs are kept for the user, unless JAX has been told where, and within bounds."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxalign.compilation_cache import LEAST_SECONDS, VARIABLE, cache_variables, remove_oldest

NAME, SECONDS = LEAST_SECONDS


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_programs_are_kept_in_the_users_cache_folder(tmp_path, variable):
    found = cache_variables({variable: str(tmp_path)})
    folder = pathlib.Path(found[VARIABLE])
    base = tmp_path if variable == "XDG_CACHE_HOME" else tmp_path / ".cache"
    assert folder.parent == base / "jaxalign" and folder.is_dir() and found[NAME] == SECONDS
    assert cache_variables({variable: str(tmp_path), NAME: "7"}) == {VARIABLE: str(folder)}


@pytest.mark.parametrize("told", ["", "elsewhere"])
def test_who_tells_jax_where_is_heard(tmp_path, told):
    assert cache_variables({VARIABLE: told, "HOME": str(tmp_path)}) == {}
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "jaxalign").write_text("a file")
    assert cache_variables({"XDG_CACHE_HOME": str(tmp_path)}) == {}


def test_the_oldest_programs_go(tmp_path):
    for age, name in enumerate(("newest", "newer", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    remove_oldest(tmp_path, 25)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["newer", "newest"]
    remove_oldest(tmp_path, 25)
    assert len(list(tmp_path.iterdir())) == 2


CHILD = """
import sys
from jaxalign import cli
class Verb:
    def run(asked):
        import jax
        seen = []
        jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
        jax.jit(lambda x: x @ x)(jax.numpy.ones((64, 64))).block_until_ready()
        print(sum(event.endswith("cache_hits") for event in seen), "jax" in loaded)
        return 0
class Request:
    def parse(argv): return None
loaded = set()
cli.load_verb = lambda verb: (loaded.update(sys.modules), (Verb, Request))[1]
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_second_start_reads_what_the_first_compiled(tmp_path):
    """And the command line itself loads no JAX: help and wrong flags are there at once."""
    hidden = (VARIABLE, NAME)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {
        "XDG_CACHE_HOME": str(tmp_path),
        NAME: "0",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", CHILD, "train"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert said[0] == ["0", "False"] and int(said[1][0]) > 0
