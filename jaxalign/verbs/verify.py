"""`jaxalign verify`: whether runs and models are as they were written."""

import dataclasses

from jaxalign.errors import amount
from jaxalign.verbs.requests import Request, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyRequest(Request):
    """Compare every file of runs, checkpoints or exported models with its checksum. Nothing is changed.

    The exit code is 1 where something is not as it was written:

        jaxalign verify runs/sft runs/sft-hf
    """

    places: tuple[str, ...] = flag(
        "runs, checkpoints, models, or folders that `convert` wrote", place=True, show="PLACE"
    )


def run(request: VerifyRequest) -> int:
    """Prints a line for each part."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and accelerators may be busy
    from jaxalign.training.verify import verify

    faults = 0
    for place in request.places:
        for found in verify(place):
            faults += bool(found.fault)
            name = place.rstrip("/") if found.part == "." else f"{place.rstrip('/')}/{found.part}"
            print(f"{name}: {f'DAMAGED: {found.fault}' if found.fault else f'whole, {found.note}'}")
    if faults:
        print(f"{amount(faults, 'part')} not as written")
    return int(bool(faults))
