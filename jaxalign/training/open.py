"""A run: what a config file stands for once files have been opened and sizes are known."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxalign
from jaxalign import parallel
from jaxalign.data import (
    Dataset,
    Tokenizer,
    build_dataset,
    build_datasets,
    eval_batches,
    load_tokenizer,
    make_loader,
    train_batches,
)
from jaxalign.data.invalid import DROPPED_FILE, BadRow, write_dropped
from jaxalign.data.kinds import TEXT
from jaxalign.data.loader import rows_of_epochs
from jaxalign.data.records import KINDS
from jaxalign.data.sets import find_sets
from jaxalign.data.stream import Emptied, StreamLoader
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig, Params, abstract_params, init_head, init_params
from jaxalign.models.init import count_parameters
from jaxalign.models.packed import can_share
from jaxalign.parallel import processes
from jaxalign.storage import Path, to_path
from jaxalign.streams import say
from jaxalign.training.config import Config, to_json
from jaxalign.training.memory import resolve_kernels
from jaxalign.training.optimizer import make_optimizer, make_schedule
from jaxalign.training.recipe import Size, keep_found, resolve_data, resolve_model
from jaxalign.training.saved_model import (
    SavedModel,
    check_length,
    check_pieces,
    check_vocabulary,
    describe_changes,
    find_model,
    origin,
)
from jaxalign.training.workdir import TEMPLATE


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a config names, opened.

    The config has the tokenizer and the chat template of its model filled in, and what it leaves to jaxalign and the
    model decides, see `training.recipe`.
    """

    config: Config
    model: ModelConfig
    tokenizer: Tokenizer
    source: SavedModel | None  # config.model.init_from
    size: Size
    found: tuple[str, ...]  # what was filled in by the model, in words


