"""Rotary positions in config.json, as transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters) write them."""

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
}
_WAY_OUT = {
    "longrope": "use a checkpoint of the original context (such as Phi-3-mini-4k) that is not scaled",
    "dynamic": "set another kind: its frequencies depend on the length of each text",
}
_WAY_OUT["su"] = _WAY_OUT["longrope"]


def rope(
    theta: float = 10_000.0,
    theta_key: str = "rope_theta",
    fraction: float = 1.0,
    fraction_key: str = "",
    kinds: tuple[str, ...] = tuple(_DETAILS),
) -> Part:
    """One base and one kind of scaling for all layers.

    Args:
      theta, fraction: defaults.
      theta_key, fraction_key: their keys in files of transformers 4; no `fraction_key`: whole heads are rotated.
      kinds: of scaling that the family has.
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
    if kind in ("llama3", "yarn"):
        inner = values.setdefault("original_max_position_embeddings", outer)
        if outer is not None and inner != outer:
            raise r.error("original_max_position_embeddings", f"contradicts {where}'s {inner!r}; remove one")
    if kind == "yarn" and values.get("truncate") is True:
        del values["truncate"]
    for name, (field, default) in {"rope_theta": ("rope_theta", None), **_DETAILS[kind]}.items():
        value = values.pop(name, None)
        value = default if value is None else value
        if not isinstance(value, int | float):
            raise r.error(where.split(".")[0], f"needs the number {name} for the kind {kind!r}")
        out[field] = int(value) if field == "rope_original_length" else float(value)
    if kind == "default":  # left over from a scaling that was taken out; transformers ignores them too
        values = {k: v for k, v in values.items() if k not in ("factor", "original_max_position_embeddings")}
    if values:
        raise r.error(where.split(".")[0], f"has {', '.join(values)}, not supported with the kind {kind!r}")
    return out


def _scaling(c: ModelConfig) -> dict[str, Any] | None:
    """`rope_scaling`, which both versions load."""
    if c.rope_scaling == "none":
        return None
    details = {name: getattr(c, field) for name, (field, _) in _DETAILS[c.rope_scaling].items()}
    if not details.get("attention_factor", 1):
        del details["attention_factor"]
    return {"rope_type": c.rope_scaling, **details}
