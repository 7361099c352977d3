"""The settings of a run: what all stages share, and under `options` what one stage adds."""

import dataclasses
import json
from typing import Any

from ml_collections import ConfigDict

from jaxalign.config import check_keys, freeze, thaw
from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.attention import default_attention
from jaxalign.models.frozen import FrozenConfig
from jaxalign.parallel import MeshConfig
from jaxalign.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class ModelSettings(ModelConfig):
    """The model as a config file names it: an architecture, or a finished run to start from."""

    vocab_size: int = 0  # 0: the tokenizer's
    attention: str = "auto"  # xla, blockwise, splash; "auto": splash on TPU, blockwise on GPU, else xla
    init_from: str = ""  # a run's folder; its architecture, weights and tokenizer are taken over

    def __post_init__(self) -> None:
        """Checked once resolved: see `architecture`."""

    def architecture(self, vocab_size: int, platform: str) -> ModelConfig:
        """The ModelConfig of these settings, for a tokenizer of `vocab_size` pieces and a platform of JAX."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)}
        values["vocab_size"] = self.vocab_size or vocab_size
        if self.attention == "auto":
            values["attention"] = default_attention(platform)
        elif self.attention == "splash" and platform != "tpu":
            raise ConfigError(
                f"config.model.attention='splash' is a kernel for TPUs, and this is {platform}; use 'auto', "
                "'blockwise' or 'xla'"
            )
        return ModelConfig(**values)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on. In a config file `options` stands under the stage's own name."""

    stage: Any  # the Stage; in a config file its name
    options: Any
    seed: int = 0
    num_epochs: float = 1.0  # passes over the packed rows; ignored when num_steps is set
    num_steps: int = 0  # optimizer steps, or rollouts where a stage samples; 0: as num_epochs says
    batch_size: int = 32  # rows of a step over all devices, or sampled completions
    num_microbatches: int = 1  # slices of a batch whose gradients are added up before an update
    on_nonfinite: str = "stop"  # or "skip": leave the update out, and count it
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: at the end only
    checkpoint_every: int = 0  # steps; 0: at the end only
    keep_checkpoints: int = 1
    hang_timeout: float = 1800.0  # seconds without a finished step after which a run ends itself; 0: never
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    frozen: FrozenConfig = dataclasses.field(default_factory=FrozenConfig)

    def __post_init__(self) -> None:
        for key in ("batch_size", "num_microbatches", "log_every", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ConfigError(f"config.{key}={getattr(self, key)} must be at least 1")
        for key in ("num_steps", "eval_every", "checkpoint_every", "hang_timeout"):
            if getattr(self, key) < 0:
                raise ConfigError(f"config.{key}={getattr(self, key)} must be 0 or more")
        if self.num_steps == 0 and not self.num_epochs > 0:
            raise ConfigError(
                f"config.num_epochs={self.num_epochs} must be positive, or set config.num_steps"
            )
        if self.batch_size % self.num_microbatches:
            raise ConfigError(
                f"config.batch_size={self.batch_size} is not divisible by "
                f"config.num_microbatches={self.num_microbatches}"
            )
        if self.on_nonfinite not in ("stop", "skip"):
            raise ConfigError(f"config.on_nonfinite={self.on_nonfinite!r} is not one of stop, skip")


def default_config(name: str, options: type) -> ConfigDict:
    """A locked ConfigDict with every key of a stage at its default; `options` is its settings' dataclass."""
    values = thaw(Config, stage=name, options="")
    del values["options"]
    values[name] = thaw(options)
    return values.lock()


def parse_config(values: ConfigDict, stage: Any) -> Config:
    """The frozen Config of a ConfigDict for a `Stage`.

    Raises:
      ConfigError: names the first key that does not exist, with the nearest one, or a value of a wrong type.
    """
    name = stage.name
    known = [field.name for field in dataclasses.fields(Config) if field.name != "options"] + [name]
    check_keys(list(values.keys()), known, "config")
    shared = ConfigDict({key: value for key, value in values.items() if key != name})
    chosen = freeze(stage.options, values[name] if name in values else ConfigDict(), f"config.{name}")
    return dataclasses.replace(freeze(_Shared, shared), stage=stage, options=chosen)


@dataclasses.dataclass(frozen=True)
class _Shared(Config):
    stage: str = ""
    options: Any = None


def to_json(config: Config) -> str:
    """The JSON that a checkpoint carries."""
    return json.dumps(dataclasses.asdict(dataclasses.replace(config, stage=config.stage.name)), sort_keys=True)
