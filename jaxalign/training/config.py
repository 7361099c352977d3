"""The settings of a run: what all stages share, and under `options` what one stage adds."""

import dataclasses
import json
from typing import Any

from ml_collections import ConfigDict

from jaxalign.data import DataConfig
from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, check, field, nearest_hint
from jaxalign.keys import Key, list_keys
from jaxalign.models import ModelConfig
from jaxalign.models.config import (
    ARCHITECTURE_KEYS,
    ATTENTION,
    REMATS,
    RUNTIME_KEYS,
    SCALING_FIELDS,
    SCALING_KEYS,
    best_on,
)
from jaxalign.models.frozen import FrozenConfig
from jaxalign.parallel import MeshConfig
from jaxalign.sections import check_given, check_keys, freeze, thaw
from jaxalign.training.optimizer import OptimizerConfig
from jaxalign.training.selection import BestConfig
from jaxalign.training.trackers import TRACKERS


@dataclasses.dataclass(frozen=True)
class ModelSettings(ModelConfig):
    """The model as a config file names it: an architecture, or a finished run to start from."""

    # 0: the tokenizer's. Above that of init_from: new tokens get rows, each the mean of the old ones.
    vocab_size: int = field(0, at_least=0)
    # 0: that of init_from; from scratch 512, or config.data.max_length where that is more.
    max_length: int = field(0, at_least=0)
    # "auto": bfloat16, and float32 on a CPU, which has no faster way.
    dtype: str = field("float32", choices=("auto", "float32", "bfloat16", "float16"))
    # Recomputed in backward: nothing; full: layers; attention: all but what the kernel of attention gives; dots,
    # dots_no_batch: all but that and (weight) matmuls; auto: as little as a device has the memory for, on a CPU nothing
    # or layers.
    remat: str = field("auto", choices=("auto", *REMATS))
    # "auto": splash on TPU; on GPU flash, or blockwise where that cannot; block_sparse on CPU.
    attention: str = field("auto", choices=("auto", *ATTENTION))
    # 0: 1,024 where sequences are of 4,096 tokens or more and a device has 24 GB, else 512.
    attention_block: int = field(0, at_least=0)
    # None: True, but on a CPU where the layers are at most 12.
    scan_layers: bool | None = None
    # None: that of init_from, which has it from its config.json; from scratch 0.
    router_balance_coef: float | None = field(None, at_least=0)
    init_from: str = ""  # a run's folder; its architecture, weights and tokenizer are taken over

    def __post_init__(self) -> None:
        """Sizes that must fit each other are checked once resolved: see `architecture`."""
        check(type(self), vars(self), self.key)

    def architecture(self, vocab_size: int, platform: str, saved: ModelConfig | None = None) -> ModelConfig:
        """The ModelConfig of these settings, for a platform of JAX; what is not set is the `saved` model's."""
        saved = saved or ModelConfig()
        # Where config.model leaves a size at the default it is the saved model's.
        sizes = {
            name: mine
            if (mine := getattr(self, name)) != getattr(ModelConfig, name)
            else getattr(saved, name)
            for name in ("num_layers", "head_dim")
        }
        best = best_on(platform, **sizes)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelConfig)}
        values |= {
            "vocab_size": self.vocab_size or vocab_size,
            "max_length": self.max_length or saved.max_length,
        }
        if self.router_balance_coef is None:
            values["router_balance_coef"] = saved.router_balance_coef
        if self.dtype == "auto":
            values["dtype"] = "float32" if platform == "cpu" else "bfloat16"
        if self.scan_layers is None:
            values["scan_layers"] = best["scan_layers"]
        if self.remat == "auto":
            values["remat"] = "full"  # until the sizes of a step are known, see `training.memory`
        if not self.attention_block:
            values["attention_block"] = ModelConfig.attention_block  # likewise
        if self.attention == "auto":
            values["attention"] = best["attention"]
        for kernel, runs_on in (("splash", ("tpu",)), ("flash", ("gpu", "cuda", "rocm"))):
            if self.attention == kernel and platform not in runs_on:
                raise ConfigError(
                    f"config.model.attention={kernel!r} is a kernel for {runs_on[0].upper()}s, and this is "
                    f"{platform}; use 'auto', 'blockwise' or 'xla'"
                )
        return ModelConfig(**values)


