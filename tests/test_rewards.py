"""Every form of a reward function gives its numbers; what it may do wrong is an error that names it."""

import asyncio
import json
import math
import pathlib
import re
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data import DataConfig, build_dataset, train_sentencepiece
from jaxalign.errors import ConfigError, RewardError
from jaxalign.losses.metrics import finalize, merge
from jaxalign.rewards import (
    TrainerState,
    import_reward_function,
    load_rewards,
    math_accuracy,
    reward_metrics,
    weighted_total,
)

ROOT = pathlib.Path(__file__).parents[1]
CHAT = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def rewards(tmp_path):
    """Makes `Rewards` of functions defined by Python code, all of them named f unless `names` says more."""

    def make(code: str, names=("f",), weights=()):
        path = tmp_path / "mine.py"
        path.write_text(code + "\n")
        return load_rewards([f"{path}:{name}" for name in names], weights, "--reward", "--weights")

    return make


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


def test_a_function_that_ends_the_program_is_named_with_its_input(rewards):
    with pytest.raises(RewardError, match=r"function f raised SystemExit: .* for prompt 'p', completion 'c'"):
        rewards("def f(prompt, completion): raise SystemExit").score(["p"], ["c"])
    with pytest.raises(KeyboardInterrupt):
        rewards("def f(prompt, completion): raise KeyboardInterrupt").score(["p"], ["c"])


@pytest.mark.parametrize("score", ["1e39", "-1e39", "inf", "nan"])
def test_a_score_that_float32_cannot_hold_is_named(rewards, score):
    code = f"def f(prompt, completion): return float('{score}')"
    said = f"returned {float(score)} for prompt 'p', completion 'c'; return a"
    with pytest.raises(RewardError, match=re.escape(said)):
        rewards(code).score(["p"], ["c"])


def test_the_largest_float32_is_a_score(rewards):
    largest = float(np.finfo(np.float32).max)
    code = f"def f(prompt, completion): return -{largest!r}"
    assert rewards(code).score(["p"], ["c"]).total == [-largest]


# 10 · length of the prompt + length of the completion, in every form that a function may have.
FORMS = [
    "def f(prompt, completion): return 10 * len(prompt) + len(completion)",
    "def f(completion, prompt): return 10 * len(prompt) + len(completion)",
    "def f(a, b): return 10 * len(a) + len(b)",
    "def f(a, b, /): return 10 * len(a) + len(b)",
    "f = lambda *both: 10 * len(both[0]) + len(both[1])",
    "def f(prompt, completion, **fields): return 10 * fields['asked'] + len(completion)",
    "def f(completion, asked): return 10 * asked + len(completion)",
    "def f(completion, *, asked=0, more=0): return 10 * asked + len(completion) + more",
    "def f(prompts, completions): return [10 * len(p) + len(c) for p, c in zip(prompts, completions)]",
    "def f(completions, asked, **kwargs): return [10 * n + len(c) for n, c in zip(asked, completions)]",
    "def f(asked, **kwargs): return [10 * n + len(c) for n, c in zip(asked, kwargs['completions'])]",
    "def f(completion_ids, prompts): return [10 * len(p) + len(i) for p, i in zip(prompts, completion_ids)]",
    "def f(completions, asked=None, log_extra=None, log_metric=None, **kwargs):\n"
    "    return (10 * n + len(c) for n, c in zip(asked, completions))",
    "async def f(prompt, completion): return 10 * len(prompt) + len(completion)",
    "async def f(a, b): return 10 * len(a) + len(b)",
    "async def f(prompts, completions, **kwargs):\n"
    "    return [10 * len(p) + len(c) for p, c in zip(prompts, completions)]",
    "import functools\ndef g(prompt, completion, factor): return factor * len(prompt) + len(completion)\n"
    "f = functools.partial(g, factor=10)",
    "class F:\n    def __call__(self, prompt, completion): return 10 * len(prompt) + len(completion)\nf = F()",
    "class F:\n    async def __call__(self, completions, asked, **kwargs):\n"
    "        return [10 * n + len(c) for n, c in zip(asked, completions)]\nf = F()",
    "import numpy as np\ndef f(prompts, completions):\n"
    "    return np.array([10 * len(p) + len(c) for p, c in zip(prompts, completions)], np.float32)",
    "import jax.numpy as jnp\ndef f(a, b): return jnp.float32(10 * len(a) + len(b))",
]


