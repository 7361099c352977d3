"""Rotary positions in config.json, as transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters) write them."""

import math
from typing import Any

from jaxalign.models.config import ModelConfig
from jaxalign.models.hf.parts import Part
from jaxalign.models.hf.reader import Reader

_DETAILS = {  # key in config.json -> field, default; by kind of scaling
    "default": {},
    "linear": {"factor": ("rope_factor", None)},
    "llama3": {
        "factor": ("rope_factor", None),
        "original_max_position_embeddings": ("rope_original_length", None),
        "low_freq_factor": ("rope_low_frequency", None),
        "high_freq_factor": ("rope_high_frequency", None),
    },
    "yarn": {
        "factor": ("rope_factor", None),
        "original_max_position_embeddings": ("rope_original_length", None),
        "beta_fast": ("rope_beta_fast", 32.0),
        "beta_slow": ("rope_beta_slow", 1.0),
        "attention_factor": ("rope_attention_factor", 0.0),
    },
    "longrope": {
        "factor": ("rope_factor", None),
        "original_max_position_embeddings": ("rope_original_length", None),
        "attention_factor": ("rope_attention_factor", 0.0),
        "short_factor": ("rope_short_factors", None),
        "long_factor": ("rope_long_factors", None),
    },
}
_LISTS = ("short_factor", "long_factor")
_WAY_OUT = {
    "dynamic": "set another kind: its frequencies depend on the length of each text",
}
_DETAIL_WAY_OUT = {
    "attn_factor": "transformers ignores it, other programs multiply by it: write attention_factor, or remove it",
    "truncate": "the ramp here begins and ends at whole dimensions, as in all released checkpoints of these families",
}


def rope(
    theta: float = 10_000.0,
    theta_key: str = "rope_theta",
    fraction: float = 1.0,
    fraction_key: str = "",
    kinds: tuple[str, ...] = tuple(_DETAILS),
    original_outside: bool = False,
) -> Part:
    """One base and one kind of scaling for all layers.

    Args:
      theta, fraction: defaults.
      theta_key, fraction_key: their keys in files of transformers 4; no `fraction_key`: whole heads are rotated.
      kinds: of scaling that the family has.
      original_outside: the original context stands beside `rope_scaling`, which has nothing but factors (Phi-3).
    """

    def read(r: Reader) -> dict[str, Any]:
        outside = {"rope_theta": r.take(theta_key, theta)}
        if fraction_key:
            outside["partial_rotary_factor"] = r.take(fraction_key, fraction)
        if theta_key != "rope_theta":
            r.only("rope_theta", outside["rope_theta"])
        if fraction_key != "partial_rotary_factor":
            r.only("partial_rotary_factor", outside.get("partial_rotary_factor", 1.0))
        given = {key: r.take(key, None, null={}) for key in ("rope_scaling", "rope_parameters")}
        found = []
        for key, inner in given.items():
            if not inner:
                continue
            for name, legacy in (("rope_theta", theta_key), ("partial_rotary_factor", fraction_key)):
                if name in inner and legacy in r.values and inner[name] != r.values[legacy]:
                    raise r.error(legacy, f"contradicts {key}.{name}={inner[name]!r}; remove one of the two")
            found.append(_fields(r, key, outside | inner, kinds, bool(fraction_key)))
        if len(found) == 2 and found[0] != found[1]:
            raise r.error(
                "rope_scaling", f"contradicts rope_parameters={given['rope_parameters']!r}; remove one"
            )
        return found[0] if found else _fields(r, "rope_parameters", outside, kinds, bool(fraction_key))

    def write(c: ModelConfig) -> dict[str, Any]:
        out = {theta_key: c.rope_theta, "rope_scaling": _scaling(c)}
        if original_outside and c.rope_scaling == "longrope":
            inside = out["rope_scaling"]
            out["original_max_position_embeddings"] = inside.pop("original_max_position_embeddings")
            if c.rope_factor == c.max_length / c.rope_original_length:
                del inside["factor"]
        return out | ({fraction_key: c.rope_fraction} if fraction_key else {})

    return Part(read, write)


