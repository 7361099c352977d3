"""What lies in the folder of a run, and how one of its checkpoints is named.

<run>/checkpoints/<position>   whole states; a position counts phases, of which most stages have one a step
<run>/tokenizer/               the tokenizer and the chat template that they were trained with
<run>/model/                   the result: what other stages start from
<run>/summary.json             at the end
<run>/settings.json, metrics.jsonl, events...

RUN is its result, or the latest checkpoint of a run without one; RUN@120 the state after step 120; RUN@best and
RUN@latest are what they say. The path of a checkpoint, RUN/checkpoints/120, names it too.
"""

from typing import Any

from jaxalign.errors import CheckpointError
from jaxalign.storage import Path, read_json, split_place, to_path
from jaxalign.training.step_files import CHECKPOINTS, absolute, find_steps, read_record, saved_metas

MODEL = "model"
TOKENIZER = "tokenizer"
SUMMARY = "summary.json"
TEMPLATE = "chat_template.jinja"
BEST, LATEST = "best", "latest"


def finished(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that has ended, or None: also where an earlier version was cut off while writing it."""
    path = workdir / SUMMARY
    try:
        return read_json(path, ValueError) if path.is_file() else None
    except ValueError:
        return None


def named_checkpoint(place: str) -> tuple[Path, str] | None:
    """The run and the word behind the last @ of "RUN@120", "RUN@best" or "RUN@latest"; None: it is a path."""
    run, which = split_place(place)
    if not which or to_path(place).exists() or not to_path(run).is_dir():
        return None
    return to_path(run), which


def find_checkpoint(run: Path, which: str) -> Path:
    """The folder of a checkpoint of a run: `which` is a step, "best" or "latest".

    Raises:
      CheckpointError: there is none, which lists those there are; or the newest, which says of all, is damaged.
    """
    found = saved_metas(run / CHECKPOINTS)
    newest = max(find_steps(absolute(run / CHECKPOINTS)), default=None)
    if which in (LATEST, BEST) and newest not in (None, *found):
        # Says what is wrong: no other one is the latest.
        read_record(absolute(run / CHECKPOINTS / str(newest)))
    metas = {p: meta for p, meta in found.items() if type(meta.get("step")) is int}
    position = None
    if metas and which == LATEST:
        position = max(metas)
    elif metas and which == BEST:
        position = _best_position(run, metas)
    elif which.isdigit():
        # Of two in one step, after its rollout and before it, the weights are the same: the earlier one.
        position = min((p for p, meta in metas.items() if meta["step"] == int(which)), default=None)
    if position in metas:
        return run / CHECKPOINTS / str(position)
    raise CheckpointError(_refusal(run, which, metas))


def _best_position(run: Path, metas: dict[int, dict[str, Any]]) -> int | None:
    newest = metas[max(metas)]
    selection = newest.get("selection")
    best = selection.get("best") if isinstance(selection, dict) else None
    summary = finished(run)
    if summary and summary.get("steps") == newest["step"]:  # it has counted the evaluation at the end
        best = summary.get("best")
    position = best.get("position") if isinstance(best, dict) else None
    return position if type(position) is int else None


def _refusal(run: Path, which: str, metas: dict[int, dict[str, Any]]) -> str:
    steps = sorted({meta["step"] for meta in metas.values()})
    there = (
        f"those of {run} are of step {', '.join(map(str, steps))}" if steps else f"{run} has no checkpoint"
    )
    if which == BEST:
        return f"no checkpoint is the best: config.best.metric says of what; {there}"
    if which.isdigit():
        return (
            f"no checkpoint of step {which}; {there} (config.checkpoint_every makes them, config.keep_checkpoints and "
            "config.keep_every keep them)"
        )
    if which == LATEST:
        return there
    return f"behind @ stands a step, {BEST} or {LATEST}, not {which!r}; {there}"
