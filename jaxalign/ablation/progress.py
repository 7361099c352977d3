"""What of a study is done, how long the rest takes, and how its claims stand, for the terminal."""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from jaxalign.ablation.claims import decide
from jaxalign.ablation.effects import arm_name
from jaxalign.ablation.page import duration, shown
from jaxalign.ablation.runs import as_table, parts_of, read_outcomes
from jaxalign.ablation.study import COUNTED, TUNING, Study
from jaxalign.errors import amount


class Progress:
    """Reads a workdir as it fills."""

    def __init__(self, study: Study, workdir: pathlib.Path, only: Sequence[str]) -> None:
        self._study, self._workdir, self._only = study, workdir, only
        self._began = time.monotonic()
        self._at_first = len(self._read())

    def _read(self) -> list[dict[str, Any]]:
        return [x for part in (TUNING, COUNTED) for x in read_outcomes(self._workdir, part)]

    def table(self) -> Group:
        """How it stands now."""
        every = self._read()
        outcomes = [x for x in every if x["part"] == COUNTED]
        arms = [arm_name(arm) for arm in self._study.trials(self._only)]
        per_arm = sum(len(part.seeds) * max(1, len(part.trials)) for part in parts_of(self._study))
        total = len(arms) * per_arm
        done = [x for x in every if arm_name(x["arm"]) in arms]
        counts = Table(show_edge=False, title=f"{self._study.title}: {len(done)} of {amount(total, 'run')}")
        counts.add_column("arm")
        counts.add_column("runs", justify="right")
        counts.add_column("seconds a run", justify="right")
        for arm in arms:
            own = [x["seconds"] for x in done if arm_name(x["arm"]) == arm]
            counts.add_row(arm, f"{len(own)}/{per_arm}", f"{sum(own) / len(own):.1f}" if own else "")
        new = len(every) - self._at_first
        passed = time.monotonic() - self._began
        left = total - len(done)
        if left and new:
            counts.caption = f"about {duration(passed / new * left)} to go"
        claims = Table(show_edge=False)
        for column in ("claim", "effect", "seeds", "verdict"):
            claims.add_column(column)
        for each in decide(self._study.claims, as_table(outcomes), self._study.seeds):
            claims.add_row(each.claim.name, shown(each), str(len(each.per_seed)), each.verdict)
        return Group(counts, claims) if self._study.claims else Group(counts)


def print_table(progress: Progress, console: Console) -> None:
    """Prints it once, as where no terminal can show it live."""
    console.print(progress.table())
