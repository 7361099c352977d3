"""Which mutants there are: those of cosmic-ray (`pip install cosmic-ray`), less those that say nothing of the tests.

No test could tell a mutated annotation, and any tells a float that is shifted by another. Of each place there is one.
"""

import ast
import dataclasses
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Arithmetic is done with floats, bits are of sets, dictionaries and masks: one in place of the other raises.
ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"))
Span = tuple[tuple[int, int], tuple[int, int]]  # (line, column) of its beginning, and of its end


@dataclasses.dataclass(frozen=True, order=True)
class Mutant:
    """One change of one place of a file."""

    file: str
    line: int
    column: int
    operator: str
    occurrence: int  # the how-many-eth place of the file that this operator may change


def annotations(source: str) -> list[Span]:
    """Where the annotations of a source stand, which are never called."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in "annotation", "returns":
            if (noted := getattr(node, name, None)) is not None:
                found.append(((noted.lineno, noted.col_offset), (noted.end_lineno, noted.end_col_offset)))
    return found


def within(line: int, column: int, spans: Sequence[Span]) -> bool:
    return any(begin <= (line, column) < end for begin, end in spans)


def raises(operator: str) -> bool:
    """Whether arithmetic becomes an operation on bits, or the other way round."""
    kind, *names = operator.removeprefix("core/").split("_")
    return kind == "ReplaceBinaryOperator" and (names[0] in ARITHMETIC) != (names[1] in ARITHMETIC)


def all_mutants(files: Sequence[str]) -> list[Mutant]:
    """The mutants of files, in an order of their own, but for those of annotations and those that always raise."""
    from cosmic_ray.commands.init import init
    from cosmic_ray.work_db import WorkDB, use_db

    with (
        tempfile.TemporaryDirectory() as folder,
        use_db(str(Path(folder) / "session"), WorkDB.Mode.create) as db,
    ):
        init([ROOT / file for file in files], db, {})
        changes = [change for item in db.work_items for change in item.mutations]
    spans = {file: annotations((ROOT / file).read_text(encoding="utf-8")) for file in files}
    found = []
    for change in changes:
        file = change.module_path.relative_to(ROOT).as_posix()
        if not within(*change.start_pos, spans[file]) and not raises(change.operator_name):
            found.append(Mutant(file, *change.start_pos, change.operator_name, change.occurrence))
    return sorted(found)


def drawn(mutants: Sequence[Mutant], count: int, seed: int) -> Iterator[tuple[Mutant, str]]:
    """Mutants of as many places drawn at random, one of each, with its source; of Python, and of another program."""
    places: dict[tuple[str, int, int], list[Mutant]] = {}
    for mutant in mutants:
        places.setdefault((mutant.file, mutant.line, mutant.column), []).append(mutant)
    rng = random.Random(seed)
    for place in rng.sample(list(places), len(places)):
        if count <= 0:
            return
        for mutant in rng.sample(places[place], len(places[place])):
            if source := mutated(mutant):
                count -= 1
                yield mutant, source
                break


def mutated(mutant: Mutant) -> str:
    """The source of a mutant; "" where it is no Python, such as a plus in front of a parameter, or the same program."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    before = (ROOT / mutant.file).read_text(encoding="utf-8")
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    try:
        return "" if meaning(after) == meaning(before) else after
    except SyntaxError:
        return ""


def meaning(source: str) -> str:
    """What a source does when all is right: neither which parameters may be given by name, nor how strict a zip is."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults += [default for default in node.kw_defaults if default]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            node.keywords = []
    return ast.dump(tree)


def first_change(before: str, after: str) -> tuple[str, str]:
    """The first line in which two sources differ, as it was and as it is."""
    lines: Any = zip(before.splitlines(), after.splitlines(), strict=False)
    was, now = next(((a, b) for a, b in lines if a != b), ("", ""))
    return was.strip(), now.strip()
