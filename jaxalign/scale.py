"""What the argument of a stage's config file may ask for: the quickstart's model, or a published one at its size."""

import difflib
import os

from ml_collections import ConfigDict

from jaxalign.errors import ConfigError
from jaxalign.models.presets import PRESETS, preset

FINE_TUNE = "finetune"  # the argument by which a config file takes any model, and what flags choose for one


def names_model(arg: str) -> bool:
    """Whether the argument of a config file asks for a published model: a preset, or "finetune" for any other.

    Raises:
      ConfigError: it is not that, nor the folder of a quickstart, nor empty; says which preset is nearest.
    """
    if arg in PRESETS or arg == FINE_TUNE:
        return True
    if not arg or os.sep in arg or os.path.isdir(arg):
        return False
    near = difflib.get_close_matches(arg, [*PRESETS, FINE_TUNE], 1)
    hint = f"did you mean {near[0]!r}?" if near else f"models are {', '.join(PRESETS)}."
    raise ConfigError(
        f"{arg!r} is neither a model of jaxalign/models/presets.py nor the folder of a quickstart; {hint} "
        f"{FINE_TUNE!r} takes the model that config.model.init_from names, whatever its size"
    )


def at_scale(
    config: ConfigDict, name: str, *, max_length: int = 8192, sequences: int = 1, batch_size: int = 32
) -> ConfigDict:
    """Changes a stage's config to one that trains preset `name`, or the model that init_from names, at its size.

    Computed in bfloat16, layers recomputed in the backward pass, parameters and batch split over all devices; on more
    devices than rows, raise config.batch_size or set config.mesh.tensor or context. `jaxalign plan` says what fits.
    Data, tokenizer and, but for pretraining, config.model.init_from are to be set.

    Args:
      name: a preset, or `FINE_TUNE`, which leaves the architecture to config.model.init_from.
      max_length: tokens of a sequence, or as many as the model was made for where those are fewer.
      sequences: of the longest kind that a row holds.
      batch_size: rows of a step.
    """
    fields = {} if name == FINE_TUNE else preset(name)
    config.model.update(fields)
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.data.max_length = min(max_length, fields.get("max_length", max_length))
    config.data.row_length = sequences * config.data.max_length
    config.batch_size = batch_size
    config.checkpoint_every = 500
    return config
