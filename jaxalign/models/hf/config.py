"""config.json of a Hugging Face checkpoint <-> ModelConfig."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import ConfigError, shorten
from jaxalign.models.config import RUNTIME_KEYS, SCALING_FIELDS, ModelConfig
from jaxalign.models.hf.families import FAMILIES, Family
from jaxalign.models.hf.parts import shortest_pattern
from jaxalign.models.hf.reader import HARMLESS

_IMAGES = "it reads images too; use a text-only checkpoint (Gemma3ForCausalLM)"
_NO_POSITIONS = "every fourth of its layers has no positions, for which the transformer here has no switch"
_REFUSED = {
    "Gemma3ForConditionalGeneration": _IMAGES,
    "gemma3": _IMAGES,
    "SmolLM3ForCausalLM": _NO_POSITIONS,
    "smollm3": _NO_POSITIONS,
}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields that say how a model is computed or trained, not which function it is.
_NOT_FUNCTION = (*RUNTIME_KEYS, "init_std")


def family_of(architecture: str) -> Family:
    """The family with that name in `architectures`, or that `model_type`.

    Raises:
      ConfigError: there is none; lists those that there are.
    """
    for family in FAMILIES:
        if architecture in (family.causal, family.classifier, family.model_type):
            return family
    names = [family.causal for family in FAMILIES]
    near = difflib.get_close_matches(architecture, names, 1)
    reason = _REFUSED.get(architecture, f"did you mean {near[0]}?" if near else "")
    raise ConfigError(
        f"the architecture {architecture!r} is not supported{': ' + reason if reason else ''}; "
        f"supported are {', '.join(names)}, and the same with ForSequenceClassification"
    )


def architecture_of(values: Mapping[str, Any], where: str) -> str:
    """The architecture that a config.json names: the first of `architectures`, else its `model_type`."""
    architectures = values.get("architectures") or []
    named = [
        *(architectures if isinstance(architectures, list) else [architectures]),
        values.get("model_type"),
    ]
    if not isinstance(named[0], str | None):
        raise ConfigError(
            f"{where}: architectures={shorten(architectures)}, model_type={shorten(named[-1])}: write "
            'the names of classes of transformers, as in ["LlamaForCausalLM"]'
        )
    if not named[0]:
        raise ConfigError(f"{where}: neither architectures nor model_type says what model this is; add one")
    return named[0]


def is_scalar(architecture: str) -> bool:
    """Whether models of this architecture give a score instead of logits."""
    return architecture == family_of(architecture).classifier


def config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a parsed config.json, whichever version of transformers wrote it.

    A model with a score head has no unembedding of its own, whatever its `tie_word_embeddings` says.

    Args:
      where: the file's name, for messages.

    Raises:
      ConfigError: an architecture, a key or a value that is not supported. Nothing is ignored that changes
        what the model computes.
    """
    architecture = architecture_of(values, where)
    try:
        family = family_of(architecture)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    config = family.read(values, where)
    if architecture != family.classifier:
        return config
    named = values.get("id2label") or {}
    labels = (
        (len(named) if isinstance(named, dict) else 0) or values.get("num_labels") or 2
    )  # as transformers counts
    if labels != 1:
        raise ConfigError(
            f"{where}: {architecture} has {labels} labels, but a reward model gives one score: num_labels=1"
        )
    return dataclasses.replace(config, tie_embeddings=True)


def config_to_hf(
    config: ModelConfig, architecture: str, original: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of `config`, which transformers 4 and 5 both load.

    Args:
      architecture: a name from `architectures`; ForSequenceClassification for a model with a score head.
      original: the config.json that the model was imported with: it is kept, and only what has changed since
        is written anew. From another family, only its special tokens are kept.

    Raises:
      ConfigError: the family cannot express the model; names the fields.
    """
    family = family_of(architecture)
    scalar = architecture == family.classifier
    if scalar:  # there is no unembedding to be tied or not
        config = dataclasses.replace(config, tie_embeddings=True)
    lost = _lost(family, config)
    if lost:
        raise ConfigError(
            f"{architecture} cannot express {_listed(config, lost)}; use another --architecture"
        )
    original = original or {}
    name = family.classifier if scalar else family.causal
    before = architecture_of(original, "config.json") if original else ""
    named: dict[str, Any] = {}
    if name != before:
        named = {"architectures": [name], "model_type": family.model_type}
        named |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if scalar else {}
    if before and family_of(before) == family:
        return _rewritten(family, config, original, named)
    # Left out, special tokens would be the family's own, which another vocabulary may not even have.
    return named | family.write(config) | {token: original.get(token) for token in _SPECIAL_TOKENS}


def _rewritten(
    family: Family, config: ModelConfig, original: Mapping[str, Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """`original` with what differs in `config` written anew; all anew where the two would contradict."""
    new, old = family.write(config), family.write(config_from_hf(original, "config.json"))
    out = {**original, **{key: value for key, value in new.items() if value != old.get(key)}, **named}
    try:
        if same_function(config_from_hf(out, "config.json"), config):
            return out
    except ConfigError:
        pass
    return {key: value for key, value in original.items() if key in HARMLESS} | new | dict(named)


def architecture_for(config: ModelConfig) -> str:
    """The ForCausalLM name of the first family that can express `config`.

    Raises:
      ConfigError: none can; names the fields that the nearest one lacks.
    """
    lost: dict[str, tuple[str, ...]] = {}
    for family in FAMILIES:
        try:
            lost[family.causal] = _lost(family, config)
        except ConfigError:  # two of its fields contradict each other in this family
            continue
    nearest = min(lost, key=lambda name: len(lost[name]))
    if lost[nearest]:
        raise ConfigError(
            f"no Hugging Face family can express this model: {nearest}, the nearest, lacks "
            f"{_listed(config, lost[nearest])}"
        )
    return nearest


def classifier_of(architecture: str) -> str:
    """The ForSequenceClassification name of the family of `architecture`."""
    return family_of(architecture).classifier


def same_function(a: ModelConfig, b: ModelConfig) -> bool:
    """Whether the two compute the same from the same parameters, up to rounding."""
    return _function(a) == _function(b)


def _listed(config: ModelConfig, names: tuple[str, ...]) -> str:
    return ", ".join(f"config.model.{name}={getattr(config, name)!r}" for name in names)


def _lost(family: Family, config: ModelConfig) -> tuple[str, ...]:
    """Fields of `config` that do not come back from the family's config.json; ConfigError: none do."""
    back = family.read(family.write(config), family.causal)
    wanted, found = _function(config), _function(back)
    return tuple(name for name in wanted if wanted[name] != found[name])


def _function(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config` that decide what it computes, in one way of writing each."""
    default, out = ModelConfig(), dataclasses.asdict(config)
    inert: list[str] = list(_NOT_FUNCTION)
    if config.positions == "learned":
        inert += [name for name in out if name.startswith("rope_")]
    else:
        inert.append("position_offset")
        scaling = {name for names in SCALING_FIELDS.values() for name in names}
        inert += scaling - set(SCALING_FIELDS[config.rope_scaling])
    if not config.num_experts:
        inert += ["experts_per_token", "normalize_experts"]
    out |= {name: getattr(default, name) for name in inert}
    local = config.local_layers
    out["layer_pattern"] = shortest_pattern(local)
    out["window"] = config.window if any(local) else 0
    out["query_scale"] = config.query_scale or config.head_dim**-0.5
    own_base = config.positions == "rope" and any(local) and config.rope_local_theta
    if not own_base or (own_base == config.rope_theta and config.rope_scaling == "none"):
        out["rope_local_theta"] = 0.0
    return out
