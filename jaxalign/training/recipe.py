"""What a config leaves to jaxalign, at 0 or "auto", is found here: by the stage, the model's size and the data.

Each is found once, when a run is opened. What was found is what the run says, what its `settings.json` and checkpoints
hold, and what it goes on with when it is resumed. docs/defaults.md has the rules.
"""

import dataclasses
import json
import math
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from jaxalign.data.packing import Rows
from jaxalign.data.records import KINDS
from jaxalign.errors import CheckpointError, ConfigError
from jaxalign.models import ModelConfig
from jaxalign.parallel.sharding import shards
from jaxalign.storage import Path
from jaxalign.training.step_files import CHECKPOINTS

SETTINGS = "settings.json"  # every setting of a run as it goes on now, by the names of flags
LEAST_STEPS = 20  # with fewer there is hardly a schedule, and each is a large part of the run
SLICE_TOKENS = 16_384  # most tokens of a microbatch on one device
ANSWER = 1024  # most tokens of a sampled answer


@dataclasses.dataclass(frozen=True)
class Rate:
    """A learning rate for models of at most `up_to` parameters, and where it was published."""

    up_to: float
    learning_rate: float
    source: str
    batch: int = 0  # of the same source, where it is another than the recipe's


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The numbers of a stage that depend on the model and the data. A stage of one's own may take that of another."""

    rates: tuple[Rate, ...] = ()  # for a model that training goes on from, smallest first
    fresh: tuple[Rate, ...] = ()  # for one that begins with random weights; none: as `rates`
    batch: int = 128  # records of a step: sequences, pairs, or sampled completions
    in_tokens: bool = False  # `batch` counts tokens
    max_length: int = 2048  # tokens of a sequence
    source: str = "as Tülu 3 (arXiv 2411.15124)"  # of batch and max_length
    rows: int = 32  # of a step where no data are read, as for a plan

    def rate(self, parameters: int, *, fresh: bool = False) -> Rate | None:
        """The entry for a model of so many parameters; None: there is none."""
        table = (fresh and self.fresh) or self.rates
        return next((rate for rate in table if parameters <= rate.up_to), None)


@dataclasses.dataclass(frozen=True)
class Size:
    """What a recipe asks about a model."""

    parameters: int
    fresh: bool  # it begins with random weights


