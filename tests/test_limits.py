"""A value outside the limits of its field is refused under its true key, wherever the object comes from."""

import dataclasses
import functools
import math
import re
import types
import typing

import jax
import pytest
from ml_collections import ConfigDict

from jaxalign.config import read_config
from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, Limits, check, field, like, limits_of, nearest
from jaxalign.sections import freeze, sections, thaw
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("stage", NAMES)
def test_every_key_that_may_be_none_can_be_set_to_it_by_a_flag(stage):
    """And back to a number, whichever flag comes last; whatever the config file says."""
    keys = [
        (path + name, each)
        for path, _, cls in sections(whole_config(stage))
        for name, each in typing.get_type_hints(cls).items()
        if types.NoneType in typing.get_args(each)
    ]
    assert "optimizer.clip_norm" in dict(keys)
    must = [f"--config.{stage}.{k}=m:f" for k in ("reward", "teacher") if k in default_config(stage)[stage]]
    for key, hint in keys:
        for word in ("None", "none", "NONE"):
            config = parse_config(read_config(stage, [*must, f"--config.{key}=1", f"--config.{key}={word}"]))
            assert value_at(config, key, stage) is None
        kind = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
        values = read_config(stage, [*must, f"--config.{key}=none", f"--config.{key}=1"])
        assert value_at(parse_config(values), key, stage) == kind(1)


def value_at(config, key, stage):
    first, *rest = key.split(".")
    return functools.reduce(getattr, rest, getattr(config, "options" if first == stage else first))


def test_none_where_there_is_no_none_is_refused():
    with pytest.raises(
        ConfigError, match=r"--config.data.eval=None would be the text 'None'; --config.data.eval= "
    ):
        read_config("sft", ["--config.data.eval=None"])
    with pytest.raises(ConfigError, match="None"):
        read_config("sft", ["--config.eval_every=None"])
    assert read_config("sft", ["--config.model.remat=none"]).model.remat == "none"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["num_steps=5", "num_epochs=2"],
            r"num_steps=5 and --config.num_epochs=2.0 are two lengths of one run",
        ),
        (["num_steps=0"], r"num_steps=0 is no length of a run: give .*--config.num_epochs=N"),
    ],
)
def test_a_run_has_one_length(flags, message):
    with pytest.raises(ConfigError, match=message):
        read_config("sft", [f"--config.{flag}" for flag in flags])
    values = read_config("sft", ["--config.num_steps=0", "--config.num_epochs=2"])
    assert (values.num_steps, values.num_epochs) == (0, 2.0)


@pytest.mark.parametrize("stage", NAMES)
def test_objects_made_by_hand_are_checked_as_well(stage):
    for key, cls, each in constrained(stage):
        if cls.__name__ == "Config":
            continue  # which cannot be made without a stage and its options
        for value in bad_values(limits_of(each)):
            with pytest.raises(ConfigError, match=re.escape(f".{key.split('.')[-1]}={value!r}")):
                cls(**{each.name: value})


# Numbers of which any finite one has a use.
FREE = {"reward_scale"}


@pytest.mark.parametrize("stage", NAMES)
def test_every_number_has_limits_and_must_be_finite(stage):
    for path, _, cls in sections(whole_config(stage)):
        assert issubclass(cls, Checked), cls
        hints = typing.get_type_hints(cls)
        for each in dataclasses.fields(cls):
            kinds = {hints[each.name], *typing.get_args(hints[each.name])}
            if (
                typing.get_origin(hints[each.name]) is tuple
                or not kinds & {int, float}
                or limits_of(each) is not None
            ):
                continue
            assert each.name in FREE, f"config.{path}{each.name}"
            for value in (math.nan, math.inf, -math.inf):
                values = whole_config(stage)
                values.update_from_flattened_dict({f"{path}{each.name}": value})
                with pytest.raises(
                    ConfigError, match=re.escape(f"config.{path}{each.name}={value!r} must be finite")
                ):
                    parse_config(values)


@pytest.mark.parametrize(("key", "stage"), [("data.weights", "sft"), ("ppo.reward_weights", "ppo")])
def test_a_list_of_numbers_must_be_finite(key, stage):
    values = whole_config(stage)
    values.update_from_flattened_dict({key: (1.0, math.nan)})
    with pytest.raises(ConfigError, match=re.escape(f"config.{key}=(1.0, nan) must be finite")):
        parse_config(values)


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
