"""Rewards that come with jaxalign; each needs a package of its own, which is imported when it is first called."""

import functools
import threading
from types import ModuleType
from typing import Any

from jaxalign.errors import ConfigError

_TIMEOUT = 5  # seconds for one answer: a model may write 9^9^9^9^9


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ConfigError("the VADER reward needs a package: pip install vaderSentiment") from error
    return SentimentIntensityAnalyzer()


def vader(prompt: Any, completion: str) -> float:
    """VADER's compound sentiment, -1 to 1 (Hutto and Gilbert 2014), of the completion after a plain-text prompt.

    Of prompt and completion as one text; of the completion alone when the prompt is a conversation.
    """
    text = prompt + completion if isinstance(prompt, str) else completion
    return float(_vader().polarity_scores(text)["compound"])


def _math_verify() -> ModuleType:
    try:
        import math_verify  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("the reward math_accuracy needs a package: pip install math-verify") from error
    return math_verify


def math_accuracy(completion: str, answer: Any = None, solution: str | None = None) -> float:
    r"""Returns 1.0 if the completion's final answer equals that of its row, and else 0.0, as `math-verify` judges.

    Equal are, for example, `1/2`, `0.5` and `\frac{1}{2}`. The final answer is what stands in `\boxed{}`, or else
    the last expression; what a model thinks before `</think>` is left out.

    Args:
      answer: the row's field of that name: the final answer alone, as a number or in LaTeX, or as GSM8K writes it, a
        solution that ends in `#### 72`.
      solution: the row's field of that name, read where there is no `answer`: a text with the answer in `\boxed{}`.

    Raises:
      ConfigError: `math-verify` is not installed.
      ValueError: the row has neither field, or no answer can be read from it.
    """
    verifier = _math_verify()
    if answer is None and solution is None:
        raise ValueError("the row has neither an answer nor a solution; add a field answer to the data")
    # The package stops what takes too long by a signal, which only the main thread gets.
    timeout = _TIMEOUT if threading.current_thread() is threading.main_thread() else None
    if answer is None:
        right, field = str(solution), "solution"
    else:
        right, field = str(answer).rpartition("####")[2].strip(), "answer"
        # Outside of a formula, of (3, \pi) and 2\sqrt{3} no more than a number would be read.
        if not any(mark in right for mark in ("$", r"\boxed", r"\(", r"\[")):
            right = f"${right}$"
    gold = verifier.parse(right, parsing_timeout=timeout)
    if not gold:
        raise ValueError(f"no answer can be read from the row's {field}, {right!r}; mend or remove the row")
    final = completion.rpartition("</think>")[2]
    kinds = [verifier.LatexExtractionConfig(boxed_match_priority=0), verifier.ExprExtractionConfig()]
    given = verifier.parse(final, extraction_config=kinds, parsing_timeout=timeout)
    return float(verifier.verify(gold, given, timeout_seconds=timeout))
