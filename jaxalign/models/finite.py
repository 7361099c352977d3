"""Whether a model can read its tokens, and whether what it says is a number."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxalign.errors import ConfigError, NonFiniteError, amount
from jaxalign.models.config import ModelConfig


def check_finite(values: Any, dtype: str, where: Callable[[int], str], noun: str = "record") -> None:
    """Checks what a model said of each of N things: [N] or [N, ...].

    Args:
      dtype: what it was computed in.
      where: gives the place of one of them by its number.
      noun: what they are.

    Raises:
      NonFiniteError: names the first that is NaN or infinite, and the way out.
    """
    values = np.asarray(values)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if not bad.size:
        return
    way_out = "compute in float32 (--dtype=float32, or config.model.dtype), whose numbers may be larger"
    if dtype == "float32":
        way_out = "its parameters are damaged or too large: `jaxalign verify` reads them; take an earlier one"
    raise NonFiniteError(
        f"{where(int(bad[0]))}: the model gives NaN or infinity, computed in {dtype}, as of {bad.size} of "
        f"{amount(len(values), noun)}; {way_out}"
    )


def check_ids(tokens: Any, config: ModelConfig) -> None:
    """Checks that a model has a row for each of some ids, those of padding too; for others it would give NaN.

    Raises:
      ConfigError: it has not; names the largest id.
    """
    largest = int(np.max(tokens, initial=0))
    if largest >= config.vocab_size:
        raise ConfigError(
            f"the tokenizer gives the id {largest}, but the model has vocab_size={config.vocab_size}: its "
            f"ids end at {config.vocab_size - 1}; put the tokenizer that it was trained with beside it (a "
            "padding token that was added later needs another name, such as that of the end of a text)"
        )
