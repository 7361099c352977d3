"""A server that imports what all tests import, but no mutated file, and forks a process for each run of pytest.

It reads a JSON object a line, {"arguments", "limit", "log"}, and answers with {"code", "seconds"}. A run that takes
longer than its limit has the code -9.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback

import pytest

# pytest imports it again, and then finds the environment and the flags that JAX has read.
import tests.conftest  # noqa: F401

OF_OTHERS = "datasets", "flax.linen", "grain", "hypothesis", "ml_collections", "optax", "orbax.checkpoint"
TAIL_OF_OTHERS = "scipy.special", "sentencepiece", "tokenizers", "transformers"


def run(arguments: list[str], limit: float, log: str) -> dict[str, float]:
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        code = 1  # of an exception on the way
        try:
            code = int(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ended, status = 0, signal.SIGKILL.value
    while not ended and time.monotonic() - began < limit:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    try:
        os.killpg(child, signal.SIGKILL)  # and what it has started
    except ProcessLookupError:
        pass
    if not ended:
        _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": round(time.monotonic() - began, 2)}


def main() -> None:
    for name in OF_OTHERS + TAIL_OF_OTHERS:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