@pytest.mark.parametrize("code", FORMS)
@pytest.mark.parametrize("batch_size", [0, 1, 2])
def test_every_form_gives_the_same_numbers(rewards, code, batch_size):
    prompts, texts = ["abc", "", "a"], ["x", "yy", ""]
    rows = [{"prompt": prompt, "asked": len(prompt)} for prompt in prompts]
    scores = rewards(code).score(
        prompts, texts, rows, completion_ids=[[7] * len(text) for text in texts], batch_size=batch_size
    )
    assert scores.total.tolist() == [31, 2, 10] == scores.each["f"].tolist()
    assert scores.total.dtype == np.float64


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_bools_and_scalars_of_other_packages_are_numbers(rewards, module):
    pytest.importorskip(module)
    code = f"import {module} as m\ndef f(a, b): return m.ones(1)[0] * 0.5\n"
    code += "def g(completions): return m.ones(len(completions)) * 0.25\ndef h(a, b): return len(b) > 1"
    scores = rewards(code, ("f", "g", "h")).score(["p", "q"], ["a", "bb"])
    assert scores.total.tolist() == [0.75, 1.75]


def test_a_completion_of_a_batch_has_the_form_of_its_prompt(rewards):
    seen = rewards(
        "seen = []\ndef f(prompts, completions, **kw):\n    seen.append((prompts, completions, kw))\n    return [0, 0]"
    )
    rows = [{"prompt": CHAT, "completion": "the data's", "gold": "4"}, {"prompt": "2 + 3 =", "level": 1}]
    state = TrainerState(global_step=3, max_steps=9)
    seen.score([CHAT, "2 + 3 ="], ["4", "5"], rows, completion_ids=[[1], [2, 3]], trainer_state=state)
    ((prompts, completions, fields),) = seen.functions[0].function.__globals__["seen"]
    assert prompts == [CHAT, "2 + 3 ="]
    assert completions == [[{"role": "assistant", "content": "4"}], "5"]
    assert fields == {
        "completion_ids": [[1], [2, 3]],
        "trainer_state": state,
        "gold": ["4", None],
        "level": [None, 1],
    }


def test_a_single_function_gets_only_the_fields_of_its_row(rewards):
    code = "def f(completion, gold='none', trainer_state=None): return len(gold) + trainer_state.global_step"
    rows = [{"gold": "ab"}, {"other": 1}]
    scores = rewards(code).score(["p", "p"], ["", ""], rows, trainer_state=TrainerState(5, 9))
    assert scores.total.tolist() == [7, 9]


def test_the_sum_is_weighted_and_leaves_out_what_does_not_apply(rewards):
    code = "def f(prompt, completion): return 2 if prompt == 'p' else None\n"
    code += "def g(completions, **kw): return [None if c == 'c' else len(c) for c in completions]"
    made = rewards(code, ("f", "g"), (0.5, -3.0))
    scores = made.score(["p", "p", "q", "q"], ["c", "cc", "cc", "c"], unscored="nan")
    np.testing.assert_array_equal(scores.each["f"], [2, 2, np.nan, np.nan])
    np.testing.assert_array_equal(scores.each["g"], [np.nan, 2, 2, np.nan])
    np.testing.assert_array_equal(scores.total, [1, -5, -6, np.nan])
    np.testing.assert_array_equal(weighted_total(list(scores.each.values()), (0.5, -3.0)), scores.total)
    with pytest.raises(
        RewardError, match=r"no reward function \(f, g\) .* for d:8, prompt 'q', completion 'c'"
    ):
        made.score(["p", "q"], ["cc", "c"], where=["d:7", "d:8"])


def test_no_completions_have_no_scores(rewards):
    scores = rewards("def f(completions): 1 / 0").score([], [])
    assert scores.total.shape == scores.each["f"].shape == (0,)


def test_metrics_are_of_the_completions_that_a_function_applies_to_however_they_are_split():
    rng = np.random.default_rng(0)
    # A small spread about a large mean, where sums of squares would have no digit left.
    scores = (1000 + 0.1 * rng.normal(size=(4, 50))).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = np.nan
    scores[2] = np.nan
    mask = (rng.random(scores.shape) < 0.8).astype(np.float32)
    kept = scores[(mask > 0) & ~np.isnan(scores)].astype(np.float64)
    whole = finalize(jax.jit(reward_metrics)({"f": jnp.ravel(scores)}, jnp.ravel(mask)))
    _, parts = jax.lax.scan(lambda _, xs: (None, reward_metrics({"f": xs[0]}, xs[1])), None, (scores, mask))
    for metrics in (whole, finalize(merge(parts))):
        assert float(metrics["rewards/f/mean"]) == pytest.approx(kept.mean(), rel=1e-6)
        assert float(metrics["rewards/f/std"]) == pytest.approx(kept.std(ddof=1), rel=1e-3)
    for few in ([3.0], [np.nan]):
        assert finalize(reward_metrics({"f": jnp.float32(few)}, jnp.ones(1)))["rewards/f/std"] == 0


