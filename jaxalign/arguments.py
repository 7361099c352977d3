"""The argument of a config file, `--config=FILE:ARG`, read as the parameters of its function.

    @config_argument
    def get_config(model: Preset = "", root: str = "runs", full: bool = False) -> ConfigDict: ...

`:llama3_1_8b,full`, `:my/folder` and `:root=folder,full=True` are arguments of this file. Parts stand between commas. A
part is `name=value`; the name of a bool, which makes it True; for a `Preset`, one of its words; or else the value of
the next parameter that has none. Every such file also takes `smoke`, see `jaxalign.scale.smoke`.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxalign.errors import UsageError
from jaxalign.fields import nearest
from jaxalign.models.presets import PRESETS
from jaxalign.scale import smoke

SMOKE = "smoke"


class Preset(str):
    """A published model by its name in models/presets.py."""


def config_argument(function: Callable[..., ConfigDict]) -> "ConfigFunction":
    """Makes a `get_config` that takes its parameters in one string, typed by their annotations."""
    made = ConfigFunction(function, inspect.signature(function, eval_str=True).parameters)
    functools.update_wrapper(made, function)
    return made


@dataclasses.dataclass
class ConfigFunction:
    """A `get_config` whose argument is parsed: `f("my/folder,smoke")` is `f(root="my/folder", smoke=True)`."""

    function: Callable[..., ConfigDict]
    parameters: Any  # by name, as `inspect.signature` has them

    def __call__(self, arg: str = "", **given: Any) -> ConfigDict:
        given = self.parse(arg, have=tuple(given)) | given
        small = given.pop(SMOKE, False)
        config = self.function(**given)
        return smoke(config) if small else config

    def parse(self, arg: str, have: Sequence[str] = ()) -> dict[str, Any]:
        """The parameters that `arg` gives, by name; those that it need not give are in `have`.

        Raises:
          UsageError: a part that is no word, name or value here (with the nearest), is given twice, or is missing.
        """
        preset = self._named(Preset)
        free = [name for name in self.parameters if name != preset and self._kind(name) is not bool]
        given: dict[str, Any] = {}
        for part in arg.split(",") if arg else []:
            key, equals, text = part.partition("=")
            if equals and key.isidentifier():
                name, value = self._known(key), text
            elif part == SMOKE or (part in self.parameters and self._kind(part) is bool):
                name, value = part, "True"
            elif preset and part in PRESETS:
                name, value = preset, part
            else:
                # What may be a misspelt model is a folder only if it looks or exists like one.
                left = [name for name in free if name not in given]
                if not left or (preset and not (os.sep in part or os.path.isdir(part))):
                    raise UsageError(self._refusal(part))
                name, value = left[0], part
            if name in given:
                raise UsageError(f"{part!r} is the second value of {name}; this argument is {self.usage()}")
            given[name] = self._typed(name, value)
        empty = inspect.Parameter.empty
        missing = [
            name
            for name, each in self.parameters.items()
            if each.default is empty and name not in (*given, *have)
        ]
        if missing:
            raise UsageError(
                f"{' and '.join(missing)} must be given after ':'; this argument is {self.usage()}"
            )
        return given

    def usage(self) -> str:
        """The argument in short: `STAGE,MODEL[,full][,smoke]`."""
        parts = []
        for name, each in self.parameters.items():
            word = name if self._kind(name) is bool else name.upper()
            parts.append(word if each.default is inspect.Parameter.empty else f"[{word}]")
        return ",".join([*parts, f"[{SMOKE}]"])

    def _kind(self, name: str) -> type:
        """The type of a parameter: its annotation, or else that of its default."""
        each = self.parameters.get(name)
        if each is None:
            return bool  # smoke
        if each.annotation is not inspect.Parameter.empty:
            return each.annotation
        return str if each.default is inspect.Parameter.empty else type(each.default)

    def _named(self, kind: type) -> str | None:
        return next((name for name in self.parameters if self._kind(name) is kind), None)

    def _known(self, key: str) -> str:
        known = [*self.parameters, SMOKE]
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near!r}?" if near else f"the names here are {', '.join(known)}"
            raise UsageError(f"{key!r} is no name in this argument, which is {self.usage()}; {hint}")
        return key

    def _typed(self, name: str, text: str) -> Any:
        kind = self._kind(name)
        if kind is Preset and text not in ("", *PRESETS):
            raise UsageError(self._refusal(text))
        if kind is bool:
            if text not in ("True", "False"):
                raise UsageError(f"{name}={text!r} must be True or False, or only {name}")
            return text == "True"
        try:
            return kind(text)
        except ValueError:
            raise UsageError(f"{name}={text!r} must be of type {kind.__name__}") from None

    def _refusal(self, part: str) -> str:
        words = [name for name in (*self.parameters, SMOKE) if self._kind(name) is bool]
        if self._named(Preset) is None:
            near = nearest(part, words)
            hint = f"; did you mean {near!r}?" if near else ""
            return f"{part!r} is one part too many; this argument is {self.usage()}{hint}"
        near = nearest(part, [*PRESETS, *words])
        hint = f"did you mean {near!r}?" if near else f"models are {', '.join(PRESETS)}"
        free = any(self._kind(name) not in (bool, Preset) for name in self.parameters)
        return (
            f"{part!r} is {'neither a' if free else 'no'} model of jaxalign/models/presets.py"
            f"{' nor a folder' if free else ''}; {hint} A model of your own is named by config.model.init_from alone, "
            "whatever its size"
        )
