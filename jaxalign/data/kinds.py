"""The kinds of data that a stage may ask for, by the names that `parse_record` knows them under."""

import difflib

from jaxalign.errors import ConfigError

TEXT = "text"  # documents: all of a row is learned
DEMONSTRATIONS = "sft"  # completions of prompts and assistants' turns; text may be mixed in
PAIRS = "preference"  # two or more responses of one prompt, and which is better
PAIRS_OR_DEMONSTRATIONS = "preference or sft"
UNPAIRED = "unpaired"  # one completion of a prompt, and whether it is desirable
PROMPTS = "prompt"  # what the model itself will answer

KINDS = (TEXT, DEMONSTRATIONS, PAIRS, PAIRS_OR_DEMONSTRATIONS, UNPAIRED, PROMPTS)


def check_kind(kind: str, where: str) -> None:
    """Raises ConfigError, naming the nearest, unless `kind` is one of these."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1, 0.0)[0]
        raise ConfigError(
            f"{where}={kind!r} is no kind of data; did you mean {near!r}? All: {', '.join(KINDS)}"
        )
