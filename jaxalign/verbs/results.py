"""What a run says at its end: its last evaluation as a table, where the model lies, and what to do with it."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.kinds import PROMPTS, TEXT
from jaxalign.training.config import Config
from jaxalign.training.workdir import MODEL

# Measured of the run's speed, which is no result.
_SPEED = "perf/"


def result_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table: each metric of the last evaluation over all sets, and of each set in a column of its own.

    Of a run without an evaluation, the metrics of its last log line.
    """
    sets: Sequence[str] = summary.get("eval_sets", ())
    values = summary["eval"] or {k: v for k, v in summary["train"].items() if not k.startswith(_SPEED)}
    head = "evaluation" if summary["eval"] else "training, last line"
    rows: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        part, _, rest = name.partition("/")
        apart = part in sets
        row = rows.setdefault(rest if apart else name, {})
        row[part if apart else head] = float(value)
    return [{"metric": name} | row for name, row in rows.items()]


def next_steps(config: Config, workdir: str) -> list[str]:
    """Three commands for what people do next with a model: as its stage says, and as its kind allows."""
    stage, options = config.stage, config.options
    run = workdir.rstrip("/")
    beside = run.rpartition("/")[0] or "."
    own = [command.format(run=shlex.quote(run), beside=shlex.quote(beside)) for command in stage.afterwards]
    convert = shlex.join(["jaxalign", "convert", f"--from={run}", f"--out={run}-hf", "--to=hf"])
    if stage.scalar:
        return [*own, convert]
    chat = ["jaxalign", "chat", f"--model={run}", *(["--plain"] if stage.data == TEXT else [])]
    function = next(iter(getattr(options, "functions", ())), "FILE.py:FUNCTION")
    prompts = config.data.eval if stage.data == PROMPTS and isinstance(config.data.eval, str) else ""
    prompts = prompts if prompts and "," not in prompts else "PROMPTS.jsonl"
    evaluate = ["jaxalign", "evaluate", f"--model={run}", f"--prompts={prompts}", f"--reward={function}"]
    return [shlex.join(chat), *(own or [shlex.join(evaluate)]), convert]


def closing_lines(config: Config, workdir: str) -> list[str]:
    """Where everything lies, and `next_steps`."""
    run = workdir.rstrip("/")
    return [
        f"The model is {run}/{MODEL}; beside it lie checkpoints, metrics.jsonl and TensorBoard's files "
        f"(tensorboard --logdir={shlex.quote(run)}).",
        "What to do next:",
        *(f"  {command}" for command in next_steps(config, workdir)),
    ]