# Arrives at a barrier of 6: nobody leaves it before all have come.
MEET = """
import asyncio
here = 0
async def meet():
    global here
    here += 1
    while here < 6:
        await asyncio.sleep(0.001)
async def f(prompt, completion):
    await asyncio.wait_for(meet(), 20)
    return 1
async def g(completions, **fields):
    await asyncio.wait_for(meet(), 20)
    return [2] * len(completions)
"""


def test_async_functions_wait_together(rewards):
    assert rewards(MEET, ("f", "g")).score(["p"] * 5, ["c"] * 5).total.tolist() == [3] * 5


def test_async_functions_keep_one_event_loop_and_work_beside_another(rewards):
    made = rewards("import asyncio\nasync def f(p, c): return id(asyncio.get_running_loop()) % 2**20")

    async def in_a_notebook():
        return made.score(["p"], ["c"]).total.tolist()

    assert made.score(["p"], ["c"]).total.tolist() == asyncio.run(in_a_notebook())


@pytest.mark.parametrize("error", ["SystemExit(1)", "asyncio.CancelledError()", "ValueError('no')"])
def test_an_async_function_that_fails_is_named_and_the_next_call_works(rewards, error):
    code = "import asyncio\nasync def f(p, c):\n    await asyncio.sleep(0)\n    if c == 'bad':\n"
    made = rewards(code + f"        raise {error}\n    return 1")
    kind = error.split("(")[0].split(".")[-1]
    said = rf"function f raised {kind}: .* for .*completion 'bad' \(in .*mine.py, line 5\)"
    with pytest.raises(RewardError, match=said):
        made.score(["p"] * 3, ["a", "bad", "b"])
    assert made.score(["p"], ["a"]).total == [1]


def test_an_interrupt_ends_the_wait(rewards, monkeypatch):
    made = rewards("import asyncio\nasync def f(p, c): await asyncio.sleep(60)")
    main = threading.main_thread()
    import signal

    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main.ident, signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made.score(["p"], ["c"])
    assert time.monotonic() - start < 20


