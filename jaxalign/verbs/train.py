"""`jaxalign train`: one stage, from its config to its result."""

import dataclasses

from jaxalign.verbs.requests import ConfigRequest, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRequest(ConfigRequest):
    """Run one stage. Goes on from the latest checkpoint in the workdir.

    A config is the path of a file, or the name of one that comes with jaxalign, such as dpo, and after a colon what its
    get_config takes: dpo:llama3_1_8b for a published model, dpo:smoke for a run of a minute. Flags change single keys:

        jaxalign train --config=dpo --workdir=runs/dpo --config.dpo.beta=0.2

    On several hosts, run the same on each: SLURM and TPU hosts find each other; on others set
    JAXALIGN_COORDINATOR=HOST:PORT (of process 0), JAXALIGN_NUM_PROCESSES=N and JAXALIGN_PROCESS_ID=0..N-1.
    """

    workdir: str = flag(
        "the folder for checkpoints, metrics and the final model",
        default="",
        show="DIR",
        unless="print_config dry_run",
    )
    dry_run: bool = flag(
        "say what the run would be, its length, its memory on these devices and its first batch token by token, and "
        "write nothing",
        default=False,
    )
    profile: str = flag(
        "trace these steps, both included, into DIR/profile, for XProf and Perfetto: see docs/profiling.md",
        default="",
        show="START:STOP",
    )
    debug_nans: bool = flag(
        "look at every result, and name the first operation that gives a NaN, and its module; slow",
        default=False,
    )
    print_config: bool = flag(
        "print the whole config as a config file, with what each key means, and start nothing", default=False
    )


def run(request: TrainRequest) -> int:
    """Trains, or prints the config; the first process prints a summary."""
    import jax

    from jaxalign.parallel import processes
    from jaxalign.stages import parse_config, train
    from jaxalign.training.profile import Steps
    from jaxalign.training.progress import print_summary
    from jaxalign.verbs.config_text import config_file
    from jaxalign.verbs.results import closing_lines, result_rows

    if request.profile:
        Steps.parse(request.profile)  # before all that takes a while
    config = parse_config(request.read())
    if request.print_config:
        print(config_file(config, request.config, request.settings), end="")
        return 0
    processes.initialize()
    if request.dry_run:
        from jaxalign.verbs.dry_run import print_dry_run

        print_dry_run(config, request.workdir)
        return 0
    summary = train(config, request.workdir, profile=request.profile, debug_nans=request.debug_nans)
    if jax.process_index() == 0:
        title = f"{summary['stage']}: {summary['steps']} steps in {summary['seconds']} s"
        print_summary(result_rows(summary), title=title)
        for line in closing_lines(config, request.workdir):
            print(line)
    return 0
