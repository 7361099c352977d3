"""Configs made larger or smaller: a published model at its size, or a run of a minute that shows that all works."""

from ml_collections import ConfigDict

from jaxalign.models.config import ModelConfig
from jaxalign.models.presets import preset

FINE_TUNE = "finetune"  # the argument by which a config file takes any model, and what flags choose for one
SMOKE_LENGTH = 128  # tokens


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
    sequences = max(1, data.row_length // data.max_length)
    if data.max_length > SMOKE_LENGTH:
        data.max_length, data.overlong = SMOKE_LENGTH, "truncate"  # or nearly all real data would be dropped
    data.row_length = sequences * data.max_length
    data.take = min(data.take or 256, 256)
    config.num_steps = 4
    config.batch_size = min(config.batch_size, 8)
    config.num_microbatches = 1
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, 1)
    config.log_every = 1
    config.eval_every = config.checkpoint_every = 0
    for section in config.values():
        if isinstance(section, ConfigDict) and "sampling" in section:
            section.sampling.max_new_tokens = min(section.sampling.max_new_tokens, 16)
    return config