def resolve_model(config: Any, model: ModelConfig, size: Size) -> tuple[Any, tuple[str, ...]]:
    """Fills in what depends on the model: learning rates and lengths.

    Args:
      config: the frozen Config of a run.

    Returns:
      The config, and what was found, in words.

    Raises:
      ConfigError: the stage has no rate for such a model, or sequences are longer than the model was made for.
    """
    recipe: Recipe = config.stage.recipe
    name, options, optimizer, found = config.stage.name, config.options, config.optimizer, []
    if not optimizer.learning_rate:
        rate = recipe.rate(size.parameters, fresh=size.fresh)
        if rate is None:
            raise ConfigError(
                f"config.optimizer.learning_rate=0: stage {name!r} has no rate of its own for a model of "
                f"{size.parameters:,} parameters (`recipe` of its declaration); set one, such as "
                "--config.optimizer.learning_rate=1e-5"
            )
        optimizer = dataclasses.replace(optimizer, learning_rate=rate.learning_rate)
        found.append(f"optimizer.learning_rate={rate.learning_rate:g} ({rate.source})")
    if getattr(options, "critic_learning_rate", None) == 0:
        options = dataclasses.replace(options, critic_learning_rate=optimizer.learning_rate)
        found.append(f"{name}.critic_learning_rate={optimizer.learning_rate:g} (the policy's)")
    data = config.data
    if not data.max_length:
        new = getattr(getattr(options, "sampling", None), "max_new_tokens", None)
        room = (
            model.max_length
            if new is None
            else model.max_length - (new or min(ANSWER, model.max_length // 2))
        )
        length = min(recipe.max_length, room)
        if length < 2:
            raise _no_room(config, model)
        data = dataclasses.replace(data, max_length=length)
        why = recipe.source if length == recipe.max_length else f"the model holds {model.max_length:,}"
        found.append(f"data.max_length={length:,} ({why})")
    if getattr(options, "sampling", None) is not None:
        sampling = options.sampling
        new = sampling.max_new_tokens or min(ANSWER, model.max_length - data.max_length)
        if new < 1 or data.max_length + new > model.max_length:
            raise _no_room(config, model)
        if not sampling.max_new_tokens:
            options = dataclasses.replace(options, sampling=dataclasses.replace(sampling, max_new_tokens=new))
            found.append(f"{name}.sampling.max_new_tokens={new:,}")
    return dataclasses.replace(config, options=options, data=data, optimizer=optimizer), tuple(found)


def _no_room(config: Any, model: ModelConfig) -> ConfigError:
    name, data, sampling = config.stage.name, config.data, config.options.sampling
    new = f"config.{name}.sampling.max_new_tokens={sampling.max_new_tokens}"
    return ConfigError(
        f"config.data.max_length={data.max_length} and {new}: prompt and completion together must fit the "
        f"{model.max_length} tokens that the model was made for; lower one of them, or set it to 0"
    )


def resolve_data(
    config: Any, rows: Rows, mesh: Mesh | AbstractMesh, size: Size
) -> tuple[Any, tuple[str, ...]]:
    """Fills in what depends on the data: row length, batch size, microbatches.

    A step takes as many records as published, but so few that there are `LEAST_STEPS` steps, and that every device has
    a row. With num_steps given, it takes at most all that there are.
    """
    found = []
    if not config.data.row_length:
        data = dataclasses.replace(config.data, row_length=rows.row_length)
        config = dataclasses.replace(config, data=data)
        found.append(f"data.row_length={rows.row_length:,} (of these data)")
    free = not config.batch_size
    why = ""
    if free:
        config, why = _with_batch(config, rows, mesh, size)
    cut = not config.num_microbatches
    if cut:
        config = _with_microbatches(config, mesh, free=free)
    if free:
        found.append(f"batch_size={config.batch_size:,} ({why})")
    if cut and config.num_microbatches > 1:
        found.append(
            f"num_microbatches={config.num_microbatches} (at most {SLICE_TOKENS:,} tokens at once on a device)"
        )
    return config, tuple(found)


def batch_pieces(config: Any, mesh: Mesh | AbstractMesh) -> int:
    """Into how many pieces a batch is cut by the devices and by the updates on it."""
    return shards(mesh, "batch") * getattr(config.options, "num_minibatches", 1)


def row_slots(config: Any) -> int:
    """Tokens of a row, with what is sampled behind it."""
    sampling = getattr(config.options, "sampling", None)
    return config.data.slots(config.stage.data) + (0 if sampling is None else sampling.max_new_tokens)


def _with_batch(config: Any, rows: Rows, mesh: Mesh | AbstractMesh, size: Size) -> tuple[Any, str]:
    """The config with a batch as published, or less of few data, and which of the two it is."""
    recipe: Recipe = config.stage.recipe
    rate = recipe.rate(size.parameters, fresh=size.fresh)
    batch, source = recipe.batch, recipe.source
    if rate is not None and rate.batch:
        batch, source = rate.batch, rate.source
    unit = "completions" if hasattr(config.options, "sampling") else "records"
    records = len(rows.items)
    if recipe.in_tokens:
        unit, records = "tokens", rows.tokens
    wanted = batch / config.samples_per_row
    most = records if config.num_steps else records * config.num_epochs / LEAST_STEPS
    config = _with_rows(config, int(min(wanted, most) * len(rows) / records), mesh)
    if wanted <= most:
        return config, f"about {batch:,} {unit}, {source}"
    return config, f"few data: not {batch:,} {unit} a step"


def resolve_without_data(config: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Fills in the same for a plan, which reads no data: full rows of the longest sequences, whole batches."""
    recipe: Recipe = config.stage.recipe
    samples = hasattr(config.options, "sampling")
    if not config.data.row_length:
        length = KINDS[config.stage.data].sequences * config.data.max_length
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_length=length))
    if not config.batch_size:
        rows = recipe.batch // config.samples_per_row if samples else recipe.rows
        config = _with_rows(config, rows, mesh)
    return dataclasses.replace(config, num_microbatches=config.num_microbatches or 1)


def keep_found(config: Any, workdir: Path) -> Any:
    """The config, with what the run in `workdir` found when it began in place of what is to be found.

    Raises:
      CheckpointError: a run of another stage lies there.
    """
    file, folder = workdir / SETTINGS, workdir / CHECKPOINTS
    if not (file.is_file() and folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())):
        return config
    try:
        before = json.loads(file.read_bytes())
    except ValueError:
        return config
    stage, former = config.stage.name, before.get("config.stage", config.stage.name)
    if former != stage:
        raise CheckpointError(
            f"{workdir}: a run of the stage {former} lies there, and this is {stage}; name another --workdir, with "
            f"--config.model.init_from={workdir} to begin with the model of that run"
        )

    def kept(section: Any, path: str, *names: str) -> Any:
        found = {
            name: before[f"{path}.{name}"]
            for name in names
            if getattr(section, name, None) in (0, "auto") and f"{path}.{name}" in before
        }
        return dataclasses.replace(section, **found)

    own = f"config.{stage}"
    options = kept(config.options, own, "critic_learning_rate")
    if getattr(options, "sampling", None) is not None:
        sampling = kept(options.sampling, f"{own}.sampling", "max_new_tokens")
        options = dataclasses.replace(options, sampling=sampling)
    return dataclasses.replace(
        kept(config, "config", "batch_size"),
        options=options,
        model=kept(config.model, "config.model", "dtype", "remat", "attention_block"),
        optimizer=kept(config.optimizer, "config.optimizer", "learning_rate"),
        # The row length is that of the same data again.
        data=kept(config.data, "config.data", "max_length"),
    )


def _with_rows(config: Any, rows: int, mesh: Mesh | AbstractMesh) -> Any:
    """The config with a batch of about so many rows of the data, which the mesh can split."""
    per_row = config.samples_per_row
    parts = shards(mesh, "batch")
    # Rows are split over the devices, and so are the completions of a minibatch of them.
    pieces = batch_pieces(config, mesh) * max(1, config.num_microbatches)
    unit = math.lcm(parts, pieces // math.gcd(pieces, per_row))
    return dataclasses.replace(config, batch_size=max(1, rows // unit) * unit * per_row)


def _with_microbatches(config: Any, mesh: Mesh | AbstractMesh, *, free: bool) -> Any:
    """The config with as few microbatches as leave at most `SLICE_TOKENS` tokens of one on a device.

    Args:
      free: the batch may become a little smaller where that halves their number.
    """
    length = row_slots(config)
    pieces = batch_pieces(config, mesh)
    rows = max(1, config.batch_size // pieces)  # of a device, in an update
    most = max(1, SLICE_TOKENS // length)
    per_row = config.samples_per_row
    needed = -(-rows // most)
    parts = next(n for n in range(needed, rows + 1) if rows % n == 0)
    smaller = rows // needed * needed
    fits = smaller * pieces % (per_row * shards(mesh, "batch")) == 0
    if free and parts > 2 * needed and fits and rows * pieces == config.batch_size:
        parts, config = needed, dataclasses.replace(config, batch_size=smaller * pieces)
    return dataclasses.replace(config, num_microbatches=parts)
