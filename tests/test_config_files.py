"""The shipped config files under the flags that people give: what is not meant is left out, and that is said."""

import json
import pathlib

import pytest

from jaxalign.errors import ConfigError
from jaxalign.models.presets import PRESETS
from jaxalign.stages import parse_config
from jaxalign.verbs.audit import AuditRequest

ROOT = pathlib.Path(__file__).parent.parent
STAGES = ("pretrain", "sft", "reward", "ppo", "dpo", "orpo")


def read(stage, *flags, word=""):
    file = f"--config={ROOT}/configs/{stage}.py{word and ':'}{word}"
    return parse_config(AuditRequest.parse([file, *(f"--config.{flag}" for flag in flags)]).read())


@pytest.fixture
def foreign(tmp_path):
    """A folder in Hugging Face's format, as far as its name says."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    return str(tmp_path / "hf")


def finished_run(folder, began_elsewhere=False):
    meta = folder / "model/0/meta"
    meta.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps({"meta": {"hf_config": {}} if began_elsewhere else {}}))
    return str(folder)


@pytest.mark.parametrize("stage", STAGES)
def test_a_word_that_is_neither_model_nor_folder_is_refused_with_the_nearest(stage, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"'qwen3_06b' is neither a model .* did you mean 'qwen3_0_6b'"):
        read(stage, word="qwen3_06b")
    with pytest.raises(ConfigError, match=r"'llama3_1_8B' is neither .* did you mean 'llama3_1_8b'"):
        read(stage, word="llama3_1_8B")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()
    assert read(stage, "model.init_from=", word="world").data.train.startswith("world/data/")


def test_the_refusal_is_one_sentence(capsys):
    with pytest.raises(ConfigError) as raised:
        read("sft", word="qwen3_06b")
    assert "Traceback" not in str(raised.value) and len(str(raised.value)) < 400


def test_epochs_by_a_flag_win_over_steps_of_the_file(capsys):
    config = read("sft", "num_epochs=3")
    assert (config.num_steps, config.num_epochs) == (0, 3.0)
    assert "config.num_steps=130 is left out" in capsys.readouterr().err
    both = read("sft", "num_epochs=3", "num_steps=7")
    assert both.num_steps == 7
    assert read("sft").num_steps == 130


def test_a_warmup_by_a_flag_wins_over_the_other_of_the_file():
    assert read("sft", "optimizer.warmup_steps=5").optimizer.warmup == 0
    config = read("sft", "optimizer.warmup_steps=7", word="qwen3_0_6b")
    assert (config.optimizer.warmup_steps, config.optimizer.warmup) == (7, 0.0)
    with pytest.raises(ConfigError, match="set one of them"):
        read("sft", "optimizer.warmup=0.05", "optimizer.warmup_steps=5")


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_from_elsewhere_takes_settings_for_fine_tuning(stage, foreign, tmp_path, capsys):
    """Also a run here that began with one; the quickstart's own models keep the quickstart's settings."""
    made = finished_run(tmp_path / "made", began_elsewhere=True)
    for name in (foreign, made, f"{made}/model", "organisation/name", "gs://bucket/name"):
        config = read(stage, f"model.init_from={name}", "data.train=mine.jsonl")
        assert config.model.init_from == name and config.data.train == "mine.jsonl"
        assert config.optimizer.learning_rate <= (3e-4 if stage == "pretrain" else 1e-5)
        assert config.data.max_length >= 1024 and config.data.row_length >= config.data.max_length
        assert config.optimizer.warmup_steps == 0 and config.model.dtype == "bfloat16"
        assert config.data.tokenizer == config.data.eval == "" and config.data.weights == ()
        assert config.model.num_layers == type(config.model).num_layers  # the model brings its own
        assert f"{name} is no model of the quickstart: settings for fine-tuning" in capsys.readouterr().err
    own = finished_run(tmp_path / "own")
    config = read(stage, f"model.init_from={own}", "data.train=mine.jsonl")
    assert config.model.dtype == "float32" and config.data.max_length <= 96


def test_flags_may_have_a_space_or_one_dash(foreign):
    for flags in (["--config.model.init_from", foreign], [f"-config.model.init_from={foreign}"]):
        values = AuditRequest.parse(["--config", f"{ROOT}/configs/sft.py", *flags]).read()
        assert parse_config(values).data.max_length == 4096


def test_no_warmup_is_a_warmup_of_ones_own():
    config = read("dpo", "optimizer.warmup_steps=0")
    assert (config.optimizer.warmup_steps, config.optimizer.warmup) == (0, 0.0)


def test_flags_win_over_the_settings_for_fine_tuning(foreign):
    config = read("sft", f"model.init_from={foreign}", "data.max_length=512", "optimizer.learning_rate=1e-4")
    assert (config.data.max_length, config.optimizer.learning_rate) == (512, 1e-4)


def test_a_config_file_of_ones_own_is_left_alone(foreign, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxalign.stages import default_config\n"
        "def get_config(arg='quick'):\n"
        "    config = default_config('sft')\n"
        "    config.data.max_length = {'quick': 33}[arg]\n"
        "    return config\n"
    )
    values = AuditRequest.parse([f"--config={file}", f"--config.model.init_from={foreign}"]).read()
    assert parse_config(values).data.max_length == 33


def test_continued_pretraining_takes_architecture_and_tokenizer_of_its_model(tmp_path, capsys):
    own = finished_run(tmp_path / "own")
    config = read("pretrain", f"model.init_from={own}", "data.train=mine.jsonl")
    assert config.data.tokenizer == "" and config.model.embed_dim == type(config.model).embed_dim
    assert "brings its own architecture and tokenizer" in capsys.readouterr().err
    config = read("pretrain", f"model.init_from={own}", "data.tokenizer=mine.model")
    assert config.data.tokenizer == "mine.model"
    assert read("pretrain").data.tokenizer == "quickstart/data/tokenizer.model"


def test_an_own_reward_function_needs_one_flag():
    config = read("ppo", "ppo.reward_function=my:reward")
    assert config.options.reward_function == "my:reward" and config.options.reward_model == ""
    assert not config.options.critic_from_reward
    assert read("ppo").options.critic_from_reward
    config = read("ppo", "ppo.reward_function=my:reward", word="qwen3_0_6b")
    assert config.options.reward_model == ""


@pytest.mark.parametrize("stage", STAGES)
def test_presets_warm_up_over_a_part_of_the_run_whatever_its_length(stage):
    for name in PRESETS:
        config = read(stage, word=name)
        assert config.optimizer.warmup_steps == 0 and config.optimizer.warmup <= 0.1
        assert config.data.max_segments == 0
