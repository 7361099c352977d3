"""What a reward function may do wrong is an error that names it, and never the end of the program."""

import re

import numpy as np
import pytest

from jaxalign.errors import ConfigError, RewardError
from jaxalign.rewards import call_reward_function, import_reward_function


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit()", "raised SystemExit: ; mend it"),
        ("import sys; sys.exit(0)", "raised SystemExit: 0; mend it"),
        ("def f(prompt, completion) return 1", r"raised SyntaxError: .* \(mine.py, line 1\); mend it"),
        ("1 / 0", "raised ZeroDivisionError: division by zero; mend it"),
        ("import no_such_module", "cannot be imported .*no_such_module"),
        ("g = 1", "cannot be imported .*'f'"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named(code, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(code + "\n")
    with pytest.raises(ConfigError, match=rf"^--reward='{re.escape(str(path))}:f'.*{said}"):
        import_reward_function(f"{path}:f", "--reward")


def leave(prompt, completion):
    raise SystemExit


def interrupted(prompt, completion):
    raise KeyboardInterrupt


def test_a_function_that_ends_the_program_is_named_with_its_input():
    with pytest.raises(
        RewardError, match=r"function leave raised SystemExit: .* for prompt 'p', completion 'c'"
    ):
        call_reward_function(leave, ["p"], ["c"])
    with pytest.raises(KeyboardInterrupt):
        call_reward_function(interrupted, ["p"], ["c"])


@pytest.mark.parametrize("score", [1e39, -1e39, float("inf"), float("nan")])
def test_a_score_that_float32_cannot_hold_is_named(score):
    with pytest.raises(
        RewardError, match=re.escape(f"returned {score} for prompt 'p', completion 'c'; return a")
    ):
        call_reward_function(lambda prompt, completion: score, ["p"], ["c"])


def test_the_largest_float32_is_a_score():
    largest = float(np.finfo(np.float32).max)
    assert call_reward_function(lambda prompt, completion: -largest, ["p"], ["c"]) == [-largest]
