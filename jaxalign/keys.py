"""Every key of a config as its dataclass declares it: type, default, what it may be, and the words beside it.

What a field means is said once: in `field(doc=...)`, or in the comment above it or behind it, which is read from the
source. A comment between dashes, `# --- Norms ---`, is the title of the fields that follow, and of no field.
"""

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxalign.fields import DOC, Limits, limits_of


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config."""

    path: str  # below config, such as "optimizer.learning_rate"
    kind: str  # its type, in words: "int", "str or list of str", "float or None"
    default: Any  # dataclasses.MISSING where a config must say it
    doc: str  # what it means; "" where nothing stands beside it
    limits: str  # what values it may take; "" for all of its type
    title: str = ""  # of the fields among which it stands

    @property
    def allowed(self) -> str:
        """Type and limits in one phrase: "int, at least 1"; choices say the type."""
        if self.limits.startswith("one of "):
            return self.limits
        return ", ".join(filter(None, (self.kind, self.limits)))


def list_keys(cls: type, path: str = "") -> Iterator[Key]:
    """Yields the keys of dataclass `cls` in their order, and after them those of the dataclasses in it.

    Args:
      path: what its keys begin with, such as "optimizer.".
    """
    hints, said = typing.get_type_hints(cls), comments(cls)
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    for each in dataclasses.fields(cls):
        if each.name in sections:
            continue
        hint = hints[each.name]
        doc, title = said.get(each.name, ("", ""))
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        limits = limits_of(each)
        yield Key(
            path=path + each.name,
            kind=type_words(hint),
            default=default,
            doc=each.metadata.get(DOC) or doc,
            limits=limit_words(limits) if limits else "",
            title=title,
        )
    for each in dataclasses.fields(cls):
        if each.name in sections:
            yield from list_keys(typing.cast(type, sections[each.name]), f"{path}{each.name}.")


def type_words(hint: Any) -> str:
    """A type as a reader of a config file calls it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [type_words(part) for part in typing.get_args(hint)]
        return " or ".join([*(part for part in parts if part != "None"), *(["None"] * ("None" in parts))])
    if hint is types.NoneType:
        return "None"
    if typing.get_origin(hint) in (tuple, list):
        return f"list of {type_words(typing.get_args(hint)[0])}"
    return (typing.get_origin(hint) or hint).__name__


def limit_words(limits: Limits) -> str:
    """The values that limits allow, in words."""
    if limits.choices:
        return f"one of {', '.join(map(str, limits.choices))}"
    bounds = (
        ("above", limits.above),
        ("at least", limits.at_least),
        ("below", limits.below),
        ("at most", limits.at_most),
    )
    return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


@functools.cache
def comments(cls: type) -> dict[str, tuple[str, str]]:
    """What stands beside each field of a class in its source, and the title above it; bases tell what is inherited.

    Empty where the source is not there, as in a package of compiled files.
    """
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        for name, (doc, title) in _own_comments(base).items():
            before = found.get(name, ("", ""))
            # A default of one's own keeps the words of the field that it replaces.
            found[name] = (doc or before[0], title or before[1])
    return found


def _own_comments(cls: type) -> dict[str, tuple[str, str]]:
    try:
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
        body = ast.parse("\n".join(lines)).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return {}
    out: dict[str, tuple[str, str]] = {}
    title, last = "", 0
    for node in getattr(body, "body", []):
        first, end = node.lineno, node.end_lineno
        block: list[str] = []
        for line in lines[last : first - 1]:
            text = line.strip()
            if marked := re.fullmatch(r"# --- (.*) ---", text):
                title, block = marked[1], []
            elif text.startswith("#"):
                block.append(text.lstrip("# "))
            else:
                block = []
        last = end
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = lines[end - 1].encode()[node.end_col_offset :].decode().strip()
            if behind.startswith("#"):
                block.append(behind.lstrip("# "))
            out[node.target.id] = (" ".join(block), title)
    return out
