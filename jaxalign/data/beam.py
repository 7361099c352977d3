"""The parts of a token store made by Apache Beam, on as many machines as its runner has."""

import functools
import importlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dill
from etils import epath

from jaxalign.data.encoder import Encoder
from jaxalign.data.sources import Records
from jaxalign.data.worker import Span, Work
from jaxalign.errors import ConfigError, DataError
from jaxalign.storage import Path
from jaxalign.text import templates


@dataclass(frozen=True)
class BeamRunner:
    """The `Runner` that hands spans to a Beam pipeline, whose workers open the source themselves.

    They need the source and the store where they are: on a disk that all machines share, or in a bucket.
    """

    open: Callable[[], Records]
    shared: Path | None  # the folder of the store, where that is in a bucket
    options: tuple[str, ...]  # of the pipeline, as Beam's own flags

    def __call__(
        self, work: Work, encoder: Encoder, records: Records, spans: Sequence[Span]
    ) -> Iterator[int]:
        """The bytes of every part, once all are made.

        Raises:
          ConfigError: Beam is not installed, or does not know an option. DataError: the pipeline failed.
        """
        try:
            beam: Any = importlib.import_module("apache_beam")
            options: Any = importlib.import_module("apache_beam.options.pipeline_options")
        except ImportError:
            raise ConfigError(
                "--runner=beam needs Apache Beam: pip install 'jaxalign[beam]', here and in the image of its workers"
            ) from None
        setup = dill.dumps((work, encoder, templates.clock(), self.open), recurse=False)
        make = functools.partial(make_part, setup, self.shared and os.fspath(self.shared))
        try:
            with beam.Pipeline(options=options.PipelineOptions(list(self.options))) as pipeline:
                # Reshuffled, or one worker might get all spans.
                _ = pipeline | beam.Create(list(spans)) | beam.Reshuffle() | beam.Map(make)
        except Exception as error:  # of the runner, or of a worker, whose kind it does not keep
            raise DataError(f"Apache Beam could not make the tokens: {str(error).strip()}") from error
        for span in spans:
            if self.shared is not None:
                _copy(self.shared / span.path.name, span.path)
            yield span.path.stat().st_size


def make_part(setup: bytes, shared: str | None, span: Span) -> str:
    """Makes one part, where it is not there already, and returns its name; runs on a worker of Beam."""
    work, encoder, clock, records = _read_setup(setup)
    templates.set_clock(clock)
    if shared is None:
        if not span.path.is_file():
            span.path.parent.mkdir(parents=True, exist_ok=True)
            work(encoder, span.of(records))
    elif not (target := epath.Path(shared) / span.path.name).is_file():
        with tempfile.TemporaryDirectory() as folder:
            # A part knows the name of its store, which is the folder's.
            own = replace(span, path=pathlib.Path(folder, *span.path.parts[-2:]))
            own.path.parent.mkdir()
            work(encoder, own.of(records))
            _copy(own.path, target)
    return span.path.name


@functools.lru_cache(maxsize=1)
def _read_setup(setup: bytes) -> tuple:
    *rest, open_source = dill.loads(setup)
    return (*rest, open_source())


def _copy(source: Path, target: Path) -> None:
    epath.Path(source).copy(target, overwrite=True)
