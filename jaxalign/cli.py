"""The command line: `jaxalign VERB ...`."""

import argparse
import os
import sys

USAGE = """usage: jaxalign VERB ...

  quickstart [--workdir=DIR] [--seed=N] [--fast]
      Pretrain, fine-tune and align a small model in a synthetic world, by every method, and report. No download.

  train --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]
      Run one stage. Goes on from the latest checkpoint in DIR. Config files: configs/*.py.

  version
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 1 for a deliberate error, 2 for bad usage, 75 when stopped by a signal."""
    argv = sys.argv[1:] if argv is None else argv
    verb, rest = (argv[0], argv[1:]) if argv else ("help", [])
    verbs = {"quickstart": _quickstart, "train": _train, "version": _version}
    if verb in ("help", "-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if verb not in verbs:
        print(f"jaxalign: unknown verb {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    # Imports take seconds: usage errors should not have to wait for them.
    from jaxalign.errors import JaxalignError
    from jaxalign.training.loop import Stopped

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        verbs[verb](rest)
    except JaxalignError as error:
        print(f"jaxalign {verb}: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"jaxalign {verb}: {stopped}; run the same command to go on", file=sys.stderr)
        return 75  # EX_TEMPFAIL: try again
    return 0


def _quickstart(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign quickstart")
    parser.add_argument("--workdir", default="quickstart", help="folder for everything (default: quickstart)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="a smoke version; its numbers mean nothing")
    args = parser.parse_args(argv)
    from jaxalign.quickstart.pipeline import quickstart

    quickstart(args.workdir, fast=args.fast, seed=args.seed)


def _train(argv: list[str]) -> None:
    from jaxalign.config import parse_flags
    from jaxalign.stages import parse_config, train
    from jaxalign.training.loop import summarize
    from jaxalign.training.progress import print_summary

    values, workdir = parse_flags(argv)
    summary = train(parse_config(values), workdir)
    print_summary(
        [{"metric": name, "value": f"{x:.6g}"} for name, x in summarize(summary).items()],
        title=f"{summary['stage']}: {summary['steps']} steps in {summary['seconds']} s",
    )


def _version(argv: list[str]) -> None:
    import jax

    import jaxalign

    print(
        f"jaxalign {jaxalign.__version__}, jax {jax.__version__}, {jax.default_backend()} x {jax.device_count()}"
    )


if __name__ == "__main__":
    sys.exit(main())
