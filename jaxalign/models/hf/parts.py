"""Small two-way readings of a config.json, from which families are put together.

A `Part` turns some keys of config.json into fields of ModelConfig, and back. Writing may lose what the family
cannot express: whoever writes reads back and compares.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxalign.errors import ConfigError
from jaxalign.fields import limits_of
from jaxalign.models.config import ModelConfig
from jaxalign.models.hf.reader import Reader

_LIMITS = {each.name: limits_of(each) for each in dataclasses.fields(ModelConfig)}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


class Part(NamedTuple):
    """Keys of config.json -> fields of ModelConfig, and back."""

    read: Callable[[Reader], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


def key(theirs: str, ours: str, default: Any) -> Part:
    """One key that is one field."""

    def read(r: Reader) -> dict[str, Any]:
        return {ours: within(r, theirs, ours, r.take(theirs, default))}

    return Part(read, lambda c: {theirs: getattr(c, ours)})


def within(r: Reader, theirs: str, ours: str, value: Any) -> Any:
    """A value, if it is one that our field may have; ConfigError names their key."""
    limits = _LIMITS.get(ours)
    if limits is not None and not limits.allow(value):
        raise r.error(theirs, limits.wanted(value).strip())
    return value


def optional(theirs: str, ours: str, default: float | None) -> Part:
    """One key that is one field, where null is 0: not in use."""
    return Part(
        lambda r: {ours: float(r.take(theirs, default, null=0.0))},
        lambda c: {theirs: getattr(c, ours) or None},
    )


def fixed(**fields: Any) -> Part:
    """Fields that are the same in every model of the family."""
    return Part(lambda r: fields, lambda c: {})


def only(theirs: str, *accepted: Any) -> Part:
    """A key that changes the function and is supported with these values alone."""

    def read(r: Reader) -> dict[str, Any]:
        r.only(theirs, *accepted)
        return {}

    return Part(read, lambda c: {})


def biases(theirs: str, default: bool, *ours: str) -> Part:
    """One key for the biases of several projections."""
    return Part(
        lambda r: dict.fromkeys(ours, r.take(theirs, default)),
        lambda c: {theirs: all(getattr(c, name) for name in ours)},
    )


def activation(theirs: str, default: str) -> Part:
    """The name of the MLP's activation."""

    def read(r: Reader) -> dict[str, Any]:
        return {"activation": activation_of(r, theirs, default)}

    def write(c: ModelConfig) -> dict[str, Any]:
        same = [name for name, ours in ACTIVATIONS.items() if ours == c.activation]
        return {theirs: default if default in same else same[0]}

    return Part(read, write)


