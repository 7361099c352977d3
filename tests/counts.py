"""How simple the structure is, in numbers: python -m tests.counts"""

import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The helpers of the tests in tests/data stand beside its own conftest.py.
sys.path[:0] = [str(ROOT / "tests/data"), str(ROOT / "tests")]
PACKAGE = ROOT / "jaxalign"
MISSING = "not there yet"
KTO = {
    "jaxalign/stages/kto.py": "the declaration",
    "jaxalign/losses/kto.py": "the formula",
    "configs/kto.py": "the recipe",
    "jaxalign/stages/__init__.py": "its name among the stages",
    "jaxalign/losses/__init__.py": "its formula among the losses",
}
# Single completions with a label are a kind of data of their own, which any loss on them shares.
UNPAIRED = {
    "jaxalign/data/kinds.py": "its name",
    "jaxalign/data/records.py": "the record",
    "jaxalign/data/encode.py": "its tokens, and the mismatched sequence",
    "jaxalign/data/items.py": "what an item of it holds",
    "jaxalign/data/batch.py": "the arrays",
    "jaxalign/data/packing.py": "its columns",
    "jaxalign/data/dataset.py": "completions are mismatched once all are read",
    "jaxalign/data/report.py": "its counts",
    "jaxalign/data/__init__.py": "its batch among the batches",
    "jaxalign/data/public/recipes.py": "public datasets that can serve it",
    "jaxalign/verbs/audit_page.py": "how audit shows it",
}


def lines(path: str) -> int | None:
    """The lines of a file; None if it is not there."""
    file = ROOT / path
    return len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else None


def count_stage_names() -> str:
    """Places outside of stages/, configs/, quickstart/ and tests that name a stage; formulas apart."""
    from structure import stage_names

    formulas = sum(
        len(re.findall(r"config\.(?:dpo|kto|ppo|orpo|grpo)\b", file.read_text(encoding="utf-8")))
        for file in (PACKAGE / "losses").glob("*.py")
    )
    return f"{len(stage_names())} (and {formulas} keys of configs in errors of losses/)"


def count_example() -> str:
    """Lines of the stage outside of jaxalign that a test trains: the longest text in the test's file with a Stage."""
    file = ROOT / "tests/stages/test_out_of_tree.py"
    if not file.is_file():
        return MISSING
    texts = [
        node.value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"^STAGE = (jaxalign\.)?Stage\(", node.value, re.M)
    ]
    return str(max(len(text.strip().splitlines()) for text in texts)) if texts else MISSING


def count_stage_files() -> str:
    """Lines of each declaration."""
    files = [file for file in sorted((PACKAGE / "stages").glob("*.py")) if file.stem != "__init__"]
    return ", ".join(f"{file.stem} {lines(str(file.relative_to(ROOT)))}" for file in files)


def count_kto() -> str:
    """Files that KTO needs, and those that its kind of data needs."""
    absent = [name for name in (*KTO, *UNPAIRED) if lines(name) is None]
    return f"{len(KTO)}, and {len(UNPAIRED)} for unpaired data" + (
        f" ({', '.join(absent)}: {MISSING})" if absent else ""
    )


def count_code(path: str) -> int:
    """Lines of code: without blank lines, comments and docstrings."""
    text = (ROOT / path).read_text(encoding="utf-8")
    apart: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            apart |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    rows = enumerate(text.splitlines(), 1)
    return sum(bool(row.strip()) and not row.strip().startswith("#") and n not in apart for n, row in rows)


def count_record() -> tuple[str, str]:
    """Functions and forms between a row of a file and a packed row."""
    from conftest import corpus
    from count_forms import count_forms

    from jaxalign.text.tokenizer import train_sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_sentencepiece(corpus(), Path(folder) / "small.model", 360)
        forms, functions = count_forms(Path(folder), tokenizer)
    return str(len(functions)), f"{len(forms)} ({', '.join(forms)})"


