"""A value outside the limits of its field is refused under its true key, wherever the object comes from."""

import dataclasses
import math
import re

import jax
import pytest
from ml_collections import ConfigDict

from jaxalign.config import freeze, sections, thaw
from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, Limits, check, field, like, limits_of, nearest
from jaxalign.stages import NAMES, default_config, parse_config


def bad_values(limits: Limits) -> list:
    """Values just outside each limit."""
    if limits.choices:
        return ["nonsense"]
    bad = [limits.above, limits.below, math.nan, math.inf]
    bad += [limits.at_least - 1] if limits.at_least is not None else []
    bad += [limits.at_most + 1] if limits.at_most is not None else []
    return [value for value in bad if value is not None]


def whole_config(stage):
    """The defaults of a stage, with what must be set."""
    values = default_config(stage)
    for key in ("reward", "teacher"):
        if key in values[stage]:
            values[stage][key] = "module:function"
    parse_config(values)
    return values


def constrained(stage):
    """Each key of a stage's config that has limits, with its dataclass and field."""
    for path, _, cls in sections(whole_config(stage)):
        for each in dataclasses.fields(cls):
            if limits_of(each) is not None:
                yield f"{path}{each.name}", cls, each


@pytest.mark.parametrize("stage", NAMES)
def test_every_field_with_limits_is_refused_under_its_key(stage):
    found = list(constrained(stage))
    assert len(found) > 50
    for key, _, each in found:
        for value in bad_values(limits_of(each)):
            if each.type is int and not isinstance(value, int):
                continue  # refused for its type
            values = ConfigDict(whole_config(stage).to_dict(), type_safe=False)
            shown = float(value) if each.type in (float, float | None) else value
            values.update_from_flattened_dict({key: value})
            with pytest.raises(ConfigError, match=re.escape(f"config.{key}={shown!r}")):
                parse_config(values)


@pytest.mark.parametrize("stage", NAMES)
def test_objects_made_by_hand_are_checked_as_well(stage):
    for key, cls, each in constrained(stage):
        if cls.__name__ == "Config":
            continue  # which cannot be made without a stage and its options
        for value in bad_values(limits_of(each)):
            with pytest.raises(ConfigError, match=re.escape(f".{key.split('.')[-1]}={value!r}")):
                cls(**{each.name: value})


def test_the_settings_of_sampling_are_named_by_where_they_stand():
    values = default_config("ppo")
    values.ppo.sampling.temperature = -1.0
    with pytest.raises(ConfigError, match=r"^config\.ppo\.sampling\.temperature=-1\.0 must be 0 \(greedy\)"):
        parse_config(values)


@dataclasses.dataclass(frozen=True)
class Loss(Checked):
    """Made by hand, under no key of a config."""

    beta: float = field(0.1, above=0)
    share: float | None = field(None, at_least=0, at_most=1)
    count: int = field(2, at_least=1)
    kind: str = field("one", choices=("one", "two"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beta": 0.0}, "Loss.beta=0.0 must be a positive number"),
        ({"beta": None}, "Loss.beta=None must be a positive number"),
        ({"beta": "much"}, "Loss.beta='much' must be a positive number"),
        ({"share": 1.5}, "Loss.share=1.5 must be at least 0 and at most 1"),
        ({"count": 0}, "Loss.count=0 must be at least 1"),
        ({"count": 1.5}, "Loss.count=1.5 must be at least 1"),
        ({"kind": "Two"}, "Loss.kind='Two' is not one of one, two; did you mean 'two'?"),
    ],
)
def test_what_is_said(given, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        Loss(**given)


def test_what_passes():
    assert Loss(beta=1, share=0, count=1, kind="two").share == 0
    assert Loss(share=None).share is None and Loss(share=1.0).share == 1.0


def test_traced_values_pass_and_known_ones_do_not():
    gradient = jax.grad(lambda beta: Loss(beta=beta).beta ** 2)(3.0)
    assert gradient == 6.0
    with pytest.raises(ConfigError, match=r"Loss\.beta=0\.0"):
        jax.jit(lambda x: x * Loss(beta=0.0).beta)(1.0)


def test_freeze_names_the_path_that_it_is_given():
    values = thaw(Loss)
    values.count = -3
    with pytest.raises(ConfigError, match=r"^config\.mine\.count=-3 must be at least 1$"):
        freeze(Loss, values, "config.mine")


def test_like_takes_default_limits_and_doc_over():
    @dataclasses.dataclass(frozen=True)
    class Other(Checked, at="other"):
        beta: float = like(Loss, "beta", default=0.5)

    assert Other().beta == 0.5
    with pytest.raises(ConfigError, match=r"^other\.beta=-1 must be a positive number"):
        Other(beta=-1)
    check(Other, {"beta": 1.0}, str)


@pytest.mark.parametrize(
    ("word", "near"), [("llama3_1_8B", "llama3_1_8b"), ("--wrokdir", "--workdir"), ("zzz", "")]
)
def test_nearest(word, near):
    assert nearest(word, ["llama3_1_8b", "llama3_8b", "--workdir", "--config"]) == near
