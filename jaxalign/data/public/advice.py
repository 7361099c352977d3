"""What rows may be that lack the fields of one kind of data: misspelt, or of another kind."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.fields import complete_prompt
from jaxalign.data.invalid import BadRow
from jaxalign.data.kinds import DEMONSTRATIONS, PAIRS, PROMPTS, TEXT, UNPAIRED
from jaxalign.data.public.rows import read_shape
from jaxalign.data.records import parse_record
from jaxalign.fields import nearest

# What each kind is for.
_KINDS = {
    PAIRS: "preference pairs, for DPO, ORPO and reward models",
    UNPAIRED: "completions with labels, for KTO",
    DEMONSTRATIONS: "demonstrations, for supervised fine-tuning",
    TEXT: "plain text, for pretraining",
    PROMPTS: "prompts, for reinforcement learning and for sampling",
}


def advise(bad: BadRow, every: bool, *, kind: str) -> str:
    """What may be done about a row that lacks fields; "" where nothing is known.

    Args:
      every: no row of all can be used. Only then are they taken for texts or prompts, which many rows could be.
    """
    if kind not in _KINDS:  # pairs or demonstrations: what is neither is hardly anything else
        return ""
    missing = re.match(r"missing ([\w, ]+)", bad.problem)
    row = bad.records.raw(bad.index)
    if missing is None or not isinstance(row, Mapping):
        return ""
    for others in ((PAIRS, UNPAIRED, DEMONSTRATIONS), None, (TEXT, PROMPTS) if every else ()):
        # What has the fields of another kind is called so, before it is taken for misspelt.
        if others is None:
            found = _advise_name(bad, row, missing[1].split(", "))
        else:
            other = next((other for other in others if other != kind and _is(row, other)), "")
            found = (
                f"Rows like {bad.where} are {_KINDS[other]}, and this reads {_KINDS[kind]}" if other else ""
            )
        if found:
            return found
    return ""


def _advise_name(bad: BadRow, row: Mapping[str, Any], missing: Sequence[str]) -> str:
    near = {name: nearest(name, [other for other in row if row[other] is not None]) for name in missing}
    typos = ", ".join(f"{theirs!r} meant for {ours}" for ours, theirs in near.items() if theirs)
    return f"{bad.where}: is {typos}? Rename it" if typos else ""


def _is(row: Mapping[str, Any], kind: str) -> bool:
    try:
        parse_record(complete_prompt(read_shape(row, kind), kind), kind)
    except Exception:  # an adapter may meet any value in any field
        return False
    return True
