"""Which meshes, microbatches and remat policies are worth compiling."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jaxalign.errors import ConfigError
from jaxalign.plan.programs import describe_model
from jaxalign.plan.topology import Topology
from jaxalign.training.config import Config
from jaxalign.training.memory import REMAT

SLACK = 1.15  # An estimate this much above the memory may still fit: it knows nothing of fusion.


def candidates(config: Config, topology: Topology) -> Iterator[Config]:
    """Configs that differ in mesh, microbatches and remat: fsdp takes what tensor, context and expert leave.

    On a large slice in three dimensions the data axis takes one of them: the compiler gathers over all three at once
    by all-reduces, which send twice as much.
    """
    deep = topology.chip.torus == 3 and min(topology.shape) >= 4
    data = topology.slices * (topology.shape[0] if deep else 1)
    chips = topology.size // data
    experts = describe_model(config, topology.platform).num_experts
    for tensor in _powers(min(8, chips)):
        for context in _powers(min(8, chips // tensor)):
            for expert in _powers(chips // (tensor * context)) if experts else [1]:
                sizes = {"tensor": tensor, "context": context, "expert": expert}
                mesh = dataclasses.replace(config.mesh, data=data, fsdp=-1, **sizes)
                for parts in _powers(min(8, config.batch_size)):
                    if config.batch_size % parts:
                        continue
                    for remat in REMAT:
                        model = dataclasses.replace(config.model, remat=remat)
                        yield dataclasses.replace(config, mesh=mesh, model=model, num_microbatches=parts)


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def rank(configs: Iterator[Config], look: Callable[[Config], dict[str, Any]]) -> list[Config]:
    """Those that may fit by estimate, surely fitting and fast ones first; without those that the mesh cannot divide.

    Raises:
      ConfigError: none is left.
    """
    found, misfits = [], []
    for config in configs:
        try:
            plan = look(config)
        except ConfigError as error:
            misfits.append(str(error))
            continue
        room = plan["room"]  # of a GPU less than its memory
        worst = max(step["memory"]["total"] for step in plan["steps"])
        if worst <= SLACK * room["pool"]:
            seconds = sum(max(step["seconds"].values()) for step in plan["steps"])
            # Between equals less communication wins: what a bound hides may not be hidden in fact.
            sent = sum(sum(step["sent_by_axes"].values()) for step in plan["steps"])
            found.append((worst > room["fits"], round(seconds, 3), sent, len(found), config))
    if not found:
        why = f"; of some the sizes do not divide, as: {misfits[0]}" if misfits else ""
        raise ConfigError(
            f"--search: nothing fits by estimate; use more chips or a smaller config.batch_size{why}"
        )
    return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:4])]
