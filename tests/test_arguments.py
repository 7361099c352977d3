"""A config is found by path or by name, and its argument is read by parts."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from jaxalign.arguments import Preset, config_argument
from jaxalign.cli import main
from jaxalign.config import load_config
from jaxalign.config_files import find_config, own_configs
from jaxalign.data import train_sentencepiece
from jaxalign.errors import ConfigError
from jaxalign.models import ModelConfig
from jaxalign.models.presets import PRESETS
from jaxalign.stages import parse_config, train

ROOT = pathlib.Path(__file__).parent.parent
STAGES = ("pretrain", "sft", "reward", "ppo", "dpo", "orpo")


def jaxalign(folder, *argv, path=ROOT):
    """The program in a folder, with the package from `path`."""
    environment = os.environ | {"PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jaxalign", *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def installed(tmp_path):
    """The package as pip installs it, its configs inside."""
    package = tmp_path / "site/jaxalign"
    package.mkdir(parents=True)
    for entry in (ROOT / "jaxalign").iterdir():
        (package / entry.name).symlink_to(entry)
    return package.parent


@pytest.mark.slow
def test_a_name_is_found_from_an_empty_folder_by_an_installed_package(installed, tmp_path):
    (tmp_path / "empty").mkdir()
    shown = jaxalign(
        tmp_path / "empty", "train", "--config=quickstart:dpo,root=my", "--print-config", path=installed
    )
    assert shown.returncode == 0, shown.stderr
    assert "    config.model.init_from = 'my/sft'  # str; default: ''\n" in shown.stdout
    # Comments are read from the source, which an installed package has.
    assert (
        "    # 0: a dense MLP\n    config.model.num_experts = 0  # int, at least 0 and at most 16384\n"
        in shown.stdout
    )


@pytest.mark.slow
def test_a_name_is_found_from_an_empty_folder_by_a_checkout(tmp_path):
    shown = jaxalign(tmp_path, "train", "--config=sft:llama3_1_8b", "--print-config")
    assert shown.returncode == 0, shown.stderr
    assert (
        "    config.model.embed_dim = 4096  # int, at least 1 and at most 4194304; default: 64\n"
        in shown.stdout
    )
    refused = jaxalign(tmp_path, "train", "--config=configs/sft.py", "--workdir=x")
    assert refused.returncode == 2 and "did you mean --config=sft?" in refused.stderr


@pytest.mark.slow
def test_a_file_of_ones_own_needs_jaxalign_alone(tmp_path):
    (tmp_path / "my_simpo.py").write_text(
        "from __future__ import annotations\n"
        "import jaxalign\n"
        "def get_config(beta: str = '2'):\n"
        "    config = jaxalign.default_config('dpo')\n"
        "    config.dpo.beta = float(beta)\n"
        "    return config\n"
    )
    shown = jaxalign(tmp_path, "train", "--config=my_simpo.py:3", "--config.dpo.nll_coef=1", "--print-config")
    assert shown.returncode == 0, shown.stderr
    assert "    config.dpo.beta = 3.0  # float, above 0; default: 0.1\n" in shown.stdout
    assert "    config.dpo.nll_coef = 1.0  # float, at least 0; default: 0.0\n" in shown.stdout


def test_an_existing_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("dpo") == str(own_configs()["dpo"])
    (tmp_path / "dpo").write_text(
        "import jaxalign\ndef get_config():\n    config = jaxalign.default_config('sft')\n    return config\n"
    )
    assert find_config("dpo") == "dpo" and load_config("dpo").stage == "sft"


@pytest.mark.parametrize(
    ("name", "said"),
    [("dpoo", "did you mean --config=dpo?"), ("zzz", "comes with jaxalign: distill, dpo, gemma")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, said):
    with pytest.raises(ConfigError) as refused:
        load_config(name)
    assert f"--config={name} does not exist" in str(refused.value) and said in str(refused.value)


def test_own_configs_import_jaxalign_alone():
    for file in own_configs().values():
        lines = [line for line in file.read_text("utf-8").splitlines() if line.startswith(("import", "from"))]
        assert lines == ["from ml_collections import ConfigDict", "import jaxalign"], file


def test_every_value_of_an_own_config_says_why():
    for file in own_configs().values():
        lines = file.read_text("utf-8").splitlines()
        for before, line in itertools.pairwise(lines):
            if line.strip().startswith("config.") and " = " in line:
                assert "  # " in line or before.strip().startswith("# "), f"{file}: {line}"


@config_argument
def get_config(
    stage: str, data: str = "here", rate: float = 0.5, steps: int = 3, full: bool = False
) -> ConfigDict:
    """An argument of every type."""
    return ConfigDict({"stage": stage, "data": data, "rate": rate, "steps": steps, "full": full})


@pytest.mark.parametrize(
    ("arg", "changes"),
    [
        ("sft", {}),
        ("sft,a/b", {"data": "a/b"}),
        ("sft,,0.25", {"data": "", "rate": 0.25}),
        ("full,sft,x", {"data": "x", "full": True}),
        ("steps=7,sft,rate=1e-3", {"steps": 7, "rate": 1e-3}),
        ("stage=sft,full=True", {"full": True}),
        ("sft,full=False,data=a=b", {"data": "a=b"}),
        ("sft,runs/lr=3", {"data": "runs/lr=3"}),
    ],
)
def test_parts_are_words_names_and_values(arg, changes):
    wanted = {"stage": "sft", "data": "here", "rate": 0.5, "steps": 3, "full": False} | changes
    assert get_config(arg).to_dict() == wanted


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("", "stage must be given after ':'; this argument is STAGE,[DATA],[RATE],[STEPS],[full],[smoke]"),
        ("sft,dta=x", "'dta' is no name in this argument, which is STAGE,[DATA],[RATE],[STEPS],[full],[smoke]; "
         "did you mean 'data'?"),
        ("sft,a,1,2,ful", "'ful' is one part too many; this argument is STAGE,[DATA],[RATE],[STEPS],[full],[smoke]; "
         "did you mean 'full'?"),
        ("sft,a,much", "rate='much' must be of type float"),
        ("sft,steps=1.5", "steps='1.5' must be of type int"),
        ("sft,full=yes", "full='yes' must be True or False, or only full"),
        ("sft,stage=dpo", "'stage=dpo' is the second value of stage"),
    ],
)  # fmt: skip
def test_other_parts_are_refused(arg, said):
    with pytest.raises(ConfigError) as refused:
        get_config(arg)
    assert str(refused.value).startswith(said)


def test_a_model_a_folder_and_a_word_are_told_apart(tmp_path, monkeypatch):
    @config_argument
    def takes(model: Preset = "", root: str = "quickstart") -> ConfigDict:
        return ConfigDict({"model": model, "root": root})

    monkeypatch.chdir(tmp_path)
    (tmp_path / "world").mkdir()
    assert takes("qwen3_0_6b").to_dict() == {"model": "qwen3_0_6b", "root": "quickstart"}
    assert takes("world").root == "world" and takes("my/world").root == "my/world"
    assert takes("root=other,gpt2").to_dict() == {"model": "gpt2", "root": "other"}
    for arg in ("other", "model=other"):
        with pytest.raises(ConfigError, match=r"'other' is neither a model of .* nor a folder"):
            takes(arg)
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        takes("qwen3_0_6b,smok")


def test_a_refused_argument_names_the_config(capsys):
    assert main(["audit", "--config=dpo:llama3_1_8B"]) == 2
    err = capsys.readouterr().err
    assert f"--config={own_configs()['dpo']}: 'llama3_1_8B' is no model" in err and "'llama3_1_8b'" in err


def test_a_parameter_may_be_given_by_name():
    assert load_config("quickstart", stage="dpo", root="a,b=c").model.init_from == "a,b=c/sft"
    assert load_config("quickstart", "smoke", stage="dpo", root="r").num_steps == 4
    assert load_config("quickstart", "dpo,my/root").model.init_from == "my/root/sft"
    assert load_config("dpo", "smoke").num_steps == 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", ["", *PRESETS])
def test_smoke_tests_of_every_stage_are_small_and_whole(stage, model):
    word = f"{model},smoke" if model else "smoke"
    config, full = (parse_config(load_config(stage, arg)) for arg in (word, model))
    sizes = config.model.architecture(512, "cpu")
    assert (config.num_steps, config.batch_size, config.num_microbatches) == (4, 8, 1)
    assert config.data.max_length <= 128 and config.data.row_length == 0 and config.data.take == 256
    assert sizes.embed_dim <= ModelConfig.embed_dim and sizes.head_dim <= 16 and sizes.num_layers <= 8
    shared = (full.model.num_kv_heads == 1, full.model.num_kv_heads < full.model.num_heads)
    assert (sizes.num_kv_heads == 1, sizes.num_kv_heads < sizes.num_heads) == shared
    kept = ("norm", "activation", "qk_norm", "layer_pattern", "tie_embeddings", "gated_mlp")
    assert [getattr(sizes, key) for key in kept] == [getattr(full.model, key) for key in kept]
    if stage == "ppo":
        assert config.options.sampling.max_new_tokens == 16
        assert config.batch_size % config.options.num_minibatches == 0


@pytest.mark.parametrize("name", ["gemma_sentiment", "reviews"])
@pytest.mark.parametrize("stage", ["sft", "ppo", "dpo", "orpo"])
def test_the_studies_take_their_parts_as_ever(name, stage):
    arg = {"gemma_sentiment": f"{stage},M,R,D", "reviews": f"{stage},D,R"}[name]
    config = load_config(name, arg)
    assert config.stage == stage and config.data.train.split(",")[0] in ("D/sft.jsonl", "R/pairs.jsonl")
    small = load_config(name, f"{arg},smoke")
    assert small.num_steps == 4 and parse_config(small).optimizer.warmup_steps == 1
    if name == "gemma_sentiment":
        assert config.model.init_from == ("M" if stage in ("sft", "orpo") else "R/sft")
        longer = load_config(name, f"{arg},full")
        assert longer.num_epochs == (2.0 if stage in ("dpo", "orpo") else 1.0)
        assert longer.num_steps == (60 if stage == "ppo" else 0)


@pytest.mark.slow
def test_a_smoke_test_runs(tmp_path):
    texts = [f"the {a} {b} sees the {c} {d}." for a in ("red", "old") for b in "ox cat".split()
             for c in ("blue", "new") for d in "fox dog hen".split()]  # fmt: skip
    (tmp_path / "data").mkdir()
    for name in ("corpus", "corpus_held_out"):
        rows = "".join(json.dumps({"text": f"{text} {name}"}) + "\n" for text in texts * 10)
        (tmp_path / f"data/{name}.jsonl").write_text(rows)
    train_sentencepiece(texts, tmp_path / "data/tokenizer.model", 290)
    values = load_config("quickstart", "smoke", stage="pretrain", root=str(tmp_path))
    summary = train(parse_config(values), tmp_path / "run", quiet=True)
    assert summary["steps"] == 4 and summary["seconds"] < 60
