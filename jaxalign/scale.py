"""Configs for models that people use, and made smaller: a run of a minute that shows that all works."""

from ml_collections import ConfigDict

from jaxalign.models.config import ModelConfig
from jaxalign.models.presets import preset

SMOKE_LENGTH = 128  # tokens
SMOKE_ROWS = 8
SMOKE_ANSWER = 16  # tokens


def at_scale(config: ConfigDict, name: str = "") -> ConfigDict:
    """Changes a stage's config to one that trains a model of any size, on one device or many.

    Parameters and batch are split over all devices. Learning rate, lengths, batch size, microbatches and what the
    backward pass computes again are left to be found for the model and the data: docs/defaults.md. `jaxalign plan` says
    what fits.

    Args:
      name: a preset, whose architecture it is; "": that of the model in config.model.init_from.
    """
    config.model.update(preset(name) if name else {})
    config.model.dtype = "auto"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.checkpoint_every = 500
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """Changes any config to a smoke test: the same data, stage and kind of model in about a minute on a CPU.

    4 steps of at most 8 rows, sequences of at most 128 tokens, completions of at most 16, at most 256 records of each
    source, and the sizes of a model that the config names at most those of `ModelConfig()`. A model that
    config.model.init_from brings keeps its size. The numbers of such a run mean nothing.
    """
    model, data = config.model, config.data
    heads, kv_heads = model.num_heads, model.num_kv_heads
    for key in ("embed_dim", "num_heads", "head_dim", "mlp_dim"):
        model[key] = min(model[key], getattr(ModelConfig, key))
    model.num_layers = min(model.num_layers, max(ModelConfig.num_layers, len(model.layer_pattern)))
    # Heads that share keys and values do so still: all of them, or some.
    if kv_heads > 1:
        model.num_kv_heads = model.num_heads if kv_heads == heads else model.num_heads // 2
    model.num_experts = min(model.num_experts, 4)
    model.experts_per_token = min(model.experts_per_token, 2)
    samplers = [each for each in config.values() if isinstance(each, ConfigDict) and "sampling" in each]
    length = SMOKE_LENGTH // 2 if samplers else SMOKE_LENGTH  # of a prompt, or of a whole sequence
    if not 0 < data.max_length <= length:
        data.max_length, data.row_length = length, 0
        data.overlong = "truncate"  # or nearly all real data would be dropped
    data.take = min(data.take or 256, 256)
    config.num_steps = 4
    config.batch_size = min(config.batch_size or SMOKE_ROWS, SMOKE_ROWS)
    config.num_microbatches = 1
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 1)
    config.log_every = 1
    config.eval_every = config.checkpoint_every = 0
    for each in samplers:
        each.sampling.max_new_tokens = min(each.sampling.max_new_tokens or SMOKE_ANSWER, SMOKE_ANSWER)
    return config
