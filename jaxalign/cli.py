"""The command line: `jaxalign VERB ...`."""

import contextlib
import os
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator

from jaxalign import signals
from jaxalign.errors import JaxalignError
from jaxalign.fields import nearest_hint
from jaxalign.streams import unbroken_output
from jaxalign.verbs import RESUMED, VERBS, load_verb
from jaxalign.verbs.requests import WIDTH, summary, synopsis


@unbroken_output()
def main(argv: list[str] | None = None) -> int:
    """Runs a verb and returns the exit code.

    0; 1 for a deliberate error, bad flags among them, or a problem that `audit` found; 2 for no such verb; 75 when
    stopped by a signal; 130 when interrupted with nothing saved. A run that hangs ends itself with 70.
    """
    argv = sys.argv[1:] if argv is None else argv
    verb, rest = (argv[0], argv[1:]) if argv else ("help", [])
    if verb in ("help", "-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if verb not in VERBS:
        print(f"jaxalign: unknown verb {verb!r}{nearest_hint(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        with signals.leaving_at_once(verb) if verb in RESUMED else contextlib.nullcontext():
            return _run(verb, rest)
    except KeyboardInterrupt:
        print(f"jaxalign {verb}: interrupted", file=sys.stderr)
        return 130  # what a shell says of a program that Ctrl-C ended


def usage() -> str:
    """Every verb with the flags that it needs, and what it does."""
    lines = ["usage: jaxalign VERB FLAGS", ""]
    for verb in VERBS:
        request = load_verb(verb)[1]
        indent = " " * 6
        said = textwrap.fill(summary(request), WIDTH, initial_indent=indent, subsequent_indent=indent)
        lines += [f"  {synopsis(verb, request)}", said, ""]
    return "\n".join([*lines, "`jaxalign VERB --help` shows all flags of a verb."])


def _run(verb: str, argv: list[str]) -> int:
    # Imports take seconds, and a signal may come meanwhile.
    import jax

    from jaxalign.storage import DISK_REFUSES
    from jaxalign.training.loop import Stopped

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    module, request = load_verb(verb)
    try:
        asked = request.parse(argv)
        with _no_early_end():
            return module.run(asked)
    except JaxalignError as error:
        print(f"jaxalign {verb}: {error}", file=sys.stderr)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"jaxalign {verb}: out of memory on a device ({str(error).splitlines()[0]}); take shorter rows "
            "(config.data.max_length and row_length) or fewer (config.batch_size), cut batches into slices "
            "(config.num_microbatches), or split the model (config.mesh.fsdp); jaxalign plan says what a step takes",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"jaxalign {verb}: {where}the disk takes no more ({error.strerror}); make room, then run the same command",
            file=sys.stderr,
        )
        return 1
    except Stopped as stopped:
        command = shlex.join(["jaxalign", verb, *argv])
        print(f"jaxalign {verb}: {stopped}; this goes on:\n  {command}", file=sys.stderr)
        return signals.TRY_AGAIN


@contextlib.contextmanager
def _no_early_end() -> Iterator[None]:
    """Makes an error of a sys.exit() in what is called: exit code 0 shall mean that there is a result.

    Raises:
      JaxalignError: names the place.
    """
    try:
        yield
    except SystemExit as error:
        if error.code:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise JaxalignError(
            f"{place.filename}:{place.lineno} ended the program before its end (sys.exit); remove that call, or let "
            "it give an exit code other than 0"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
