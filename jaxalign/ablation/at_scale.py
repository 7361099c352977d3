"""A study in the size of its papers: which trainings make its arms, on which slices. They are launched one by one."""

from collections.abc import Iterator

from jaxalign.ablation.study import Study
from jaxalign.config_files import load_function, own_configs


def describe_trainings(study: Study) -> Iterator[str]:
    """Lines for a reader and a shell: what trains each arm that has a recipe of `configs/papers.py`, in order."""
    path = str(own_configs()["papers"])
    get_commands = load_function(path, "get_commands", "list", "")
    for arm, recipe in study.recipes.items():
        yield f"# {arm}"
        yield from get_commands(recipe, f"ablations/{study.name}-paper")
