"""What a conversion to fewer bits takes from a model: training moves many weights by less than bfloat16 can tell."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxalign.errors import JaxalignError
from jaxalign.models.hf.importer import Path
from jaxalign.training.saved_model import SavedModel, find_model


class Rounding:
    """Watches the parameters of a model while they are written in `dtype`, and compares them with its base.

    The base is the model that training started from, where the run says which it was and it is still there.
    """

    def __init__(self, model: SavedModel, dtype: str) -> None:
        self.dtype = dtype
        self.base = _find_base(model)
        self._read_base: Callable[[Path], jax.Array] | None = None
        if self.base is not None:
            self._read_base = self.base.leaf_reader(jax.sharding.get_mesh())
            # A scalar model holds the language model that it began as.
            self._inner = model.scalar and not self.base.scalar
        self._seen: set[Path] = set()
        self._changed = self._back = self._error = self._size = 0.0

    def watch(self, read: Callable[[Path], jax.Array]) -> Callable[[Path], jax.Array]:
        """`read`, whose results are measured."""
        if self.dtype == "float32":
            return read

        def watched(path: Path) -> jax.Array:
            leaf = read(path)
            if path not in self._seen:
                self._seen.add(path)
                self._measure(path, leaf)
            return leaf

        return watched

    def notices(self) -> list[str]:
        """What is lost, in a line; none where nothing is."""
        way_out = "--dtype=float32 keeps them as they were trained"
        if self.base is not None and self._changed:
            share = self._back / self._changed
            return [
                f"{self.dtype}: of the {self._changed:,.0f} weights that training changed, {share:.1%} round back to "
                f"what they were in {self.base.path}; {way_out}"
            ]
        if not self._error:
            return []
        error = (self._error / self._size) ** 0.5
        return [f"{self.dtype}: weights are rounded, by {error:.2%} in the root mean square; {way_out}"]

    def _measure(self, path: Path, leaf: jax.Array) -> None:
        error, size = map(float, _rounding_error(leaf, self.dtype))
        self._error, self._size = self._error + error, self._size + size
        if self._read_base is None or (self._inner and path[0] != "transformer"):
            return
        base = self._read_base(path[1:] if self._inner else path)
        changed, back = map(float, _changed(leaf, base, self.dtype))
        self._changed, self._back = self._changed + changed * leaf.size, self._back + back * leaf.size


def _find_base(model: SavedModel) -> SavedModel | None:
    path = model.meta.get("config", {}).get("model", {}).get("init_from", "")
    try:
        base = find_model(path, "the model that training started from") if path else None
    except JaxalignError:  # it has gone, or lies on another machine
        return None
    if base is None or (base.scalar and not model.scalar):
        return None
    same = (
        base.config.vocab_size == model.config.vocab_size
        and base.config.num_layers == model.config.num_layers
    )
    return base if same else None


def _rounded(x: jax.Array, dtype: str) -> jax.Array:
    # Casts there and back may be optimised away.
    kind = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)


@functools.partial(jax.jit, static_argnums=1)
def _rounding_error(x: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    lost = x - _rounded(x, dtype)
    return jnp.sum(jnp.square(lost)), jnp.sum(jnp.square(x))


@functools.partial(jax.jit, static_argnums=2)
def _changed(x: jax.Array, base: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Shares, as counts of large tables would leave int32."""
    changed = x != base
    back = changed & (_rounded(x, dtype) == _rounded(base, dtype))
    return jnp.mean(changed, dtype=jnp.float32), jnp.mean(back, dtype=jnp.float32)
