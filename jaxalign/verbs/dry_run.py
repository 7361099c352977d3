"""`jaxalign train --dry-run`: what a run would be, without a weight loaded or a file written."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign import parallel
from jaxalign.data.items import Item
from jaxalign.parallel.chips import GIB
from jaxalign.streams import shown
from jaxalign.training.config import Config
from jaxalign.training.introduction import introduce
from jaxalign.training.memory import estimate_memory
from jaxalign.training.open import Run, open_run
from jaxalign.verbs.audit_page import show_tokens

NOWHERE = "no-such-workdir"
SHOWN = 3  # sequences of the first batch


def print_dry_run(config: Config, workdir: str, console: Console | None = None) -> None:
    """Opens all that a run would open, data too, and says what it found.

    Args:
      workdir: of the run, for what one there has found; "": it begins.

    Raises:
      ConfigError, DataError, CheckpointError: as at the beginning of training.
    """
    console = console or Console()
    mesh = parallel.make_mesh(config.mesh, jax.devices())
    with parallel.use_mesh(mesh, parallel.parse_rules(config.mesh.rules)):
        run = open_run(config, pathlib.Path(workdir or NOWHERE))
        stage = run.config.stage
        stage.check(run)
        lines = introduce(run, 0, scalar=stage.scalar)
        memory = measure_memory(run)
        batch = next(run.loader())
    if jax.process_index():
        return
    for line in lines:
        console.print(shown(line), markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{_held_out(run)}", highlight=False, soft_wrap=True)
    console.print(_memory_table(memory, device_memory()))
    console.print(f"\nthe first batch, {len(batch.tokens)} rows; ⟦ ⟧ is learned:", highlight=False)
    for line in batch_lines(run, batch):
        console.print(line, soft_wrap=True)
    console.print("\ndry run: nothing was written", highlight=False)


def measure_memory(run: Run) -> dict[str, dict[str, float]]:
    """Estimated bytes of one device, by program and by what holds them."""
    return {
        step.name: estimate_memory(step, run.model, run.config, run.mesh)
        for step in run.config.stage.programs(run)
    }


def device_memory() -> tuple[str, float]:
    """What one device is called, and its memory in bytes; that of the machine on a CPU, whose devices share it."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    if limit:
        return device.device_kind, float(limit)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "this machine", machine / len(jax.local_devices())


def batch_lines(run: Run, batch: Any) -> list[Text]:
    """The first sequences of a batch, decoded, with where they come from."""
    rows = run.train.rows
    lines, count = [], 0
    numbers = np.asarray(batch.rows).reshape(len(batch.tokens), -1)
    for b in range(len(batch.tokens)):
        for segment in range(1, int(batch.segment_ids[b].max()) + 1):
            count += 1
            if count > SHOWN:
                continue
            slots = batch.segment_ids[b] == segment
            mask = batch.loss_mask[b][slots] if hasattr(batch, "loss_mask") else np.zeros(slots.sum())
            example = Item(batch.tokens[b][slots], mask)
            lines.append(Text(shown(f"\n{run.train.where(int(numbers[b, segment - 1]))}"), style="dim"))
            lines.append(Text(f"({len(example.ids)} tokens) ") + show_tokens(example, run.tokenizer))
    if count > SHOWN:
        lines.append(Text(f"\nand {count - SHOWN} more sequences of the {len(rows.items):,} of the data"))
    return lines


def _held_out(run: Run) -> str:
    if run.held_out is None:
        return "no held-out data: nothing is evaluated (config.data.eval=FILE, or config.data.eval_fraction=0.02)"
    every = run.config.eval_every
    when = f"every {every} steps and at the end" if every else "at the end"
    return f"held-out data: {run.held_out.report}; evaluated {when}"


def _memory_table(memory: dict[str, dict[str, float]], limit: tuple[str, float]) -> Table:
    table = Table(show_edge=False)
    table.add_column("GiB of a device, estimated")
    for name in memory:
        table.add_column(name, justify="right")
    for kind in dict.fromkeys(kind for held in memory.values() for kind in held):
        if any(held[kind] for held in memory.values()):
            table.add_row(kind, *(f"{held[kind] / GIB:.2f}" for held in memory.values()))
    totals = {name: sum(held.values()) for name, held in memory.items()}
    table.add_row("total", *(f"{total / GIB:.2f}" for total in totals.values()))
    name, size = limit
    fits = ["fits" if total <= size else "DOES NOT FIT" for total in totals.values()]
    table.add_row(f"of {size / GIB:.4g} GiB ({name})", *fits)
    return table
