"""Where compiled programs are kept from one start to the next: in the user's cache folder, unless JAX is told where.

JAX's own variables decide: JAX_COMPILATION_CACHE_DIR names another folder, and one that is empty, or
JAX_ENABLE_COMPILATION_CACHE=false, switches it off.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

from jaxalign.cache_folder import cache_folder

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Of a compilation whose result is kept: of all. A start has dozens of small programs, which take seconds together.
LEAST_SECONDS = ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
MOST_BYTES = 10 * 2**30  # the oldest programs beyond it are removed at the next start


def cache_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment before JAX is imported: nothing where JAX has been told, or nothing can be kept.

    A processor gets a folder of its own: what XLA compiles for one may have instructions that another does not know,
    and a home may be shared between machines.
    """
    if VARIABLE in environ:
        return {}
    folder = cache_folder(environ) / f"programs-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    if not os.access(folder, os.W_OK):
        return {}
    remove_oldest(folder, MOST_BYTES)
    name, seconds = LEAST_SECONDS
    return {VARIABLE: str(folder)} | ({} if name in environ else {name: seconds})


def remove_oldest(folder: pathlib.Path, most: int) -> None:
    """Removes the oldest files of a folder until the rest have at most so many bytes."""
    found, size = [], 0
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            known = file.stat()
            found.append((known.st_mtime, known.st_size, file))
            size += known.st_size
    for _, bytes_of_it, file in sorted(found):
        if size <= most:
            return
        with contextlib.suppress(OSError):
            file.unlink()
        size -= bytes_of_it


def _processor() -> str:
    """A name for processors that know the same instructions."""
    said = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):  # of Linux
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features", "model name")):
                said += line
            elif not line:  # the first of them speaks for all
                break
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
