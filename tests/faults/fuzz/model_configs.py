"""config.json of models of every family."""

import copy
import json
from pathlib import Path
from typing import Any

from tests.faults.fuzz.cases import (
    NUMBERS,
    STRANGE_NUMBERS,
    Random,
    Surface,
    any_value,
    as_json,
    chance,
    mutated,
)

_LIKELY: tuple[Any, ...] = (
    *NUMBERS,
    *STRANGE_NUMBERS[3:],
    *("silu", "gelu", "yarn", "linear", "longrope", "llama3", "dynamic", [], {}, None, True),
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    {"type": "linear", "factor": 1e400},
    ["full_attention"] * 2,
    ["sliding_attention", "full_attention"],
    [0.5] * 4,
)
_MORE = (
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "quantization_config",
    "head_dim",
    "id2label",
)
_sound: list[dict[str, Any]] = []


def prepare() -> None:
    import jaxalign.models.hf.importer  # noqa: F401
    from jaxalign.models.config import ModelConfig
    from jaxalign.models.hf.families import FAMILIES

    config = ModelConfig(
        vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=64
    )
    for family in FAMILIES:
        _sound.append(
            {"architectures": [family.causal], "model_type": family.model_type, **family.write(config)}
        )


def write(rng: Random, folder: Path) -> Path:
    values = rng.choice(_sound)
    if chance(rng, 0.3):
        values = values | {
            rng.choice(_MORE): copy.deepcopy(rng.choice(_LIKELY)) if chance(rng, 0.7) else any_value(rng)
        }
    values = mutated(rng, values, more=_LIKELY)
    file = folder / "config.json"
    file.write_bytes(as_json(rng, values) if chance(rng, 0.1) else json.dumps(values).encode())
    return file


def read(file: Path) -> None:
    from jaxalign.errors import CheckpointError
    from jaxalign.models.hf.config import architecture_of, config_from_hf, config_to_hf, is_scalar
    from jaxalign.models.hf.importer import expand
    from jaxalign.models.hf.tables import tensor_table
    from jaxalign.storage import read_json

    values = read_json(file, lambda reason: CheckpointError(f"{file}: is {reason}"))
    config = config_from_hf(values, str(file))
    architecture = architecture_of(values, str(file))
    expand(tensor_table(architecture, config, scalar=is_scalar(architecture)), config)
    config_to_hf(config, architecture, values)


SURFACE = Surface(180, write, read, prepare)
