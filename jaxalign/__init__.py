"""jaxalign: aligned language models in JAX, one pure function per stage.

What stands below can be had from `jaxalign` itself; it is imported when it is first asked for.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_PLACES = {
    "ConfigError": "jaxalign.errors",
    "FrozenModel": "jaxalign.training.stage",
    "Model": "jaxalign.library",
    "OptimizerConfig": "jaxalign.training.optimizer",
    "Preset": "jaxalign.arguments",
    "Sample": "jaxalign.library",
    "SamplingConfig": "jaxalign.sampling.generate",
    "Scores": "jaxalign.models.scoring",
    "Session": "jaxalign.session",
    "Stage": "jaxalign.training.stage",
    "at_scale": "jaxalign.scale",
    "config_argument": "jaxalign.arguments",
    "default_config": "jaxalign.stages",
    "load": "jaxalign.library",
    "load_config": "jaxalign.config",
    "parse_config": "jaxalign.stages",
    "train": "jaxalign.stages",
}
_ROOMS = (
    "data",
    "evaluation",
    "losses",
    "models",
    "parallel",
    "rewards",
    "rl",
    "sampling",
    "stages",
    "training",
)

__all__ = ["__version__", *_PLACES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"jaxalign.{name}")
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