def activation_of(r: Reader, theirs: str, default: str) -> str:
    """Our name of an activation of theirs."""
    name = r.take(theirs, default)
    if name not in ACTIVATIONS:
        raise r.error(theirs, f"is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def heads(
    width: str,
    count: str,
    num_heads: int,
    kv_count: str = "",
    kv_heads: int | None = None,
    head_dim: bool = True,
    head_size: int | None = None,
    width_default: int = 0,
) -> Part:
    """Width, heads, key/value heads and the size of a head.

    Args:
      width, count, kv_count: keys of the embedding's width and of the numbers of heads; no `kv_count`: one each.
      head_dim: whether there is a key for the size of a head; else, and where it is null, the width is divided.
      head_size: its default; None: the width divided by the heads.
    """

    def read(r: Reader) -> dict[str, Any]:
        D = within(r, width, "embed_dim", r.take(width, width_default))
        H = within(r, count, "num_heads", r.take(count, num_heads))
        K = r.take(kv_count, kv_heads, null=H) if kv_count else H
        d = r.take("head_dim", head_size, null=0) if head_dim else 0
        if not d and D % H:
            raise r.error(count, f"does not divide {width}={D}, and there is no head_dim")
        return {"embed_dim": D, "num_heads": H, "num_kv_heads": K, "head_dim": d or D // H}

    def write(c: ModelConfig) -> dict[str, Any]:
        out = {width: c.embed_dim, count: c.num_heads}
        if kv_count:
            out[kv_count] = c.num_kv_heads
        if head_dim and (head_size or c.head_dim * c.num_heads != c.embed_dim):
            out["head_dim"] = c.head_dim
        return out

    return Part(read, write)


def divisible_width() -> Part:
    """transformers 5 refuses configs of some families whose heads do not divide the width."""

    def write(c: ModelConfig) -> dict[str, Any]:
        if c.embed_dim % c.num_heads:
            raise ConfigError(f"embed_dim={c.embed_dim} is not a multiple of num_heads={c.num_heads}")
        return {}

    return Part(lambda r: {}, write)


def window_everywhere(default: int | None) -> Part:
    """`sliding_window` holds for all layers; null: for none."""

    def read(r: Reader) -> dict[str, Any]:
        window = r.take("sliding_window", default, null=0)
        kind = "sliding_attention" if window else "full_attention"
        r.only("layer_types", [kind] * r.taken("num_hidden_layers"))
        return {"window": window}

    return Part(read, lambda c: {"sliding_window": c.window or None})


def window_from_layer() -> Part:
    """Qwen: layers from `max_window_layers` on have the window, or those that `layer_types` names."""

    def read(r: Reader) -> dict[str, Any]:
        window = r.take("sliding_window", 4096, null=0)
        first = r.take("max_window_layers", 28, null=0)
        if not r.take("use_sliding_window", False, null=False):
            window = 0
        local = [window > 0 and i >= first for i in range(r.taken("num_hidden_layers"))]
        return _layers(r, local, window)

    def write(c: ModelConfig) -> dict[str, Any]:
        local = c.local_layers
        out = {
            "use_sliding_window": any(local),
            "sliding_window": c.window or None,
            "max_window_layers": local.index(True) if any(local) else c.num_layers,
        }
        return out | ({"layer_types": _types(c)} if any(local) else {})

    return Part(read, write)


def window_by_pattern(default_window: int, pattern: int, *pattern_keys: str) -> Part:
    """Gemma: the last of every `pattern` layers is global, the others have the window, or as `layer_types` says."""

    def read(r: Reader) -> dict[str, Any]:
        window = r.take("sliding_window", default_window, null=0)
        r.only("sliding_window_size", window)
        every = pattern
        for name in pattern_keys:
            every = r.take(name, every)
            if every < 1:
                raise r.error(name, "must be at least 1")
        return _layers(r, [(i + 1) % every > 0 for i in range(r.taken("num_hidden_layers"))], window)

    return Part(read, lambda c: {"sliding_window": c.window or default_window, "layer_types": _types(c)})


def _types(c: ModelConfig) -> list[str]:
    return ["sliding_attention" if local else "full_attention" for local in c.local_layers]


def _layers(r: Reader, local: list[bool], window: int) -> dict[str, Any]:
    """Fields of the layers' windows: as `layer_types` says, or else as `local`."""
    types = r.take("layer_types", None, null=[])
    if types:
        known = {"sliding_attention": True, "full_attention": False}
        if len(types) != len(local) or not all(isinstance(name, str) and name in known for name in types):
            raise r.error(
                "layer_types", f"must name one of {', '.join(known)} for each of {len(local)} layers"
            )
        local = [known[name] for name in types]
    if any(local) and not window:
        raise r.error("sliding_window", "must be a number of tokens: layer_types has layers with a window")
    return {"window": window if any(local) else 0, "layer_pattern": shortest_pattern(local)}


def shortest_pattern(local: list[bool] | tuple[bool, ...]) -> str:
    """The shortest string of L and G whose repetition gives these layers; "" where all are alike."""
    letters = "".join("L" if x else "G" for x in local)
    if len(set(letters)) < 2:
        return ""
    return next(
        letters[:n] for n in range(1, len(letters) + 1) if (letters[:n] * len(letters)).startswith(letters)
    )
