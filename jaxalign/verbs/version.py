"""`jaxalign version`: what is installed, and on what it would run."""

import dataclasses
import importlib.metadata
import platform

import jaxalign
from jaxalign.errors import amount
from jaxalign.verbs.requests import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionRequest(Request):
    """Show the versions of jaxalign, JAX, Flax and Python, and the devices that JAX finds.

    `jaxalign --version` leaves the devices alone, which may be at work for another program:

        jaxalign version
    """


def run(request: VersionRequest) -> int:
    """Prints one line."""
    import jax

    kind, backend = jax.devices()[0].device_kind, jax.default_backend()
    print(
        f"{versions()}, {amount(jax.device_count(), 'device')}: {kind}{f' ({backend})' * (kind != backend)}"
    )
    return 0


def versions() -> str:
    """The versions that a report of a fault should name; no device is touched."""
    found = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
    named = {"jaxalign": jaxalign.__version__} | found | {"Python": platform.python_version()}
    return ", ".join(f"{name} {version}" for name, version in named.items())