def count_update() -> str:
    """Functions of jaxalign that tracing one DPO step enters, and those among them that are not the model."""
    import jax
    import jax.numpy as jnp

    from jaxalign import parallel
    from jaxalign.data.dataset import abstract_batch
    from jaxalign.models import init_params
    from jaxalign.stages import default_config, dpo, parse_config
    from jaxalign.training.optimizer import make_optimizer
    from jaxalign.training.state import init_train_state

    values = default_config("dpo")
    sizes = {
        "vocab_size": 61,
        "num_layers": 1,
        "embed_dim": 8,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
    }
    values.model.update(sizes | {"mlp_dim": 16, "init_from": ""})
    values.data.update({"train": "none", "max_length": 8, "row_length": 16})
    values.update({"num_steps": 2, "batch_size": 2})
    config = parse_config(values)
    model = config.model.architecture(0, "cpu")
    entered: dict[str, None] = {}

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)) and "<" not in code.co_name:
            entered[f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_qualname}"] = None

    with parallel.use_mesh(parallel.make_mesh(devices=jax.devices()[:1])):
        params = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
        optimizer = make_optimizer(config.optimizer, 2)
        state = jax.eval_shape(lambda params: init_train_state(params, optimizer), params)
        batch = abstract_batch(dpo.STAGE.data, config.data, 2, jax.ShapeDtypeStruct)
        step = dpo.STAGE.step(config, model)
        sys.setprofile(note)
        try:
            jax.eval_shape(step, state, batch, {"reference": params})
        finally:
            sys.setprofile(None)
    assert jnp.issubdtype(state.step.dtype, jnp.integer)
    outside = [name for name in entered if not name.startswith(("models/", "parallel/"))]
    return f"{len(outside)} ({len(entered)} with those of models/ and parallel/)"


def count_type_errors() -> str:
    """What pyright finds."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    if importlib.util.find_spec("pyright") is None:
        return "pyright is not installed"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return str(json.loads(done.stdout)["summary"]["errorCount"])


def count_by_hand() -> str:
    """Lines of the loop with DPO in the page about the library."""
    page = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    loop = re.search(r"^## DPO by hand$.*?^```python\n(.*?)^```$", page, re.M | re.S)
    return str(sum(bool(row.strip()) for row in loop[1].splitlines())) if loop else MISSING


def measured(count: Callable[[], str]) -> str:
    """A count, or why there is none."""
    try:
        return count()
    except ImportError as error:
        return f"{MISSING} ({error})"


def rows() -> list[tuple[str, str, str, str]]:
    """(what is counted, before, target, measured) of every row."""
    from jaxalign.losses import dpo_loss

    functions, forms = count_record()
    on_policy = sum(count_code(f"jaxalign/stages/{name}.py") for name in ("grpo", "rloo"))
    package = sum(lines(str(file.relative_to(ROOT))) or 0 for file in PACKAGE.rglob("*.py"))
    return [
        ("places that name a stage", "20+", "0", measured(count_stage_names)),
        ("lines of a stage outside of jaxalign", "impossible", "40", measured(count_example)),
        ("lines of stage files", "dpo 128, ppo 790", "100, ppo 300", count_stage_files()),
        ("files that KTO needs", "13", "6", count_kto()),
        ("lines of code of GRPO and RLOO", "500", "150", str(on_policy)),
        ("functions from a row to a packed row", "35", "20", functions),
        ("functions from a batch to the new state", "36", "20", measured(count_update)),
        ("forms of one record", "8", "5", forms),
        ("parameters of dpo_loss", "14", "8", str(len(inspect.signature(dpo_loss).parameters))),
        ("lines of jaxalign/", "18,828", "17,000", f"{package:,}"),
        ("type errors", "252 (mypy)", "0", measured(count_type_errors)),
        ("lines of a DPO loop by hand", "36", "25", measured(count_by_hand)),
    ]


def main() -> None:
    """Prints the table."""
    print("| row | before | target | measured |\n|---|---|---|---|")
    for row in rows():
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