def test_a_reward_file_in_the_home_folder_is_found(tmp_path, monkeypatch):
    """Shells leave a `~` alone that stands behind `=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("def f(prompt, completion): return 3.0")
    assert import_reward_function("~/mine.py:f", "--reward")("a", "b") == 3


def test_a_reward_file_may_have_dataclasses_whose_annotations_are_text(rewards):
    code = (
        "from __future__ import annotations",
        "import dataclasses",
        "@dataclasses.dataclass",
        "class Judge:",
        "    factor: float = 0.5",
        "def f(prompt, completion): return Judge().factor * len(completion)",
    )
    assert rewards("\n".join(code)).score(["p"], ["four"]).total == [2]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(): return 1", "f()"),
        ("def f(text): return 1", "f(text)"),
        ("def f(a, b, c): return 1", "f(a, b, c)"),
        ("def f(prompt, completion, /, gold): return 1", "f(prompt, completion, /, gold)"),
        ("def f(prompt, completions): return [1]", "f(prompt, completions)"),
        ("def f(x, /, **fields): return [1]", "f(x, /, **fields)"),
    ],
)
def test_a_wrong_signature_is_refused_when_it_is_loaded(rewards, tmp_path, code, said):
    path = re.escape(f"{tmp_path}/mine.py:f")
    with pytest.raises(
        ConfigError, match=rf"^--reward='{path}' has the signature {re.escape(said)}; write f\("
    ):
        rewards(code)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def f(completions, gold): return [1]",
            r"f has a parameter gold, and d:2 has no such field .* it has: no",
        ),
        (
            "def f(completion, gold): return 1",
            r"f has a parameter gold, and d:2 has no such field .* it has: none",
        ),
        ("def f(completions, completion_ids): return [1]", "completion_ids, which is known in training only"),
        ("def f(completion, trainer_state): return 1", "trainer_state, which is known in training only"),
        (
            "def f(completions, log_extra, **kw): return [1]",
            "a parameter log_extra, and d:1 has no such field",
        ),
        (
            "def f(completions): return 1.5",
            "f returned 1.5 for 2 completions; .* takes a batch: return a list",
        ),
        ("def f(completions): return 'no'", "f returned 'no' for 2 completions"),
        ("def f(completions): return [1]", "f returned 1 values for 2 completions"),
        (
            "def f(completions): return [1, '2']",
            "f returned '2' for d:2, prompt 'q', completion 'cc'; return a fin",
        ),
        ("def f(p, c): return [1, 2]", r"f returned \[1, 2\] for d:1, prompt 'p'"),
        ("import numpy as np\ndef f(p, c): return np.ones(2)", r"f returned array\(\[1., 1.\]\) for d:1"),
        ("def f(p, c): return float('nan') if c == 'cc' else 1", "f returned nan for d:2, prompt 'q'"),
        (
            "def f(p, c):\n    if c == 'cc':\n        {}['x']\n    return 1",
            r"f raised KeyError: 'x' for d:2, prompt 'q', completion 'cc' \(in .*mine.py, line 3\); it must",
        ),
        (
            "def f(completions, **kw):\n    return [1 / (2 - len(c)) for c in completions]",
            r"f raised ZeroDivisionError: division by zero for d:2, prompt 'q', completion 'cc' \(in .*, line 2\)",
        ),
        (
            "def f(completions, **kw):\n    if len(completions) > 1: raise ValueError('many')\n    return [1]",
            "f raised ValueError: many for 2 completions, the first of d:1, prompt 'p', completion 'c' ",
        ),
    ],
)
def test_what_a_function_does_wrong_is_named_with_row_and_input(rewards, code, said):
    made = rewards(code)
    with pytest.raises(RewardError, match=said):
        made.score(["p", "q"], ["c", "cc"], [{"gold": "1"}, {}], where=["d:1", "d:2"])


def test_a_field_is_asked_for_before_any_function_is_called(rewards):
    code = "called = []\ndef f(p, c): called.append(1); return 1\ndef g(completion, gold): return 1"
    made = rewards(code, ("f", "g"))
    with pytest.raises(RewardError, match="the reward function g has a parameter gold"):
        made.score(["p"], ["c"])
    assert made.functions[0].function.__globals__["called"] == []


def test_weights_and_names(rewards, tmp_path):
    code = "def f(p, c): return 1\ndef f_2(p, c): return 2"
    made = rewards(code, ("f", "f_2", "f", "f"))
    assert made.weights == (1, 1, 1, 1)
    assert list(made.score(["p"], ["c"]).each.items()) == [("f", 1), ("f_2", 2), ("f_3", 1), ("f_4", 1)]
    with pytest.raises(
        ConfigError, match=r"^--weights=\(1, 2, 3\) has 3 numbers for the 2 functions of --reward"
    ):
        rewards(code, ("f", "f_2"), (1, 2, 3))
    with pytest.raises(ConfigError, match=r"^--weights=\(nan,\) must hold finite numbers"):
        rewards(code, ("f",), (math.nan,))
    with pytest.raises(ConfigError, match=r"^--reward names no reward function"):
        rewards(code, ())
    with pytest.raises(ValueError, match="2 completions, but 1 prompts"):
        made.score(["p"], ["c", "c"])


def test_the_rewards_of_trl_work_as_they_are(tmp_path):
    """Each gives here what it gives when it is called as TRL calls it."""
    trl = pytest.importorskip("trl.rewards")
    path = tmp_path / "mine.py"
    path.write_text(
        "from trl import rewards\n"
        "cosine = rewards.get_cosine_scaled_reward(max_len=8)\n"
        "repetition = rewards.get_repetition_penalty_reward(ngram_size=1)\n"
        "overlong = rewards.get_soft_overlong_punishment(max_completion_len=6, soft_punish_cache=4)\n"
    )
    names = ["accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"]
    made = load_rewards(
        [f"trl.rewards:{n}" for n in names] + [f"{path}:{n}" for n in ("cosine", "repetition", "overlong")]
    )
    texts = [
        r"<think>a third</think>\boxed{\frac{1}{3}}",
        r"\boxed{\frac{1}{2}}",
        "<think>hm</think>no idea",
        r"<think>1</think>\boxed{1}",
    ]
    rows = [{"solution": s, "level": 1} for s in (r"\frac{1}{3}", r"\frac{1}{3}", "4", "nothing")]
    ids = [[1, 2, 3], [5, 5, 5, 5, 5], [1] * 7, [1]]
    scores = made.score([CHAT] * 4, texts, rows, completion_ids=ids)
    wanted = {"accuracy_reward": [1, 0, 0, None], "reasoning_accuracy_reward": [1, 0, 0, None]}
    wanted["think_format_reward"] = [1, 0, 1, 1]
    wanted["repetition"] = [0, -0.8, -6 / 7, 0]
    wanted["overlong"] = [-0.25, -0.75, -1, 0]
    called = {
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "solution": [row["solution"] for row in rows],
        "completion_ids": ids,
    }
    wanted["cosine"] = trl.get_cosine_scaled_reward(max_len=8)(**called)
    for name in names:
        assert getattr(trl, name)(**called) == wanted[name]
    assert scores.each.keys() == wanted.keys()
    for name, expected in wanted.items():
        np.testing.assert_allclose(scores.each[name], np.array(expected, float), err_msg=name)
    assert np.isfinite(scores.total).all()


@pytest.mark.slow
def test_maths_answers_are_equal_by_value():
    pytest.importorskip("math_verify")
    for answer, completion, right in [
        ("72", "The answer is 72.", 1),
        (72, r"71? No: \boxed{72}, as 8 x 9.", 1),
        ("8 x 9 = 72\n#### 72", "72", 1),
        ("72", "72 is wrong, it is 71", 0),
        ("1,234", "1234", 1),
        (r"\frac{1}{2}", "0.5", 1),
        ("0.5", r"$\frac12$", 1),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \frac{\pi}{2})}", 1),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{3}", 0),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", 1),
        (r"2\sqrt{3}", r"\boxed{2}", 0),
        ("x+1", "$1+x$", 1),
        ("5", r"<think>\boxed{4}</think> It is 5.", 1),
        ("5", "", 0),
        ("5", "I do not know.", 0),
    ]:
        assert math_accuracy(completion, answer) == right, (answer, completion)
    assert math_accuracy("4", solution=r"Two and two are $2 + 2 = \boxed{4}$.") == 1
    assert math_accuracy("3", solution=r"Two and two are $2 + 2 = \boxed{4}$.") == 0


def test_maths_blames_the_row_for_an_answer_that_cannot_be_read():
    pytest.importorskip("math_verify")
    made = load_rewards(["jaxalign.rewards:math_accuracy"])
    for row, said in [
        ({"answer": " "}, "no answer can be read from the row's answer"),
        ({"other": "4"}, "has neither an answer nor a solution"),
        ({"answer": None, "solution": "so there"}, "from the row's solution, 'so there'"),
    ]:
        said = rf"function math_accuracy raised ValueError: .*{said}.* for d:2, prompt"
        with pytest.raises(RewardError, match=said):
            made.score([CHAT, CHAT], ["4", "4"], [{"answer": "4"}, row], where=["d:1", "d:2"])


@pytest.mark.parametrize(
    ("function", "package"), [("math_accuracy", "math-verify"), ("vader", "vaderSentiment")]
)
def test_a_package_that_is_missing_is_named_with_the_command_to_install_it(monkeypatch, function, package):
    from jaxalign.rewards import provided

    provided._vader.cache_clear()
    for module in ("math_verify", "vaderSentiment.vaderSentiment"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"needs a package: pip install {package}"):
        load_rewards([f"jaxalign.rewards:{function}"]).score(["p"], ["c"], [{"answer": "1"}])


def test_fields_of_the_data_reach_the_functions(tmp_path, rewards):
    """GSM8K's rows: a question, which becomes the prompt, and an answer."""
    texts = [f"what is {a} and {b}, and what are they?" for a in range(9) for b in range(9)]
    tokenizer = train_sentencepiece(texts, tmp_path / "t.model", 290)
    path = tmp_path / "gsm.jsonl"
    questions = [{"question": f"what is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    dataset = build_dataset(DataConfig(train=str(path), max_length=64, row_length=64), tokenizer, "prompt")
    rows = [dataset.record(n) for n in range(3)]
    made = rewards("def f(completion, answer): return answer.endswith(completion)")
    scores = made.score([row["prompt"] for row in rows], ["0", "2", "5"], rows)
    assert scores.total.tolist() == [1, 1, 0]


def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("math_verify")
    page = (ROOT / "docs/rewards.md").read_text("utf-8")
    first, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert first.startswith("# my.py\n") and len(blocks) == 2
    (tmp_path / "my.py").write_text(first)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})
    numbers = [float(x) for x in re.findall(r"-?\d*\.\d*", capsys.readouterr().out)]
    assert numbers == pytest.approx([1.0 - 0.2 * 0.09 + 0.1, -0.2 * 0.01, 1, 0, 1, 0])
