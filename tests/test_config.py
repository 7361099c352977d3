"""Config files and flags: what is misspelt or mistyped is named, with what was meant."""

import copy
import dataclasses
import json
import re

import config_page
import pytest
from ml_collections import ConfigDict, config_dict

from jaxalign.cli import main
from jaxalign.config import read_config
from jaxalign.errors import ConfigError, UsageError
from jaxalign.fields import field
from jaxalign.keys import list_keys
from jaxalign.peer_names import PEERS, ROWS, suggest
from jaxalign.sections import UnknownKey, freeze, thaw
from jaxalign.stages import NAMES, default_config, find_stage, parse_config, train
from jaxalign.training.config import config_keys, to_json
from jaxalign.training.optimizer import OptimizerConfig
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


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "orpo", "kto"])
def test_defaults_of_every_stage_parse_and_become_json(stage):
    config = parse_config(default_config(stage))
    assert config.stage.name == stage and isinstance(config.options, config.stage.options)
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


@pytest.mark.parametrize("config", [{"stage": "dpo"}, "dpo.py", None])
def test_what_is_no_config_is_told_so(config, tmp_path):
    said = f"^a config is a ConfigDict, and this is a {type(config).__name__}; begin with default_config"
    for ask in (parse_config, lambda config: train(config, tmp_path / "run")):
        with pytest.raises(ConfigError, match=said):
            ask(config)


def test_unknown_stages_and_sections_are_named():
    with pytest.raises(ConfigError, match=r"stage\.sfft does not exist; did you mean stage\.sft\?"):
        default_config("sfft")
    values = default_config("sft").unlock()
    values["dpo"] = ConfigDict()
    with pytest.raises(ConfigError, match=r"config\.dpo does not exist"):
        parse_config(values)
    with pytest.raises(ConfigError, match=r"config\.stage is missing; start from default_config"):
        parse_config(ConfigDict())
    for stage in (None, 3):
        values = default_config("sft")
        values.stage = stage
        with pytest.raises(
            ConfigError, match=rf"config\.stage={stage} is no name of a stage; write one of pre"
        ):
            parse_config(values)
    with pytest.raises(ConfigError, match=r"config\.mesh=None: it is a section, and no value; set its keys"):
        parse_config(ConfigDict({"stage": "sft", "mesh": None}))


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
            r"config\.bacth_size does not exist; did you mean --config\.batch_size=8\?",
        ),
        (
            ["--config={file}", "--workdir=w", "--config.dpo.bta=1"],
            r"config\.dpo\.bta does not exist; did you mean --config\.dpo\.beta=1\?",
        ),
        (["--config={file}", "--workdir=w", "--config.batch_size=many"], "batch_size.*many"),
        (["--config={file}", "--workdir=w", "--wrokdir=w"], "wrokdir"),
        (
            ["--config={file}", "--workdir=w", "dpo.beta=1"],
            r"'dpo\.beta=1' is not a flag; did you mean --config\.dpo\.beta=1\?",
        ),
        (["--config={file}"], "--workdir=DIR is missing"),
        (["--config={file}x", "--workdir=w"], r"dpo\.pyx does not exist"),
        (["--workdir=w"], "--config=FILE is missing"),
    ],
)
def test_bad_flags_are_named(arguments, message, file):
    with pytest.raises(ConfigError, match=message):
        TrainRequest.parse([argument.format(file=file) for argument in arguments]).read()


