"""The command line: `jaxalign VERB ...`."""

import contextlib
import os
import pathlib
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator

from jaxalign import signals
from jaxalign.compilation_cache import cache_variables
from jaxalign.errors import JaxalignError, UsageError
from jaxalign.fields import nearest_hint
from jaxalign.host_memory import restart_with_huge_pages
from jaxalign.streams import shown, unbroken_output
from jaxalign.verbs import RESUMED, VERBS, load_verb
from jaxalign.verbs.requests import WIDTH, summary
from jaxalign.verbs.version import versions

INTERRUPTED = 130  # what a shell says of a program that Ctrl-C ended


def command() -> int:
    """`main`, as the program that a shell starts."""
    restart_with_huge_pages()
    return main()


@unbroken_output()
def main(argv: list[str] | None = None) -> int:
    """Runs a verb and returns the exit code.

    0; 1 for a deliberate error, or a problem that `audit` found; 2 for a command that cannot be understood: no such
    verb, flag or key; 75 when stopped by a signal; 130 when interrupted with nothing saved. A run that hangs ends
    itself with 70.
    """
    argv = sys.argv[1:] if argv is None else argv
    verb, rest = (argv[0], argv[1:]) if argv else ("help", [])
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help"]
    if verb in ("help", "-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if verb == "--version":
        print(versions())
        return 0
    if verb not in VERBS:
        hint = nearest_hint(verb, VERBS)
        print(f"jaxalign: there is no verb {verb!r}{hint}\n`jaxalign --help` lists all", file=sys.stderr)
        return 2
    try:
        with signals.leaving_at_once(verb) if verb in RESUMED else contextlib.nullcontext():
            return _run(verb, rest)
    except KeyboardInterrupt:
        print(f"jaxalign {verb}: interrupted", file=sys.stderr)
        if verb in RESUMED:
            _leave_writers()
        return INTERRUPTED


def _leave_writers() -> None:
    """Ends the process where Python would first wait for a checkpoint; that is going to be whole, or not there."""
    from jaxalign.training.checkpoint import is_writing

    if is_writing():
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(INTERRUPTED)


def usage() -> str:
    """Every verb, and what it does in a sentence."""
    width = max(map(len, VERBS)) + 4
    lines = ["usage: jaxalign VERB FLAGS", ""]
    for verb in VERBS:
        sentence = summary(load_verb(verb)[1]).split(". ")[0].rstrip(".")
        first, *rest = textwrap.wrap(sentence, WIDTH - width)
        lines += [f"  {verb:<{width - 2}}{first}", *(" " * width + line for line in rest)]
    more = "`jaxalign VERB --help` shows the flags of a verb and an example, `jaxalign --version` what is installed."
    return "\n".join([*lines, "", more])


def _run(verb: str, argv: list[str]) -> int:
    # Read when the compiler is loaded: without, it tells of itself.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _quiet_libtpu()
    if verb != "plan":  # which reads of each program what only its compilation tells
        os.environ.update(cache_variables(os.environ))
    module, request = load_verb(verb)
    try:
        asked = request.parse(argv)
        with _no_early_end():
            return module.run(asked)
    except JaxalignError as error:
        # It may quote what a file says.
        print(f"jaxalign {verb}: {shown(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        code, told = _explain(error, verb, argv)
        if not told:
            raise
        print(f"jaxalign {verb}: {shown(told)}", file=sys.stderr)
        return code


def _explain(error: Exception, verb: str, argv: list[str]) -> tuple[int, str]:
    """The exit code for what is no fault of the program, and what to say of it; of a fault nothing."""
    # Whoever raised them has loaded them; help and wrong flags need not wait for it.
    import jax

    from jaxalign.storage import DISK_REFUSES
    from jaxalign.training.loop import Stopped

    if isinstance(error, Stopped):
        again = f"; this goes on:\n  {shlex.join(['jaxalign', verb, *argv])}"
        return signals.TRY_AGAIN, f"{error}{'' if error.finished else again}"
    if traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):
        # Where JAX looks for devices: it says of some only that there is none, by an assertion.
        platforms = jax.config.values["jax_platforms"]
        asked = f" of JAX_PLATFORMS={platforms}" if platforms else ""
        said = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return 1, (
            f"JAX finds no device{asked}{said}; unset JAX_PLATFORMS to take what there is, see that no other program "
            "holds the devices, and that JAX is installed for them"
        )
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return 1, (
            f"out of memory on a device ({str(error).splitlines()[0]}); take shorter rows (config.data.max_length and "
            "row_length) or fewer (config.batch_size), cut batches into slices (config.num_microbatches), or split the "
            "model (config.mesh.fsdp); jaxalign plan says what a step takes"
        )
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}the disk takes no more ({error.strerror}); make room, then run the same command"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return 1, (
            f"{error.filename}: {error.strerror}; a file or folder was removed meanwhile, is of another kind, or may "
            "not be read or written: put that right, then run the same command"
        )
    return 1, ""


def _quiet_libtpu() -> None:
    """Where there is no TPU, keeps libtpu, which plans need, from asking the network for one and telling of it."""
    devices = [*pathlib.Path("/dev").glob("accel*"), *pathlib.Path("/dev").glob("vfio/[0-9]*")]
    if not devices and not os.environ.get("JAX_FORCE_TPU_INIT"):
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_WORKER_ID", "0")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")


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
