"""What the source says of its own structure: where stages are named, and which room imports which."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxalign"
STAGES = ("pretrain", "sft", "reward", "ppo", "dpo", "orpo", "kto", "grpo", "rloo", "distill")
# Formulas bear the names of the papers, as stages do; their errors name the key that the stage of that name has.
MAY_NAME_STAGES = ("stages", "quickstart", "losses")
OTHER_MEANINGS = {
    ("ablation/language.py", "pretrain"): "the run that arms begin with",
    ("ablation/language.py", "sft"): "a file of demonstrations, and the run that is the reference by default",
    ("ablation/optimisation.py", "sft"): "the run that a policy begins with",
    ("ablation/optimisation.py", "reward"): "the run of the reward model",
    ("ablation/preferences.py", "reward"): "a stage of the quickstart's config",
    ("ablation/preferences.py", "sft"): "a stage of the quickstart's config, and its run",
    ("data/kinds.py", "sft"): "a kind of data",
    ("models/hf/config.py", "reward"): "the label that transformers gives a score",
    ("rl/programs.py", "reward"): "a frozen model, by what it gives",
    ("tokens.py", "ppo"): "a loss of single tokens, by its name in the Tinker API",
    ("training/selection.py", "reward"): "the last word of a metric's name",
    ("verbs/evaluate.py", "reward"): "the number that a reward function gives",
    ("worlds/dataset.py", "sft"): "a file of demonstrations",
}

# From the top down; a room imports from those below it. data/public is part of data.
ROOMS = (
    *(
        "__main__",
        "cli",
        "session",
        "objectives",
        "library",
        "verbs",
        "ablation",
        "quickstart",
        "worlds",
        "plan",
    ),
    *("stages", "rl", "training", "evaluation", "sampling", "rewards", "tokens", "losses", "data", "text"),
    *("arguments", "scale"),
    *("models.hf", "models", "parallel"),
    # The ground floor.
    *(
        "config",
        "sections",
        "config_files",
        "peer_names",
        "keys",
        "hub",
        "checksums",
        "storage",
        "locks",
        "signals",
        "compilation_cache",
        "streams",
        "host_memory",
        "drawing",
        "cache_folder",
        "imports",
        "fields",
        "strict_json",
        "errors",
    ),
)


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every file of jaxalign, by its path in the package, parsed."""
    for file in sorted(PACKAGE.rglob("*.py")):
        yield str(file.relative_to(PACKAGE)), ast.parse(file.read_text(encoding="utf-8"))


def stage_names(stages: tuple[str, ...] = STAGES) -> list[str]:
    """`file:line: text` of the code that names a stage where none should: a string, a key or an import.

    Docstrings may give examples.
    """
    key = re.compile(rf"\bconfig\.({'|'.join(stages)})\b")
    found = []
    for file, tree in sources():
        if file.split("/")[0] in MAY_NAME_STAGES:
            continue
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                named = node.value in stages and (file, node.value) not in OTHER_MEANINGS
                text = node.value if named or key.search(node.value) else ""
            elif isinstance(node, ast.Attribute) and key.fullmatch(ast.unparse(node)):
                text = ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported = [f"{node.module}.{name.name}" for name in node.names]
                text = next(
                    (x for x in imported for s in stages if f"{x}.".startswith(f"jaxalign.stages.{s}.")), ""
                )
            if text:
                found.append(f"{file}:{node.lineno}: {text}")
    return found


def room_of(module: str) -> str:
    """The room of a module such as "jaxalign.data.batch"; "" for jaxalign itself."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:2] == ["models", "hf"] else 1])


def imports() -> set[tuple[str, str, str]]:
    """(file, its room, the room that it imports from); not those of jaxalign/__init__.py, the face of all."""
    found = set()
    for file, tree in sources():
        if file == "__init__.py":
            continue
        room = room_of("jaxalign." + file.removesuffix(".py").replace("/", "."))
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxalign":
                modules = [f"{node.module}.{name.name}" for name in node.names]
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names if name.name.startswith("jaxalign.")]
            found |= {(file, room, room_of(module)) for module in modules}
    return {(file, room, other) for file, room, other in found if other != room and not other.startswith("_")}
