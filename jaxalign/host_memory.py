"""How the C library gives memory of the host back to the system, where the host computes."""

import ctypes
import os
import pathlib
import platform
import sys

# Of mallopt(3), glibc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_ACCELERATORS = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")


def keep_freed_memory() -> bool:
    """Has memory that was freed kept for the next allocation of this process, where a CPU is what computes.

    A step allocates hundreds of megabytes for a moment. By default each is asked of the system anew, which fills it
    with zeros page by page: a tenth to a fifth of a step's time on a CPU. Call it before JAX has made a device. What
    the environment says of malloc has the last word.

    Returns:
      Whether it was done: on Linux with glibc, without an accelerator.
    """
    asked = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    elsewhere = any(any(pathlib.Path("/dev").glob(name)) for name in _ACCELERATORS)
    if asked or elsewhere or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # One arena, since those of threads lie in pieces of 64 MiB that are given back; nothing mapped by itself; and -1
    # for never.
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) for name, value in settings)
