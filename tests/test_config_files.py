"""The shipped config files under the flags that people give: what is not meant is left out, and that is said."""

import json
import pathlib

import pytest

from jaxalign.config import load_config
from jaxalign.config_files import own_configs
from jaxalign.errors import ConfigError, UsageError
from jaxalign.models.presets import PRESETS
from jaxalign.stages import NAMES, parse_config
from jaxalign.training.config import to_json
from jaxalign.verbs.audit import AuditRequest

ROOT = pathlib.Path(__file__).parent.parent
# Settings of the quickstart, as they were when its numbers were measured: docs and its report speak of them.
MEASURED = {
    "pretrain": {"num_steps": 600, "optimizer.learning_rate": 3e-3, "data.max_length": 64, "batch_size": 32},
    "sft": {"num_steps": 130, "optimizer.learning_rate": 1e-3, "data.max_length": 96, "batch_size": 32},
    "reward": {
        "num_steps": 140,
        "optimizer.learning_rate": 5e-4,
        "options.centering": 0.01,
        "batch_size": 16,
    },
    "ppo": {"num_steps": 36, "optimizer.learning_rate": 2e-4, "options.critic_learning_rate": 1e-3},
    "grpo": {"num_steps": 18, "optimizer.learning_rate": 2e-4, "options.beta": 0.2, "batch_size": 256},
    "rloo": {"num_steps": 36, "optimizer.learning_rate": 2e-4, "options.kl_coef": 0.1, "batch_size": 64},
    "dpo": {"num_steps": 70, "optimizer.learning_rate": 2e-4, "options.beta": 0.2, "data.row_length": 192},
    "kto": {"num_steps": 70, "optimizer.learning_rate": 2e-4, "options.beta": 0.2, "data.row_length": 192},
    "orpo": {"num_steps": 200, "optimizer.learning_rate": 2e-3, "options.coef": 0.5, "batch_size": 16},
    "distill": {"num_steps": 36, "optimizer.learning_rate": 2e-4, "options.teacher": "quickstart/dpo"},
}


def read(stage, *flags, word=""):
    file = f"--config={ROOT}/configs/{stage}.py{word and ':'}{word}"
    return parse_config(AuditRequest.parse([file, *(f"--config.{flag}" for flag in flags)]).read())


def quickstart(stage, *flags):
    return read("quickstart", *flags, word=stage)


def at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


@pytest.mark.parametrize("stage", NAMES)
def test_the_quickstart_has_its_own_settings(stage):
    values = json.loads(to_json(quickstart(stage)))
    for path, wanted in MEASURED[stage].items():
        assert at(values, path) == wanted, path
    # Nothing is left to be found: the numbers do not depend on how it is found.
    assert min(values["batch_size"], values["num_microbatches"], values["data"]["row_length"]) > 0
    assert values["model"]["dtype"] == "float32"


@pytest.mark.parametrize("stage", NAMES)
def test_a_stage_takes_any_model_without_a_number_of_another(stage):
    """What depends on the model or the data is left to be found for those at hand."""
    config = read(stage, "model.init_from=runs/mine", "data.train=mine.jsonl")
    assert config.model.init_from == "runs/mine" and config.data.train == "mine.jsonl"
    open_keys = (config.optimizer.learning_rate, config.batch_size, config.num_microbatches)
    assert (*open_keys, config.data.max_length, config.data.row_length, config.num_steps) == (0,) * 6
    assert config.data.tokenizer == config.data.eval == "" and config.data.weights == ()
    assert config.optimizer.warmup_steps == 0 and config.optimizer.warmup <= 0.1 and config.num_epochs >= 1
    if hasattr(config.options, "sampling"):
        assert config.options.sampling.max_new_tokens == 0


@pytest.mark.parametrize("stage", NAMES)
def test_a_published_size_changes_the_architecture_alone(stage):
    plain = load_config(stage).to_dict()
    for name, fields in PRESETS.items():
        values = load_config(stage, name).to_dict()
        assert {key: values["model"][key] for key in fields} == fields
        assert values | {"model": plain["model"]} == plain


@pytest.mark.parametrize("stage", NAMES)
def test_a_word_that_is_no_model_is_refused_with_the_nearest(stage):
    for word, near in (("qwen3_06b", "qwen3_0_6b"), ("llama3_1_8B", "llama3_1_8b")):
        with pytest.raises(ConfigError, match=rf"'{word}' is no model .* did you mean '{near}'"):
            read(stage, word=word)


def test_the_refusal_is_one_sentence():
    with pytest.raises(ConfigError) as raised:
        read("sft", word="qwen3_06b")
    assert "Traceback" not in str(raised.value) and len(str(raised.value)) < 400


