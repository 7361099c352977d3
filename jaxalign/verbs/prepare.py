"""`jaxalign prepare`: the tokens of a run's data made ahead of it."""

import dataclasses
import shlex

from jaxalign.errors import ConfigError
from jaxalign.streams import say
from jaxalign.verbs.requests import ConfigRequest, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareRequest(ConfigRequest):
    """Make the tokens of a run's data ahead of it, by all cores. A run of the same config then starts with them.

    They go to config.data.store, a folder that all hosts of the run see, also gs://BUCKET/FOLDER; by default to this
    user's cache folder. The same command goes on where it was stopped:

        jaxalign prepare --config=sft --config.data.train=mine.jsonl --config.data.store=/shared/tokens

    Flags are those of train: what changes tokens makes another store.
    """

    verify: bool = flag("read all that is there, and make again what is damaged", default=False)
    runner: str = flag(
        "what makes them: the cores of this machine, or Apache Beam",
        default="local",
        choices=("local", "beam"),
    )
    beam_options: str = flag("Beam's own flags: its runner and what that needs", default="", show="FLAGS")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beam_options and self.runner != "beam":
            raise ConfigError(
                f"{self.key('beam_options')}={self.beam_options!r} is read with --runner=beam alone"
            )


def run(request: PrepareRequest) -> int:
    """Makes the stores, and prints where each is."""
    from jaxalign.data.beam import BeamRunner
    from jaxalign.data.dataset import build_datasets, stored_sources
    from jaxalign.data.encode_sources import IN_MEMORY, own_folder
    from jaxalign.stages import parse_config
    from jaxalign.training.open import open_inputs

    config = parse_config(request.read())
    if config.data.store == IN_MEMORY:
        raise ConfigError("config.data.store='none' keeps no tokens; name a folder, or leave it out")
    # Small sources, too, which a run by itself would not store.
    data = dataclasses.replace(config.data, store=config.data.store or str(own_folder()))
    inputs = open_inputs(dataclasses.replace(config, data=data))
    data, tokenizer, kind = inputs.config.data, inputs.tokenizer, config.stage.data
    if request.runner == "beam":
        options = tuple(shlex.split(request.beam_options))
        for part in ("train", "eval") if data.eval else ("train",):
            encoder, sources = stored_sources(data, tokenizer, kind, part)
            for source in sources:
                if source.store.open() is None:
                    runner = BeamRunner(source.open, source.store.shared, options)
                    source.store.make(source.open(), encoder, runner, source.size)
    parts = build_datasets(data, tokenizer, kind)
    damaged = (
        [line for part in parts if part for store in part.stores for line in store.verify()]
        if request.verify
        else []
    )
    if damaged:
        say("\n".join(f"{line}; it is made again" for line in damaged))
        parts = build_datasets(data, tokenizer, kind)
    for name, part in zip(("train", "eval"), parts, strict=True):
        if part is not None:
            say(f"{name}: {part.report}; {len(part.rows):,} rows of {part.rows.row_length:,} tokens")
    for store in dict.fromkeys(store for part in parts if part for store in part.stores):
        say(f"{store.name}: {store.shared or store.folder}")
    return 0
