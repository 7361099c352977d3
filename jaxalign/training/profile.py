"""Traces of some steps of a run, for XProf and Perfetto; docs/profiling.md says how to read them."""

import dataclasses
import re
import shutil
import sys
from typing import Any, Self

import jax

from jaxalign.errors import ConfigError
from jaxalign.storage import Path, temporary_folder

PROFILE = "profile"  # where, inside a run directory, traces lie
_ENDINGS = (".xplane.pb", ".trace.json.gz")  # for XProf, for Perfetto
_EXAMPLE = "give the first and the last step, such as --profile=10:12"


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps `first` to `last`, both included, counted from 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The steps that START:STOP names; raises ConfigError."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found:
            raise ConfigError(f"--profile={text} is not of the form START:STOP; {_EXAMPLE}")
        first, last = map(int, found.groups())
        if not 1 <= first <= last:
            raise ConfigError(f"--profile={text} holds no step: steps count from 1; {_EXAMPLE}")
        return cls(first, last)

    def check(self, done: int, total: int) -> None:
        """Raises ConfigError unless a run of `total` steps, of which `done` are done, has all of them still to do."""
        if not done < self.first <= self.last <= total:
            name = f"--profile={self.first}:{self.last}"
            if done >= total:
                raise ConfigError(f"{name}: the run has done all of its {total} steps; leave the flag out")
            raise ConfigError(
                f"{name} is outside the run: the steps {done + 1} to {total} are to be done; name some of these"
            )


class Profiler:
    """Writes a trace of the steps of a run. Use as a context manager.

    Every process writes its own, WORKDIR/profile/plugins/profile/steps_START_STOP/HOST_PROCESS.xplane.pb for XProf and
    TensorBoard, and the same as .trace.json.gz for Perfetto. A run that ends before the last step leaves what there is.
    """

    def __init__(self, steps: Steps | None, workdir: Path) -> None:
        self._steps, self._folder = steps, workdir / PROFILE
        self._begun = False

    def begins(self, step: int) -> bool:
        """Whether `step`, which is about to be sent, is the first to be traced."""
        return self._steps is not None and step == self._steps.first

    def ends(self, step: int) -> bool:
        """Whether `step`, which has been sent, is the last one."""
        return self._steps is not None and step == self._steps.last

    def start(self, state: Any) -> None:
        """Begins once `state` is there: what was sent before is no part of the trace."""
        jax.block_until_ready(state)
        self._local = temporary_folder()
        options = jax.profiler.ProfileOptions()
        # Calls of Python functions by the hundred thousand would hide all else.
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(self._local), profiler_options=options)
        self._begun = True

    def stop(self, state: Any) -> None:
        """Ends once `state` is there, and writes the trace."""
        jax.block_until_ready(state)
        self._write()

    def _write(self) -> None:
        self._begun = False
        jax.profiler.stop_trace()
        # JAX names the folder by the time and the files by the host, which several processes may share.
        assert self._steps is not None
        first, last = self._steps.first, self._steps.last
        target = self._folder / "plugins" / "profile" / f"steps_{first}_{last}"
        target.mkdir(parents=True, exist_ok=True)
        for file in self._local.glob("plugins/profile/*/*"):
            for ending in _ENDINGS:
                if file.name.endswith(ending):
                    host = file.name.removesuffix(ending)
                    (target / f"{host}_{jax.process_index()}{ending}").write_bytes(file.read_bytes())
        shutil.rmtree(self._local, ignore_errors=True)
        if jax.process_index() == 0:
            print(f"steps {first} to {last} are traced in {target}", file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            self._write()