@dataclasses.dataclass(frozen=True)
class Run:
    """What every stage is built from."""

    config: Config
    workdir: Path
    mesh: Mesh
    model: ModelConfig
    tokenizer: Tokenizer
    source: SavedModel | None  # config.model.init_from
    train: Dataset
    held_out: Dataset | None
    steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    found: tuple[str, ...] = ()  # what the config left to jaxalign, in words

    @property
    def rows_sharding(self) -> NamedSharding:
        """Rows of a batch over the data axes."""
        return parallel.batch_sharding(self.mesh)

    @property
    def replicated(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def put(self, batch: Any) -> Any:
        """A batch of host arrays (this process's rows) as arrays over the mesh."""
        return jax.tree.map(lambda x: processes.place(np.asarray(x), self.rows_sharding), batch)

    @property
    def share(self) -> dict[str, Any]:
        """Which rows of a batch this process reads, as the loader's functions take it."""
        parts, num_parts = processes.batch_parts(self.mesh)
        return {"parts": parts, "num_parts": num_parts}

    @property
    def rows_per_step(self) -> int:
        """Rows of the data that a step reads: of a stage that samples several completions of a prompt, fewer."""
        return count_rows(self.config)

    def loader(self) -> Any:
        """The training batches, as an iterator of host arrays whose position can be saved."""
        rows, batch_size = self.train.rows, self.rows_per_step
        if self.train.stream is not None:
            return StreamLoader(
                self.train.stream, batch_size, self.config.seed, **self.share, note=self._note_window
            )
        return make_loader(rows, batch_size, self.config.seed, num_epochs=self.epochs_to_fill, **self.share)

    def _note_window(self, window: Dataset | Emptied, start: int) -> None:
        """Says what was left out of a window of a stream, but of the first, of which the start has said it."""
        if not start or jax.process_index():
            return
        if isinstance(window, Dataset) and not (window.invalid or window.report.dropped):
            return
        write_dropped(self.workdir / f"from_record_{start + 1}_{DROPPED_FILE}", window.invalid)
        say(f"records {start + 1:,} and following: {window.report}", sys.stderr)

    @property
    def updates(self) -> int:
        """Updates of the optimizer in all; its schedule is made for so many."""
        return count_updates(self.config, self.steps)

    @property
    def epochs_to_fill(self) -> float | None:
        """Passes after which the data end, where that is how the run's length is given; None: they never do."""
        counted = self.config.num_steps or self.train.rows.weights
        return None if counted else self.config.num_epochs

    @property
    def epochs(self) -> float:
        """Passes over the packed rows that all steps make."""
        return self.epochs_to_fill or self.steps * self.rows_per_step / len(self.train.rows)

    def epochs_after(self, steps: int) -> float | None:
        """Passes over the packed rows that the first `steps` steps make; None of a stream, whose end nobody knows."""
        if self.train.stream is not None:
            return None
        return min(steps * self.rows_per_step / len(self.train.rows), self.epochs)

    def batches(self, dataset: Dataset, of: range | None = None, rows: int = 0) -> Iterator[Any]:
        """Every row of a dataset once and in order; empty rows fill up the last batch.

        Args:
          of: these rows alone.
          rows: of a batch; 0: as many as of a step.
        """
        return map(self.put, eval_batches(dataset.rows, rows or self.rows_per_step, of=of, **self.share))

    @functools.cached_property
    def eval_sets(self) -> dict[str, range]:
        """The held-out rows of each evaluation set, by its name; "" is the name of a single one."""
        if self.held_out is None:
            return {}
        named = self.config.data.eval or self.config.data.train
        names = tuple(named.split(",")) if isinstance(named, str) else named
        return find_sets(self.held_out, names) or {"": range(len(self.held_out.rows))}

    def eval_batches(self, name: str) -> Iterator[Any]:
        """Every held-out row of an evaluation set once, `eval_rows` at a time; see `batches`."""
        assert self.held_out is not None
        return self.batches(self.held_out, self.eval_sets[name], self.eval_rows)

    @property
    def eval_rows(self) -> int:
        """Rows of the data in a batch of an evaluation."""
        return count_rows(self.config, self.config.eval_batch_size)

    @property
    def invalid(self) -> tuple[BadRow, ...]:
        """Rows of both parts of the data that could not be used and were left out."""
        return self.train.invalid + (() if self.held_out is None else self.held_out.invalid)

    def text_batches(self, names: str | tuple[str, ...], batch_size: int) -> tuple[Callable[[int], Any], str]:
        """Batches of pretraining text by number, for a loss that mixes it in, and the text's fingerprint."""
        own = self.config.data  # of prompts, perhaps, whose rows are no longer than one
        row_length = max(own.row_length, own.max_length)
        # Which field of a row is which is said of the prompts.
        data = dataclasses.replace(own, train=names, weights=(), fields="", row_length=row_length)
        dataset = build_dataset(data, self.tokenizer, TEXT)
        if jax.process_index() == 0:
            write_dropped(self.workdir / f"text_{DROPPED_FILE}", dataset.invalid)
        batches = train_batches(dataset.rows, batch_size, self.config.seed, **self.share)
        return lambda number: self.put(batches[number]), dataset.fingerprint

    @property
    def prompt_length(self) -> int:
        """Slots of a left-padded prompt."""
        return self.train.rows.row_length

    @property
    def own_template(self) -> bool:
        """Whether conversations are rendered otherwise than the tokenizer's own files say."""
        data = self.config.data
        return bool(data.chat_template or data.template_args or data.answer_tokens)

    @property
    def model_changes(self) -> list[str]:
        """What the run changes of the model that it starts from, a line each."""
        if self.source is None:
            return []
        lines = describe_changes(self.source.config, self.model)
        coef = self.model.router_balance_coef
        if self.model.num_experts and coef and self.config.model.router_balance_coef is None:
            lines.append(
                f"the load-balancing loss of the experts weighs {coef:g}, as the model's own config says; "
                "config.model.router_balance_coef is another weight, 0 for none"
            )
        return lines

    def abstract_rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """An array of a batch, [B, ...], that is not there."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.rows_sharding)

    def abstract_params(self, *, scalar: bool = False, model: ModelConfig | None = None) -> Params:
        """Shapes and shardings of the model, or of a scalar model like it."""
        return abstract_params(model or self.model, self.mesh, scalar=scalar)

    def load_init(self) -> Params:
        """The language model in config.model.init_from.

        Raises:
          ConfigError: none is named, or it is a reward model.
        """
        if self.source is None:
            raise ConfigError(
                f"config.model.init_from is empty: the {self.config.stage.name} stage starts from a trained model; "
                f"name the folder of a finished run"
            )
        if self.source.scalar:
            raise ConfigError(
                f"config.model.init_from={self.config.model.init_from!r} is a reward model; name a language model"
            )
        return self.source.load(self.mesh, self.model.vocab_size)

    def init_params(self, *, scalar: bool = False) -> Params:
        """What training starts from: the model in init_from (with a new head for a scalar one), or fresh weights."""
        key = jax.random.key(self.config.seed)
        layout = jax.tree.map(lambda x: x.sharding, self.abstract_params(scalar=scalar))
        if self.source is None:
            make = jax.jit(lambda key: init_params(key, self.model, scalar=scalar), out_shardings=layout)
            return make(key)
        if self.source.scalar and scalar:
            return self.source.load(self.mesh, self.model.vocab_size)
        params = self.load_init()
        if not scalar:
            return params
        head = jax.device_put(init_head(jax.random.fold_in(key, 1), self.model), layout["head"])
        return {"transformer": params, "head": head}

    def check_divides(self, key: str, rows: int, parts: int = 1) -> None:
        """Raises ConfigError unless `rows`, cut into `parts`, can be split over the mesh."""
        if rows % parts:
            raise ConfigError(f"config.{key}: {rows} rows cannot be cut into {parts} equal parts")
        parallel.check_divides(self.mesh, key, rows // parts)


def count_updates(config: Config, steps: int) -> int:
    """Updates of the optimizer in `steps` steps: of a step that samples, several."""
    return steps * getattr(config.options, "updates_per_step", 1)


def count_rows(config: Config, batch_size: int = 0) -> int:
    """Rows of the data in a batch, config.batch_size's by default: cut by the completions that are sampled of each."""
    return (batch_size or config.batch_size) // config.samples_per_row


def local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a batch array that this process holds, each once."""
    if x.is_fully_addressable:
        return np.asarray(x)
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def open_inputs(config: Config) -> Inputs:
    """Opens model folder and tokenizer of a config, but neither weights nor data.

    Raises:
      ConfigError, CheckpointError: see the parts.
    """
    if hasattr(config.options, "check_named"):
        config.options.check_named()
    source = find_model(config.model.init_from, "config.model.init_from") if config.model.init_from else None
    data = config.data
    if source is not None:
        if data.tokenizer in ("", str(source.path)):
            source.check_tokenizer()
        if not data.tokenizer:
            data = dataclasses.replace(data, tokenizer=str(source.path))
        if not data.chat_template and (source.path / TEMPLATE).is_file():
            data = dataclasses.replace(data, chat_template=str(source.path / TEMPLATE))
    if not data.tokenizer:
        also = " as that run did: config.resume_from brings its state alone" if config.resume_from else ""
        raise ConfigError(
            "config.data.tokenizer is empty: name a SentencePiece .model file, a tokenizer.json, or a folder or hub "
            f"model with one, or set model.init_from{also}"
        )
    tokenizer = load_tokenizer(data.tokenizer, data.chat_template, data.template_args, data.answer_tokens)
    saved = source.config if source else None
    model = config.architecture(parallel.platform(), vocab_size=tokenizer.vocab_size, saved=saved)
    where = f"config.data.tokenizer={data.tokenizer!r}"
    check_vocabulary(model, tokenizer, where, started=source is not None)
    if source is not None and data.tokenizer != str(source.path):
        check_pieces(source, tokenizer, where)
    key = "config.model.init_from" if source else "config.model"
    check_length(model, data.max_length, f"config.data.max_length={data.max_length} makes", key)
    settings_of_model = dataclasses.replace(config.model, dtype=model.dtype)
    config = dataclasses.replace(config, data=data, model=settings_of_model)
    size = Size(count_parameters(model), fresh=source is None)
    config, found = resolve_model(config, model, size)
    return Inputs(config, model, tokenizer, source, size, found)


def open_run(config: Config, workdir: str | os.PathLike) -> Run:
    """Opens model, tokenizer and data of a config; call inside `parallel.use_mesh`.

    Raises:
      ConfigError, DataError, CheckpointError: see the parts; or the processes found different things.
      DistributedError: another process could not.
    """
    with processes.fail_together():
        workdir = to_path(workdir)
        run = _open(config, workdir)
    processes.check_same(
        settings(config)
        | {
            "training data": run.train.fingerprint,
            "held-out data": run.held_out and run.held_out.fingerprint,
            "jaxalign": jaxalign.__version__,
            "jax": jax.__version__,
        }
    )
    processes.check_shared(workdir)
    return run


def settings(config: Config) -> dict[str, Any]:
    """Every value of a config by the name of its flag, as JSON has it."""
    return flat_settings(json.loads(to_json(config)))


def default_settings(config: Config) -> dict[str, Any]:
    """What `settings` would give were every key of the config at its default; keys without one are left out."""

    def defaults(cls: type) -> dict[str, Any]:
        out = {}
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                out[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                out[field.name] = defaults(type(field.default_factory()))
        return out

    values = defaults(Config) | {"stage": config.stage.name, "options": defaults(type(config.options))}
    return flat_settings(json.loads(json.dumps(values)))


def flat_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What `to_json` wrote of a config, by the names that config files and flags use."""
    shared = {key: value for key, value in config.items() if key != "options"}
    return _flatten(shared | {config["stage"]: config["options"]}, "config")


def _flatten(values: Any, path: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    return {name: x for key, value in values.items() for name, x in _flatten(value, f"{path}.{key}").items()}


def _open(config: Config, workdir: Path) -> Run:
    mesh = jax.sharding.get_mesh()
    if config.data.streaming and not config.num_steps:
        raise ConfigError(
            f"config.num_epochs={config.num_epochs:g}: a stream (config.data.streaming=True) ends nobody knows where; "
            "set config.num_steps"
        )
    inputs = open_inputs(keep_found(config, workdir))
    data = inputs.config.data
    if data.share_prompts and not all(can_share(model, mesh) for model in _readers(inputs)):
        data = dataclasses.replace(data, share_prompts=False)
    train, held_out = build_datasets(data, inputs.tokenizer, inputs.config.stage.data)
    config, found = resolve_data(inputs.config, train.rows, mesh, inputs.size)
    total = rows_of_epochs(train.rows, config.num_epochs)
    steps = config.num_steps or -(-total // count_rows(config))
    updates = count_updates(config, steps)
    parallel.check_divides(
        mesh, "batch_size / config.num_microbatches", config.batch_size // config.num_microbatches
    )
    _check_eval_batch(config, mesh)
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        model=inputs.model,
        tokenizer=inputs.tokenizer,
        source=inputs.source,
        train=train,
        held_out=held_out,
        steps=steps,
        optimizer=make_optimizer(config.optimizer, updates),
        schedule=make_schedule(config.optimizer, updates),
        found=(*inputs.found, *found),
    )
    return resolve_kernels(run)


def _readers(inputs: Inputs) -> Iterator[ModelConfig]:
    """The models that read the rows: the trained one, and those that its loss reads from elsewhere."""
    yield inputs.model
    stage = inputs.config.stage
    if not KINDS[stage.data].one_per_row:  # of which no two sequences share tokens
        for frozen in stage.frozen(inputs.config.options).values():
            if frozen.path:
                yield find_model(frozen.path, frozen.key).config


def _check_eval_batch(config: Config, mesh: Mesh) -> None:
    size = config.eval_batch_size
    rows = count_rows(config, size)
    if size and rows * config.samples_per_row != size:
        raise ConfigError(
            f"config.eval_batch_size={size}: no multiple of {config.samples_per_row}, the completions of one prompt"
        )
    parallel.check_divides(mesh, "eval_batch_size", rows)


def describe(run: Run) -> dict[str, Any]:
    """What a run's `meta` records of it: all that its checkpoints need to be read as models, and more."""
    stage = run.config.stage
    return {
        "config": json.loads(to_json(run.config)),
        "data_fingerprint": run.train.fingerprint,
        "steps": run.steps,
        "model": dataclasses.asdict(run.model),
        "scalar": stage.scalar,
        "weights": stage.weights(run.config.options),
    } | origin(run.source)
