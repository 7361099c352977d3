"""Config files and flags: what is misspelt or mistyped is named, with what was meant."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from jaxalign.config import freeze, thaw
from jaxalign.errors import ConfigError
from jaxalign.stages import default_config, find_stage, parse_config
from jaxalign.training.config import to_json
from jaxalign.verbs.audit import AuditRequest
from jaxalign.verbs.train import TrainRequest


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    name: str = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = 3
    limit: float | None = None
    sources: str | tuple[str, ...] = ""
    shares: tuple[float, ...] = ()
    flag: bool = False
    inner: Inner = dataclasses.field(default_factory=Inner)


FILE = """
from jaxalign.stages import default_config

def get_config(arg="8"):
    config = default_config("dpo")
    config.batch_size = int(arg)
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "dpo.py"
    path.write_text(FILE)
    return str(path)


def test_thaw_and_freeze_are_inverse():
    assert freeze(Outer, thaw(Outer)) == Outer()
    given = Outer(count=5, limit=0.5, sources="x", shares=(0.2, 0.8), flag=True, inner=Inner(2.0, "b"))
    values = thaw(Outer)
    values.update(
        count=5, limit=0.5, sources="x", shares=(0.2, 0.8), flag=True, inner={"rate": 2.0, "name": "b"}
    )
    assert freeze(Outer, values) == given


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "orpo"])
def test_defaults_of_every_stage_parse_and_become_json(stage):
    config = parse_config(default_config(stage))
    assert config.stage.name == stage and type(config.options) is find_stage(stage).options
    assert json.loads(to_json(config))["optimizer"]["name"] == "adamw"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cuont", 1, r"config\.cuont does not exist; did you mean config\.count\?"),
        ("inner.raet", 1.0, r"config\.inner\.raet does not exist; did you mean config\.inner\.rate\?"),
        ("inner.zzz", 1.0, r"config\.inner\.zzz does not exist; the keys here are name, rate"),
        ("count", "3", r"config\.count='3' must be of type int"),
        ("count", 3.0, r"config\.count=3\.0 must be of type int"),
        ("count", True, r"config\.count=True must be of type int"),
        ("count", None, r"config\.count=None must be of type int"),
        ("limit", "high", r"config\.limit='high' must be of type float"),
        ("sources", 3, r"config\.sources=3 must be of type str or tuple"),
        ("flag", 1, r"config\.flag=1 must be of type bool"),
    ],
)
def test_what_cannot_be_frozen_is_named(key, value, message):
    values = ConfigDict(thaw(Outer).to_dict(), type_safe=False)
    values.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=message):
        freeze(Outer, values)


def test_whole_numbers_are_floats_and_lists_are_tuples():
    values = ConfigDict({"limit": 2, "shares": [1, 2], "inner": {"rate": 3}})
    frozen = freeze(Outer, values)
    assert frozen == Outer(limit=2.0, shares=(1, 2), inner=Inner(rate=3.0))
    assert isinstance(frozen.limit, float) and isinstance(frozen.inner.rate, float)


def test_unknown_stages_and_sections_are_named():
    with pytest.raises(ConfigError, match=r"stage\.sfft does not exist; did you mean stage\.sft\?"):
        default_config("sfft")
    values = default_config("sft").unlock()
    values["dpo"] = ConfigDict()
    with pytest.raises(ConfigError, match=r"config\.dpo does not exist"):
        parse_config(values)
    with pytest.raises(ConfigError, match=r"config\.stage is missing; start from default_config"):
        parse_config(ConfigDict())


def test_flags_override_single_keys(file):
    given = [
        f"--config={file}:16",
        "--config.dpo.beta=0.5",
        "--config.optimizer.clip_norm=2.5",
        "--workdir=w",
    ]
    request = TrainRequest.parse(given)
    config = parse_config(request.read())
    assert (config.batch_size, config.options.beta, config.optimizer.clip_norm) == (16, 0.5, 2.5)
    assert request.workdir == "w"
    assert AuditRequest.parse([f"--config={file}"]).read().batch_size == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config={file}", "--workdir=w", "--config.bacth_size=8"],
            r"config\.bacth_size does not.*'batch_size'",
        ),
        (["--config={file}", "--workdir=w", "--config.dpo.bta=1"], r"config\.dpo\.bta does not.*'beta'"),
        (["--config={file}", "--workdir=w", "--config.batch_size=many"], "batch_size.*many"),
        (["--config={file}", "--workdir=w", "--wrokdir=w"], "wrokdir"),
        (
            ["--config={file}", "--workdir=w", "dpo.beta=1"],
            r"'dpo\.beta=1' is not a flag; write --config\.key=value",
        ),
        (["--config={file}"], "--workdir=DIR is missing"),
        (["--config={file}x", "--workdir=w"], r"dpo\.pyx does not exist"),
        (["--workdir=w"], "--config=FILE is missing"),
    ],
)
def test_bad_flags_are_named(arguments, message, file):
    with pytest.raises(ConfigError, match=message):
        TrainRequest.parse([argument.format(file=file) for argument in arguments]).read()
