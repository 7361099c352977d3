"""`jaxalign quickstart`: seven stages in a synthetic world, and a report."""

import dataclasses

from jaxalign.verbs.requests import Request, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartRequest(Request):
    """Pretrain, fine-tune and align a small model in a synthetic world, by six methods. No download.

    Goes on where it was stopped.

        jaxalign quickstart --workdir=quickstart
    """

    workdir: str = flag(
        "folder for everything (default: quickstart, or quickstart-fast with --fast)", default="", show="DIR"
    )
    seed: int = flag(
        "of the world, the data, the weights and the sampling", default=0, at_least=0, below=2**32
    )
    fast: bool = flag("a smoke version; its numbers mean nothing", default=False)


def run(request: QuickstartRequest) -> int:
    """Runs what is missing in the workdir."""
    import jax

    from jaxalign.quickstart.pipeline import quickstart

    if request.fast:  # which would otherwise spend most of its minute on compiling well what runs briefly
        jax.config.update("jax_disable_most_optimizations", True)
    workdir = request.workdir or ("quickstart-fast" if request.fast else "quickstart")
    quickstart(workdir, fast=request.fast, seed=request.seed)
    return 0