@pytest.mark.parametrize(
    ("stage", "setting", "meant"),
    [
        ("sft", "lr=1e-4", "did you mean --config.optimizer.learning_rate=1e-4?"),
        ("sft", "learning_rate=1e-4", "did you mean --config.optimizer.learning_rate=1e-4?"),
        ("sft", "optimizer.lr=1e-4", "did you mean --config.optimizer.learning_rate=1e-4?"),
        ("sft", "optimiser.learning_rate=1", "did you mean --config.optimizer.learning_rate=1?"),
        ("sft", "learing_rate=1e-4", "did you mean --config.optimizer.learning_rate=1e-4?"),
        ("sft", "bf16=True", "did you mean --config.model.dtype=bfloat16?"),
        ("sft", "bf16=False", "did you mean --config.model.dtype=float32?"),
        ("sft", "bf16", "did you mean --config.model.dtype=bfloat16?"),
        (
            "sft",
            "torch_dtype=torch.bfloat16",
            "did you mean --config.model.dtype=bfloat16? (of the computation",
        ),
        (
            "sft",
            "gradient_accumulation_steps=8",
            "did you mean --config.num_microbatches=8? (config.batch_size",
        ),
        (
            "sft",
            "per_device_train_batch_size=4",
            "did you mean --config.batch_size? (config.batch_size counts",
        ),
        ("sft", "max_steps=100", "did you mean --config.num_steps=100?"),
        ("sft", "num_train_epochs=3", "did you mean --config.num_epochs=3?"),
        ("sft", "eval_steps=50", "did you mean --config.eval_every=50?"),
        ("sft", "save_steps=50", "did you mean --config.checkpoint_every=50?"),
        ("sft", "logging_steps=5", "did you mean --config.log_every=5?"),
        ("sft", "warmup_ratio=0.03", "did you mean --config.optimizer.warmup=0.03?"),
        (
            "sft",
            "lr_scheduler_type=constant_with_warmup",
            "did you mean --config.optimizer.schedule=constant?",
        ),
        ("sft", "max_seq_length=2048", "did you mean --config.data.max_length=2048? (of one sequence;"),
        ("sft", "packing=True", "did you mean --config.data.packing=True?"),
        ("sft", "gradient_checkpointing=True", "did you mean --config.model.remat=full?"),
        ("sft", "ici_fsdp_parallelism=4", "did you mean --config.mesh.fsdp=4?"),
        ("sft", "dataset_path=x", "did you mean --config.data.train=x?"),
        ("sft", "hf_path=x", "did you mean --config.data.train=x?"),
        ("sft", "output_dir=x", "the folder of a run is --workdir=DIR"),
        ("sft", "num_generations=8", "stage 'sft' has nothing like it; the keys of config.sft are z_loss"),
        ("dpo", "beta=0.1", "did you mean --config.dpo.beta=0.1?"),
        ("dpo", "loss_type=ipo", "did you mean --config.dpo.variant=ipo?"),
        ("dpo", "loss_type=nca_pair", "did you mean --config.dpo.variant?"),
        ("ppo", "beta=0.1", "did you mean --config.ppo.kl_coef=0.1?"),
        ("ppo", "max_completion_length=64", "did you mean --config.ppo.sampling.max_new_tokens=64?"),
        (
            "ppo",
            "max_prompt_length=64",
            "did you mean --config.data.max_length=64? (of a prompt in stages that",
        ),
        ("grpo", "kl_coef=0.1", "did you mean --config.grpo.beta=0.1?"),
        ("grpo", "num_generations=8", "did you mean --config.grpo.group_size=8?"),
        (
            "grpo",
            "importance_sampling_level=sequence",
            "did you mean --config.grpo.importance=sequence_mean?",
        ),
        ("orpo", "beta=0.1", "did you mean --config.orpo.coef=0.1?"),
        # The names that these keys of ours once had.
        ("ppo", "ppo.reward_function=a:f", "did you mean --config.ppo.reward=a:f?"),
        ("rloo", "rloo.reward_model=runs/r", "did you mean --config.rloo.reward=runs/r?"),
        ("sft", "max_lenght=9", "did you mean --config.data.max_length=9 or --config.model.max_length=9?"),
        ("sft", "zzz=1", "`jaxalign train --config=... --print-config` shows all keys"),
        ("sft", "model.zzz.x=1", "`jaxalign train --config=... --print-config` shows all keys"),
    ],
)
def test_a_key_of_elsewhere_leads_to_ours_with_its_value(stage, setting, meant):
    with pytest.raises(UsageError) as refused:
        read_config(stage, [f"--config.{setting}"])
    key = setting.split("=")[0]
    assert str(refused.value).startswith(f"--config.{key} does not exist; {meant}")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.lr = 1e-4", "config.lr does not exist; did you mean config.optimizer.learning_rate=0.0001?"),
        (
            "config.optimizer.lr = 1e-4",
            "config.optimizer.lr does not exist; did you mean config.optimizer.learning_r",
        ),
        (
            "config.update({'max_steps': 9})",
            "config.max_steps does not exist; did you mean config.num_steps=9?",
        ),
        ("config.optimiser.b1 = 0.9", "config.optimiser does not exist; did you mean config.optimizer?"),
        ("config.bf16 = True", "config.bf16 does not exist; did you mean config.model.dtype=bfloat16?"),
        ("config.dpo.betta = 1.0", "config.dpo.betta does not exist; did you mean config.dpo.beta=1.0?"),
        ("config.dpo.beta = 'low'", "config.dpo.beta='low' must be of type float"),
        ("config.data.train = 3", "config.data.train=3 must be of type str or tuple"),
        (
            "config.per_device_batch_size = 4",
            "config.per_device_batch_size does not exist; did you mean config.batch",
        ),
        (
            "config.best = None",
            "config.best=None: it is a section, and no value; set its keys, such as config.",
        ),
        (
            "config.dpo = None",
            "config.dpo=None: it is a section, and no value; set its keys, such as config.dpo.",
        ),
    ],
)
def test_a_config_file_with_a_key_that_is_not_there_is_refused_in_one_line(line, said, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        f"import jaxalign\ndef get_config():\n    config = jaxalign.default_config('dpo')\n    {line}\n"
    )
    assert main(["audit", f"--config={file}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"jaxalign audit: --config={file}, line 4: {said}")
    assert len(err.splitlines()) == 1 and len(err) < 400 + len(str(file))


def test_what_a_config_file_requires_is_given_by_a_flag_or_asked_for(tmp_path):
    path = tmp_path / "required.py"
    path.write_text(
        "from ml_collections import config_dict\n"
        "from jaxalign.stages import default_config\n\n"
        "def get_config():\n"
        '    config = default_config("dpo")\n'
        "    config.num_steps = config_dict.required_placeholder(int)\n"
        "    config.optimizer.learning_rate = config_dict.required_placeholder(float)\n"
        "    config.eval_every = config.get_ref('num_steps') // 10\n"
        "    return config\n"
    )
    given = ["--config.num_steps=50", "--config.optimizer.learning_rate=0.5"]
    config = parse_config(read_config(str(path), given))
    assert (config.num_steps, config.eval_every, config.optimizer.learning_rate) == (50, 5, 0.5)
    for missing, key in enumerate(("num_steps", "optimizer.learning_rate")):
        values = read_config(str(path), given[:missing] + given[missing + 1 :])
        for each in (values, copy.deepcopy(values)):
            with pytest.raises(ConfigError) as refused:
                parse_config(each)
            assert str(refused.value) == (
                f"config.{key}: the config file has no value for it and requires one; give --config.{key}=VALUE"
            )


def test_a_dict_in_the_place_of_a_section_leaves_its_other_keys_to_flags(tmp_path):
    path = tmp_path / "dict.py"
    lines = ("from jaxalign.stages import default_config", "def get_config(key):")
    body = ('config = default_config("dpo")', "config.optimizer = {key: 0.5}", "return config")
    path.write_text("\n".join([*lines, *(f"    {line}" for line in body)]))
    config = parse_config(read_config(f"{path}:learning_rate", ["--config.optimizer.b2=0.9"]))
    assert dataclasses.asdict(config.optimizer) == dataclasses.asdict(
        OptimizerConfig(learning_rate=0.5, b2=0.9)
    )
    with pytest.raises(
        ConfigError, match=r"config\.optimizer\.lr does not exist; did you mean config\.optimizer\.learning"
    ):
        read_config(f"{path}:lr", [])


@pytest.mark.parametrize(
    "copied",
    [
        "ConfigDict(config)",
        "ConfigDict(config.to_dict())",
        "ConfigDict(json.loads(config.to_json_best_effort()))",
        "FrozenConfigDict(config)",
        "config.copy_and_resolve_references()",
    ],
)
def test_a_plain_copy_that_a_config_file_returns_takes_the_same_flags(copied, tmp_path, capsys):
    path = tmp_path / "copied.py"
    lines = ("import json", "from ml_collections import ConfigDict, FrozenConfigDict", "import jaxalign")
    body = ('config = jaxalign.default_config("dpo")', "config.num_steps, config.batch_size = 130, 4")
    more = ('config.eval_batch_size = config.get_ref("batch_size") * 2', f"return {copied}")
    function = "\n".join(["def get_config():", *(f"    {line}" for line in (*body, *more))])
    path.write_text("\n".join([*lines, function]))
    flags = ("num_epochs=3", "alarms=loss>3", "optimizer.clip_norm=None", "data.weights=1,2")
    argv = [f"--config={path}", *(f"--config.{flag}" for flag in flags)]
    config = parse_config(AuditRequest.parse(argv).read())
    assert (config.num_steps, config.num_epochs, config.alarms) == (0, 3.0, "loss>3")
    assert (config.optimizer.clip_norm, config.data.weights) == (None, (1.0, 2.0))
    assert (config.batch_size, config.eval_batch_size) == (4, 8)
    assert "config.num_steps=130 is left out" in capsys.readouterr().err
    # What is still a reference in the copy follows a flag.
    follows = copied == "ConfigDict(config)"
    config = parse_config(AuditRequest.parse([f"--config={path}", "--config.batch_size=6"]).read())
    assert (config.batch_size, config.eval_batch_size) == (6, 12 if follows else 8)


def test_a_flag_takes_the_place_of_a_list(tmp_path):
    path = tmp_path / "lists.py"
    lines = ("from jaxalign.stages import default_config", "def get_config(arg=''):")
    body = ('config = default_config("dpo")', "config.data.train, config.data.weights = ['a', 'b'], [1, 2]")
    path.write_text("\n".join([*lines, *(f"    {line}" for line in (*body, "return config"))]))
    config = parse_config(read_config(str(path), ["--config.data.train=c", "--config.data.weights=3,4"]))
    assert (config.data.train, config.data.weights) == (("c",), (3.0, 4.0))
    assert parse_config(read_config(str(path), [])).data.train == ("a", "b")


def test_what_a_file_counts_from_a_key_stays_when_a_flag_leaves_the_key_out(tmp_path):
    path = tmp_path / "counted.py"
    lines = ("from jaxalign.stages import default_config", "def get_config(arg=''):")
    body = ('config = default_config("dpo")', "config.num_steps = 130")
    more = ('config.eval_every = config.get_ref("num_steps") // 4', "return config")
    path.write_text("\n".join([*lines, *(f"    {line}" for line in (*body, *more))]))
    config = parse_config(read_config(str(path), ["--config.num_epochs=2"]))
    assert (config.num_steps, config.num_epochs, config.eval_every) == (0, 2.0, 32)
    assert parse_config(read_config(str(path), ["--config.num_steps=40"])).eval_every == 10


def test_references_are_judged_by_what_they_refer_to():
    config = default_config("dpo")
    config.batch_size = 8
    config.optimizer.learning_rate = config.get_ref("batch_size") * 2  # whole numbers are floats
    config.data.train = config_dict.FieldReference(("a.jsonl", "b.jsonl"))
    config.batch_size = 3
    config.model.init_from = "m"
    frozen = parse_config(config)
    assert (frozen.optimizer.learning_rate, frozen.data.train) == (6.0, ("a.jsonl", "b.jsonl"))
    with pytest.raises(ConfigError, match=r"^config\.num_steps='many' must be of type int$"):
        config.num_steps = config_dict.FieldReference("many")


@pytest.mark.parametrize("value", ["adamw", ConfigDict({"learning_rate": 1e-4}), None])
def test_what_is_no_dict_in_the_place_of_a_section_is_told_so(value):
    """Of a ConfigDict, too: set in it later, a key would be lost."""
    shown = value.to_dict() if isinstance(value, ConfigDict) else value
    said = f"config.optimizer={shown!r}: it is a section, and no value; set its keys, such as config.optimizer.b1"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        default_config("dpo").optimizer = value


def test_a_copy_of_a_config_knows_its_keys_too():
    copied = copy.deepcopy(default_config("dpo"))
    with pytest.raises(
        UnknownKey, match=r"^config\.optimizer\.lr does not exist; did you mean config\.optimizer\.lear"
    ):
        copied.optimizer.lr = 1e-4
    assert not hasattr(copied, "lr") and copied.get("lr", 5) == 5
    copied.data.train = ("a.jsonl", "b.jsonl")
    assert parse_config(copied).data.train == ("a.jsonl", "b.jsonl")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed", "--config.seed has no value; write --config.seed=0 or another"),
        ("optimizer=adam", "--config.optimizer is a section; set one of its keys, as --config.optimizer.KEY=VALUE: "),
        ("optimizer.learning_rate=None", "--config.optimizer.learning_rate=None cannot be read; it must be of type fl"),
        ("data.packing=maybe", "--config.data.packing=maybe cannot be read; it must be of type bool"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_read_is_told_with_its_type(setting, said):
    with pytest.raises(UsageError) as refused:
        read_config("dpo", ["--config.log_every=3", f"--config.{setting}"])
    assert str(refused.value).startswith(said)


def test_none_and_switches_are_said_by_flags():
    values = read_config("ppo", ["--config.optimizer.clip_norm=None", "--noconfig.model.tie_embeddings"])
    assert values.optimizer.clip_norm is None and values.model.tie_embeddings is False
    values = read_config("ppo", ["--config.ppo.value_clip=None", "--config.model.qkv_bias"])
    assert values.ppo.value_clip is None and values.model.qkv_bias is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--learning_rate=1e-4"],
            "--learning_rate=1e-4 is not a flag; did you mean --config.optimizer.learning_rate=1e-4?",
        ),
        (["--lr", "1e-4"], "--lr is not a flag; did you mean --config.optimizer.learning_rate=1e-4?"),
        (["lr=1e-4"], "'lr=1e-4' is not a flag; did you mean --config.optimizer.learning_rate=1e-4?"),
        (["--dpo.beta=1"], "--dpo.beta=1 is not a flag; did you mean --config.dpo.beta=1?"),
        (["--output_dir=x"], "--output_dir=x is not a flag; the folder of a run is --workdir=DIR"),
        (["--bf16"], "--bf16 is not a flag; did you mean --config.model.dtype=bfloat16?"),
    ],
)
def test_a_flag_that_is_meant_for_a_key_is_told_so(arguments, said):
    with pytest.raises(UsageError) as refused:
        TrainRequest.parse(["--config", "dpo", "--workdir", "x", *arguments])
    assert str(refused.value) == said


