"""The settings of a run: what all stages share, and under `options` what one stage adds."""

import dataclasses
import json
from typing import Any

from ml_collections import ConfigDict

from jaxalign.config import check_keys, freeze, thaw
from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, check, field, nearest_hint
from jaxalign.keys import Key, list_keys
from jaxalign.models import ModelConfig
from jaxalign.models.attention import default_attention
from jaxalign.models.config import ARCHITECTURE_KEYS, ATTENTION
from jaxalign.models.frozen import FrozenConfig
from jaxalign.parallel import MeshConfig
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.trackers import TRACKERS


@dataclasses.dataclass(frozen=True)
class ModelSettings(ModelConfig):
    """The model as a config file names it: an architecture, or a finished run to start from."""

    vocab_size: int = field(0, at_least=0)  # 0: the tokenizer's
    # "auto": splash on TPU, blockwise on GPU, else xla.
    attention: str = field("auto", choices=("auto", *ATTENTION))
    init_from: str = ""  # a run's folder; its architecture, weights and tokenizer are taken over

    def __post_init__(self) -> None:
        """Sizes that must fit each other are checked once resolved: see `architecture`."""
        check(type(self), vars(self), self.key)

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
class Config(Checked, at="config"):
    """Everything a run depends on. In a config file `options` stands under the stage's own name."""

    stage: Any  # the Stage; in a config file its name
    options: Any
    seed: int = 0  # of new weights, the order of the data and the sampling
    # Passes over the packed rows; ignored when num_steps is set.
    num_epochs: float = field(1.0, replaces=("num_steps",))
    num_steps: int = field(0, at_least=0)  # optimizer steps, or rollouts; 0: as num_epochs says
    batch_size: int = field(32, at_least=1)  # rows of a step over all devices, or completions
    # Slices of a batch whose gradients are added up before an update.
    num_microbatches: int = field(1, at_least=1)
    # "skip": leave the update out, and count it.
    on_nonfinite: str = field("stop", choices=("stop", "skip"))
    log_every: int = field(10, at_least=1)  # steps that a line of metrics.jsonl is about
    eval_every: int = field(0, at_least=0)  # steps; 0: at the end only
    # Held-out prompts whose answers are kept at each evaluation, in samples.jsonl; 0: none; not set: 4 of a stage that
    # samples, of others none.
    log_samples: int | None = field(None, at_least=0)
    # wandb, trackio, mlflow, separated by commas: where metrics go beside metrics.jsonl and TensorBoard.
    trackers: str = ""
    checkpoint_every: int = field(0, at_least=0)  # steps; 0: at the end only
    keep_checkpoints: int = field(1, at_least=1)  # the newest so many; older ones are deleted
    # Seconds without a finished step after which a run ends itself; 0: never.
    hang_timeout: float = field(1800.0, at_least=0)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    frozen: FrozenConfig = dataclasses.field(default_factory=FrozenConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps == 0 and not self.num_epochs > 0:
            raise ConfigError(
                f"config.num_epochs={self.num_epochs} must be positive, or set config.num_steps"
            )
        for name in self.tracker_names:
            if name not in TRACKERS:
                raise ConfigError(
                    f"config.trackers={self.trackers!r}: {name!r} is not one of {', '.join(TRACKERS)}"
                    f"{nearest_hint(name, TRACKERS)}"
                )
        if self.batch_size % self.num_microbatches:
            raise ConfigError(
                f"config.batch_size={self.batch_size} is not divisible by "
                f"config.num_microbatches={self.num_microbatches}"
            )

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers, one by one."""
        return tuple(name.strip() for name in self.trackers.split(",") if name.strip())

    @staticmethod
    def leave_out(values: ConfigDict, given: set[str]) -> list[str]:
        """With a model to start from by a flag, takes out what a file says that trains one from scratch.

        That is its tokenizer and its sizes. Returns the line that tells it.
        """
        if "model.init_from" not in given or not values.model.init_from:
            return []
        if "data.tokenizer" in given or not values.data.tokenizer:
            return []
        values.data.tokenizer = ""
        for key in ARCHITECTURE_KEYS:
            if f"model.{key}" not in given:
                values.model[key] = getattr(ModelConfig, key)
        return ["--config.model.init_from is yours: it brings its own architecture and tokenizer"]


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


def config_keys(stage: Any) -> list[Key]:
    """Every key of a config of a `Stage`: those of a run, those of the stage itself, then those of the sections."""
    shared = [key for key in list_keys(Config) if key.path not in ("stage", "options")]
    plain = [key for key in shared if "." not in key.path]
    sections = [key for key in shared if "." in key.path]
    return [*plain, *list_keys(stage.options, f"{stage.name}."), *sections]


def value_of(config: Config, path: str) -> Any:
    """The value of a key by its path below config."""
    stage, *parts = path.split(".")
    found = config.options if parts and stage == config.stage.name else getattr(config, stage)
    for part in parts:
        found = getattr(found, part)
    return found


def to_json(config: Config) -> str:
    """The JSON that a checkpoint carries."""
    return json.dumps(
        dataclasses.asdict(dataclasses.replace(config, stage=config.stage.name)), sort_keys=True
    )
