"""Command lines: flags of every verb, and settings of a config with the argument of its file."""

import dataclasses
from pathlib import Path

from tests.faults.fuzz.cases import NUMBERS, STRANGE_TEXTS, WORDS, Random, Surface, any_value, chance

_CONFIGS = (
    "sft",
    "dpo",
    "ppo",
    "reward",
    "pretrain",
    "grpo",
    "kto",
    "orpo",
    "dpo:llama3_1_8b",
    "sft:smoke",
    "nothing",
    "",
    "sft:",
)
_keys: dict[str, list[str]] = {}
_flags: dict[str, list[str]] = {}


def prepare() -> None:
    from jaxalign.sections import flat_keys
    from jaxalign.stages import NAMES, default_config
    from jaxalign.verbs import VERBS, load_verb

    for name in NAMES:
        _keys[name] = flat_keys(default_config(name))
    for verb in VERBS:
        request = load_verb(verb)[1]
        _flags[verb] = [request.key(each.name) for each in dataclasses.fields(request)]


def _value(rng: Random) -> str:
    kind = rng.randrange(4)
    value = (rng.choice(WORDS), rng.choice(STRANGE_TEXTS), rng.choice(NUMBERS), any_value(rng))[kind]
    # A config file is a program that its user names: one of the machine's own is no case.
    return str(value).replace("\0", "").replace("/etc/passwd", "/nowhere/config.py")


def _misspelt(rng: Random, word: str) -> str:
    at = rng.randrange(len(word) + 1)
    return rng.choice(
        (word, word, word, word[:at] + word[at + 1 :], word[:at] + "_" + word[at:], word.upper())
    )


def write(rng: Random, folder: Path) -> tuple[str, list[str]]:
    verb = rng.choice(list(_flags))
    argv = []
    for flag in rng.sample(_flags[verb], min(len(_flags[verb]), rng.randrange(4))):
        argv.append(
            _misspelt(rng, flag) + (rng.choice(("=", " ", "")) + _value(rng) if chance(rng, 0.8) else "")
        )
    config = rng.choice(_CONFIGS)
    if chance(rng, 0.5):
        argv.append(f"--config={config}{':' + _value(rng) if chance(rng, 0.05) else ''}")
    keys = _keys.get(config.partition(":")[0], _keys["sft"])
    for _ in range(rng.randrange(3)):
        equals = rng.choice(("=", "=", "=", " ", ""))
        argv.append(f"--config.{_misspelt(rng, rng.choice(keys))}{equals}{_value(rng)}")
    if chance(rng, 0.1):
        argv.append(_value(rng))
    return verb, argv


def read(given: tuple[str, list[str]]) -> None:
    import contextlib
    import io

    from jaxalign.stages import parse_config
    from jaxalign.verbs import load_verb

    verb, argv = given
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        request = load_verb(verb)[1].parse(argv)
        if hasattr(request, "read"):
            parse_config(request.read())


SURFACE = Surface(6, write, read, prepare)