def test_a_config_that_stands_alone_is_told_its_flag():
    with pytest.raises(UsageError, match=r"^'dpo:smoke' is not a flag; did you mean --config=dpo:smoke\?$"):
        TrainRequest.parse(["dpo:smoke", "--workdir=x"])


def test_flags_take_underscores_spaces_and_negative_values():
    request = TrainRequest.parse(["--config", "dpo", "--print_config", "--config.mesh.fsdp", "-1"])
    assert request.print_config and request.read().mesh.fsdp == -1


def all_keys():
    return {name: [key.path for key in config_keys(find_stage(name))] for name in NAMES}


def test_every_name_of_elsewhere_leads_to_a_key_that_is_there_and_none_is_ours():
    keys = all_keys()
    found = {path.replace(f"{stage}.", "STAGE.", 1) if path.startswith(f"{stage}.") else path
             for stage, paths in keys.items() for path in paths}  # fmt: skip
    for name, peer in PEERS.items():
        assert name == name.lower() and (peer.note or peer.keys)
        assert set(peer.keys) <= found, name
        ours = {
            stage: [path for path in paths if path.rpartition(".")[2] == name]
            for stage, paths in keys.items()
        }
        assert not all(ours.values()), f"{name} is a key of every stage"
        for stage, paths in keys.items():
            if ours[stage]:
                assert ours[stage][0] in suggest(name, None, paths, stage), (
                    f"{name} is a key of stage {stage}"
                )
    assert sum(len(names) for names, _ in ROWS) == len(PEERS), "a name stands in two rows"


def test_every_key_says_what_it_means():
    for name in NAMES:
        assert [key.path for key in config_keys(find_stage(name)) if not key.doc] == []


@dataclasses.dataclass(frozen=True)
class Base:
    # Above.
    above: int = field(1, at_least=0)
    behind: float | None = None  # behind
    # --- Title ---
    both: str = field(  # not this
        "a", choices=("a", "b")
    )  # and behind


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    behind: float | None = 2.0
    said: tuple[str, ...] = field((), doc="In the field.")  # not this


def test_comments_beside_fields_are_read_from_the_source():
    found = {key.path: (key.allowed, key.default, key.doc, key.title) for key in list_keys(Derived, "x.")}
    assert found == {
        "x.above": ("int, at least 0", 1, "Above.", ""),
        "x.behind": ("float or None", 2.0, "behind", ""),
        "x.both": ("one of a, b", "a", "and behind", "Title"),
        "x.said": ("list of str", (), "In the field.", ""),
    }


def test_the_page_of_keys_is_that_of_the_dataclasses():
    assert config_page.PAGE.read_text(encoding="utf-8") == config_page.page(), (
        "run python -m tests.config_page"
    )