def rope_by_layer(theta: float, local_theta: float) -> Part:
    """Gemma 3: layers with a window have a base of their own and are never scaled."""

    def read(r: Reader) -> dict[str, Any]:
        whole = {"rope_theta": r.take("rope_theta", theta)}
        near = {"rope_theta": r.take("rope_local_base_freq", local_theta)}
        scaling = r.take("rope_scaling", None, null={})
        nested = r.take("rope_parameters", None, null={})
        if set(nested) - {"full_attention", "sliding_attention"}:
            raise r.error(
                "rope_parameters", "must hold full_attention and sliding_attention, and nothing else"
            )
        if scaling and nested:
            raise r.error("rope_scaling", f"stands beside rope_parameters={nested!r}; remove one of the two")
        whole |= scaling | (nested.get("full_attention") or {})
        near |= nested.get("sliding_attention") or {}
        local = _fields(r, "rope_parameters.sliding_attention", near, ("default",), False)
        key = "rope_scaling" if scaling else "rope_parameters.full_attention"
        return _fields(r, key, whole, tuple(_DETAILS), False) | {"rope_local_theta": local["rope_theta"]}

    def write(c: ModelConfig) -> dict[str, Any]:
        return {
            "rope_theta": c.rope_theta,
            "rope_local_base_freq": c.rope_local_theta or c.rope_theta,
            "rope_scaling": _scaling(c),
        }

    return Part(read, write)


def _fields(
    r: Reader, where: str, values: dict[str, Any], kinds: tuple[str, ...], has_fraction: bool
) -> dict[str, Any]:
    """Fields of ModelConfig from the inner dictionary of transformers 5, with `rope_theta` in it."""
    values = dict(values)
    old, new = values.pop("type", None), values.pop("rope_type", None)
    kind = new or old or "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in kinds:
        text = f"is not supported; {_WAY_OUT.get(kind, 'known here: ' + ', '.join(kinds))}"
        raise r.error(where.split(".")[0], f"has the kind {kind!r}, which {text}")
    out: dict[str, Any] = {"rope_scaling": "none" if kind == "default" else kind}
    fraction = values.pop("partial_rotary_factor", None)
    if fraction not in (None, 1.0) and not has_fraction:
        raise r.error(
            where.split(".")[0], f"has partial_rotary_factor={fraction}, but {r.family} rotates whole heads"
        )
    if has_fraction:
        out["rope_fraction"] = float(1.0 if fraction is None else fraction)
    outer = r.take("original_max_position_embeddings", None, null=None)
    if kind in ("llama3", "yarn", "longrope"):
        inner = values.setdefault("original_max_position_embeddings", outer)
        if outer is not None and inner != outer:
            raise r.error("original_max_position_embeddings", f"contradicts {where}'s {inner!r}; remove one")
    if kind in ("yarn", "longrope"):
        _complete(r, values)
    for name, (field, default) in {"rope_theta": ("rope_theta", None), **_DETAILS[kind]}.items():
        value = values.pop(name, None)
        value = default if value is None else value
        if name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(x, int | float) for x in value):
                raise r.error(where.split(".")[0], f"needs the list of numbers {name} for the kind {kind!r}")
            out[field] = tuple(map(float, value))
            continue
        if not isinstance(value, int | float):
            raise r.error(where.split(".")[0], f"needs the number {name} for the kind {kind!r}")
        out[field] = int(value) if field == "rope_original_length" else float(value)
    if kind == "default":  # left over from a scaling that was taken out; transformers ignores them too
        values = {k: v for k, v in values.items() if k not in ("factor", "original_max_position_embeddings")}
    if values:
        advice = "; ".join(_DETAIL_WAY_OUT.get(name, "") for name in values if name in _DETAIL_WAY_OUT)
        raise r.error(
            where.split(".")[0],
            f"has {', '.join(f'{name}={x!r}' for name, x in values.items())}, not supported with the kind {kind!r}; "
            f"{advice or 'use a checkpoint without'}",
        )
    return out


def _complete(r: Reader, values: dict[str, Any]) -> None:
    """Takes out what has no effect, and says by `factor` and `attention_factor` what is said otherwise."""
    for name, harmless in (("truncate", True), ("attn_factor", 1)):
        if values.get(name) in (None, harmless):
            values.pop(name, None)
    length, before = r.values.get("max_position_embeddings"), values.get("original_max_position_embeddings")
    if values.get("factor") is None and isinstance(length, int) and isinstance(before, int) and before > 0:
        values["factor"] = length / before  # as DeepSeek's and Phi-3's
    mine, whole = values.pop("mscale", None), values.pop("mscale_all_dim", None)
    factor = values.get("factor")
    if values.get("attention_factor") is None and mine and whole and isinstance(factor, int | float):
        values["attention_factor"] = _temperature(factor, mine) / _temperature(factor, whole)


def _temperature(factor: float, scale: float) -> float:
    """The paper's 0.1 ln(factor) + 1, with the scale of DeepSeek's (arXiv 2405.04434)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _scaling(c: ModelConfig) -> dict[str, Any] | None:
    """`rope_scaling`, which both versions load."""
    if c.rope_scaling == "none":
        return None
    details = {name: getattr(c, field) for name, (field, _) in _DETAILS[c.rope_scaling].items()}
    if not details.get("attention_factor", 1):
        del details["attention_factor"]
    details |= {name: list(details[name]) for name in _LISTS if name in details}
    return {"rope_type": c.rope_scaling, **details}