@dataclasses.dataclass(frozen=True)
class Config(Checked, at="config"):
    """Everything a run depends on. In a config file `options` stands under the stage's own name."""

    stage: Any  # the Stage; in a config file its name
    options: Any
    seed: int = field(0, at_least=0, below=2**32)  # of new weights, the order of the data and the sampling
    # Passes over the packed rows; ignored when num_steps is set.
    num_epochs: float = field(1.0, at_least=0, replaces=("num_steps",))
    num_steps: int = field(0, at_least=0)  # optimizer steps, or rollouts; 0: as num_epochs says
    # Rows of a step over all devices, or completions; 0: as published, and fewer where the data are few.
    batch_size: int = field(0, at_least=0)
    # Slices of a batch whose gradients are added up before an update; 0: as few as need not much memory.
    num_microbatches: int = field(0, at_least=0)
    # A loss or a gradient that is not finite: end the run; "skip": leave the update out, and count it; "rollback": as
    # on_alarm has it.
    on_nonfinite: str = field("stop", choices=("stop", "skip", "rollback"))
    # Bounds of metrics, see docs/runs.md: "grad_norm>10sd, objective/kl>50, eval/loss>best+0.1"; not set: those of the
    # stage; empty: none.
    alarms: str | None = None
    # What an alarm does: say so; end the run; or go back to the weights and the optimizer of the last checkpoint, and
    # leave out the batches since.
    on_alarm: str = field("warn", choices=("warn", "stop", "rollback"))
    log_every: int = field(10, at_least=1)  # steps that a line of metrics.jsonl is about
    eval_every: int = field(0, at_least=0)  # steps; 0: at the end only
    # Held-out prompts whose answers are kept at each evaluation, in samples.jsonl; 0: none; not set: 4 of a stage that
    # samples, of others none.
    log_samples: int | None = field(None, at_least=0)
    # wandb, trackio, mlflow, separated by commas: where metrics go beside metrics.jsonl and TensorBoard.
    trackers: str = ""
    eval_at_start: bool = False  # evaluate before the first step, too
    eval_batch_size: int = field(0, at_least=0)  # as batch_size, of an evaluation; 0: batch_size
    checkpoint_every: int = field(0, at_least=0)  # steps; 0: at the end only
    # The newest ones, the second for the case that the first is damaged; the best one is kept beside them.
    keep_checkpoints: int = field(2, at_least=1)
    keep_every: int = field(0, at_least=0)  # steps whose checkpoint is made and kept for good; 0: none
    # Write a checkpoint while training goes on, from a copy in host memory; False: training waits for it.
    async_save: bool = True
    # RUN or RUN@STEP, whose state (weights, optimizer) this run begins with, under its own settings.
    resume_from: str = ""
    # Seconds without a finished step after which a run ends itself; 0: never.
    hang_timeout: float = field(1800.0, at_least=0)
    best: BestConfig = dataclasses.field(default_factory=BestConfig)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    frozen: FrozenConfig = dataclasses.field(default_factory=FrozenConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.dtype == "float16":
            raise ConfigError(
                "config.model.dtype='float16' cannot train: gradients of a loss that is divided by many tokens are "
                "below what it can hold, and become 0; use 'bfloat16', which takes as much memory (float16 is for "
                "sampling: jaxalign generate --dtype=float16)"
            )
        if self.num_steps == 0 and not self.num_epochs > 0:
            raise ConfigError(
                f"config.num_epochs={self.num_epochs} must be positive, or set config.num_steps"
            )
        for name in self.tracker_names:
            if name not in TRACKERS:
                raise ConfigError(
                    f"config.trackers={self.trackers!r}: {name!r} is not one of {', '.join(TRACKERS)}"
                    f"{nearest_hint(name, list(TRACKERS))}"
                )
        if self.num_microbatches and self.batch_size % self.num_microbatches:
            raise ConfigError(
                f"config.batch_size={self.batch_size} is not divisible by "
                f"config.num_microbatches={self.num_microbatches}"
            )

        if self.best.metric and not self.eval_every:
            raise ConfigError(
                f"config.best.metric={self.best.metric!r} compares evaluations: set config.eval_every, the steps from "
                "one to the next"
            )

    @property
    def samples_per_row(self) -> int:
        """Completions that are sampled of a row of the data; 1 in stages that sample none."""
        return getattr(self.options, "samples_per_row", 1)

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers, one by one."""
        return tuple(name.strip() for name in self.trackers.split(",") if name.strip())

    def architecture(
        self, platform: str, *, vocab_size: int = 0, saved: ModelConfig | None = None
    ) -> ModelConfig:
        """The architecture of a run: that of config.model, or `saved`, of the model in init_from, computed as it says.

        Args:
          vocab_size: the tokenizer's, for a model from scratch.

        Raises:
          ConfigError: config.model asks for another model than `saved`, see `resolve_architecture`, or sets what its
            kind of scaling does not read.
        """
        if saved is None:
            longest = max(ModelConfig.max_length, self.data.max_length)
            found = self.model.architecture(vocab_size, platform, ModelConfig(max_length=longest))
        else:
            found = resolve_architecture(self.model.architecture(saved.vocab_size, platform, saved), saved)
        check_scaling(self.model, found)
        return found

    @staticmethod
    def leave_out(values: ConfigDict, given: set[str]) -> list[str]:
        """With a model to start from by a flag, takes out what a file says that trains one from scratch.

        That is its tokenizer and its sizes. Returns the line that tells it.

        Raises:
          ConfigError: flags give two lengths of the run, or none.
        """
        if {"num_steps", "num_epochs"} <= given and values.num_steps:
            raise ConfigError(
                f"--config.num_steps={values.num_steps} and --config.num_epochs={values.num_epochs} are two lengths of "
                "one run; give one of them"
            )
        if "num_steps" in given and not values.num_steps and "num_epochs" not in given:
            raise ConfigError(
                "--config.num_steps=0 is no length of a run: give the number of steps, or, for passes over the data, "
                "--config.num_epochs=N; a model that is not to be trained needs no run (jaxalign evaluate, generate)"
            )
        if "model.init_from" not in given or not values.model.init_from:
            return []
        if "data.tokenizer" in given or not values.data.tokenizer:
            return []
        values.data.tokenizer = ""
        for key in ARCHITECTURE_KEYS:
            if f"model.{key}" not in given:
                values.model[key] = getattr(ModelSettings, key)
        return ["--config.model.init_from is yours: it brings its own architecture and tokenizer"]


def resolve_architecture(wanted: ModelConfig, saved: ModelConfig) -> ModelConfig:
    """The saved architecture, computed as `wanted` says, with more tokens or a longer context where it says so.

    Raises:
      ConfigError: a config file asks for another architecture than the saved one.
    """
    default, changed = ModelConfig(), {key: getattr(wanted, key) for key in RUNTIME_KEYS}
    for name in ("vocab_size", *ARCHITECTURE_KEYS):
        mine, theirs = getattr(wanted, name), getattr(saved, name)
        if mine == theirs or (name not in ("vocab_size", "max_length") and mine == getattr(default, name)):
            continue
        longer = saved.positions == "rope" and (
            name in SCALING_KEYS or (name == "max_length" and mine > theirs)
        )
        if not longer and not (name == "vocab_size" and mine > theirs):
            raise ConfigError(
                f"config.model.{name}={mine!r}, but the model in config.model.init_from has {theirs!r}; "
                f"leave the key at its default, or leave init_from empty to train from scratch"
            )
        changed[name] = mine
    return dataclasses.replace(saved, **changed)


def check_scaling(wanted: ModelConfig, found: ModelConfig) -> None:
    """Raises ConfigError where config.model sets a number of rotary positions that their kind of scaling does not read.

    Args:
      wanted: what config.model says.
      found: the architecture that came of it.
    """
    for name in SCALING_KEYS:
        kinds = [kind for kind, fields in SCALING_FIELDS.items() if name in fields]
        value, kind = getattr(wanted, name), found.rope_scaling
        if kinds and kind not in kinds and value != getattr(ModelConfig, name):
            raise ConfigError(
                f"config.model.{name}={value!r} means nothing to config.model.rope_scaling={kind!r}, only to "
                f"{', '.join(kinds)}; set that too, or leave it out"
            )


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
    check_given(values, "config")
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
    first, *parts = path.split(".")
    found = config.options if parts and first == config.stage.name else getattr(config, first)
    for part in parts:
        found = getattr(found, part)
    return found


def to_json(config: Config) -> str:
    """The JSON that a checkpoint carries."""
    return json.dumps(
        dataclasses.asdict(dataclasses.replace(config, stage=config.stage.name)), sort_keys=True
    )