def test_epochs_by_a_flag_win_over_steps_of_the_file(capsys):
    config = quickstart("sft", "num_epochs=3")
    assert (config.num_steps, config.num_epochs) == (0, 3.0)
    assert "config.num_steps=130 is left out" in capsys.readouterr().err
    assert quickstart("sft").num_steps == 130


def test_a_warmup_by_a_flag_wins_over_the_other_of_the_file():
    assert read("sft", "optimizer.warmup_steps=5").optimizer.warmup == 0
    config = read("sft", "optimizer.warmup_steps=7", word="qwen3_0_6b")
    assert (config.optimizer.warmup_steps, config.optimizer.warmup) == (7, 0.0)
    with pytest.raises(ConfigError, match="set one of them"):
        read("sft", "optimizer.warmup=0.05", "optimizer.warmup_steps=5")


def test_no_warmup_is_a_warmup_of_ones_own():
    config = read("dpo", "optimizer.warmup_steps=0")
    assert (config.optimizer.warmup_steps, config.optimizer.warmup) == (0, 0.0)


def test_flags_may_have_a_space_or_one_dash():
    for flags in (["--config.model.init_from", "runs/m"], ["-config.model.init_from=runs/m"]):
        values = AuditRequest.parse(["--config", f"{ROOT}/configs/sft.py", *flags]).read()
        assert parse_config(values).model.init_from == "runs/m"


def test_a_config_file_of_ones_own_is_left_alone(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxalign.stages import default_config\n"
        "def get_config(arg='quick'):\n"
        "    config = default_config('sft')\n"
        "    config.data.max_length = {'quick': 33}[arg]\n"
        "    return config\n"
    )
    values = AuditRequest.parse([f"--config={file}", "--config.model.init_from=runs/m"]).read()
    assert parse_config(values).data.max_length == 33


def test_continued_pretraining_takes_architecture_and_tokenizer_of_its_model(capsys):
    """Also from a file, or a size, that trains one from scratch."""
    for config in (
        quickstart("pretrain", "model.init_from=runs/own", "data.train=mine.jsonl"),
        read("pretrain", "model.init_from=runs/own", "data.train=mine.jsonl"),
    ):
        assert config.data.tokenizer == "" and config.model.embed_dim == type(config.model).embed_dim
    assert "brings its own architecture and tokenizer" in capsys.readouterr().err
    config = quickstart("pretrain", "model.init_from=runs/own", "data.tokenizer=mine.model")
    assert config.data.tokenizer == "mine.model"
    assert quickstart("pretrain").data.tokenizer == "quickstart/data/tokenizer.model"


@pytest.mark.parametrize("stage", ["ppo", "grpo", "rloo"])
def test_a_reward_is_one_key(stage):
    for name, model in (("runs/reward", True), ("org/name", True), ("gs://b/reward", True), ("m.f:g", False)):
        options = read(stage, f"{stage}.reward={name}").options
        assert (options.reward_model, options.functions) == ((name, ()) if model else ("", (name,)))
    options = quickstart(stage, f"{stage}.reward=my.py:reward").options
    assert (options.reward_model, options.functions) == ("", ("my.py:reward",))
    options = read(stage, f"{stage}.reward=a:f,runs/reward,b.py:g", f"{stage}.reward_weights=1,2,3").options
    assert options.weights == {"a:f": 1.0, "runs/reward": 2.0, "b.py:g": 3.0}
    assert (options.reward_model, options.functions) == ("runs/reward", ("a:f", "b.py:g"))


def test_the_critic_begins_as_the_reward_model_where_there_is_one():
    assert read("ppo", "ppo.reward=runs/reward").options.critic_from_reward
    assert not read("ppo", "ppo.reward=my:reward").options.critic_from_reward
    with pytest.raises(
        ConfigError, match=r"critic_init='reward' needs a reward model in config\.ppo\.reward"
    ):
        read("ppo", "ppo.reward=my:reward", "ppo.critic_init=reward")


def test_no_file_of_a_stage_names_data_or_a_model():
    for name, file in own_configs().items():
        if name in NAMES:
            text = file.read_text("utf-8")
            assert "config.data." not in text.split('"""')[2] and "config.model." not in text.split('"""')[2]


def test_a_config_file_in_the_home_folder_is_found(tmp_path, monkeypatch):
    """Shells leave a `~` alone that stands behind `=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "import jaxalign\n"
        "def get_config(arg='3'):\n"
        "    config = jaxalign.default_config('sft')\n"
        "    config.num_steps = int(arg)\n"
        "    return config\n"
    )
    assert AuditRequest.parse(["--config=~/mine.py:7"]).read().num_steps == 7
    with pytest.raises(UsageError, match=r"^--config=~/others\.py does not exist"):
        AuditRequest.parse(["--config=~/others.py"]).read()
