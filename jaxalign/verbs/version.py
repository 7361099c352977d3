"""`jaxalign version`: what is installed, and on what it would run."""

import dataclasses

from jaxalign.verbs.requests import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionRequest(Request):
    """Show the versions of jaxalign and JAX, and the devices that JAX has found."""


def run(request: VersionRequest) -> int:
    """Prints one line."""
    import jax

    import jaxalign

    devices = f"{jax.default_backend()} x {jax.device_count()}"
    print(f"jaxalign {jaxalign.__version__}, jax {jax.__version__}, {devices}")
    return 0
