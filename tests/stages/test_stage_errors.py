"""What cannot work is refused before it starts, with the key, the value and the way out."""

import shutil

import pytest
from test_stage_invariance import opened
from tiny import run, set_reward_function, write_jsonl

from jaxalign import parallel
from jaxalign.data import train_sentencepiece
from jaxalign.errors import CheckpointError, ConfigError, DataError, RewardError
from jaxalign.training.loop import Stopped


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "sft",
            {"batch_size": 12},
            r"config\.batch_size / config\.num_microbatches=12 is not divisible by",
        ),
        (
            "sft",
            {"num_microbatches": 3},
            r"config\.batch_size=8 is not divisible by config\.num_microbatches=3",
        ),
        ("sft", {"mesh.data": 3}, "the axes ask for 3 devices, but there are 8; make their product 8"),
        ("sft", {"model.num_layers": 3}, r"config\.model\.num_layers=3, but the model in .* has 2"),
        ("sft", {"model.vocab_size": 400}, r"config\.model\.vocab_size=400, but the model in .* has 336"),
        ("sft", {"model.init_from": "nowhere"}, r"config\.model\.init_from='nowhere': no checkpoint in"),
        ("sft", {"model.init_from": ""}, r"config\.data\.tokenizer is empty"),
        ("sft", {"data.train": "missing.jsonl"}, r"missing\.jsonl.*config\.data\.train"),
        ("sft", {"on_nonfinite": "ignore"}, r"config\.on_nonfinite='ignore' is not one of stop, skip"),
        ("dpo", {"dpo.beta": 0.0}, r"config\.dpo\.beta=0\.0 must be positive"),
        (
            "ppo",
            {"ppo.reward_model": ""},
            r"set config\.ppo\.reward_model or config\.ppo\.reward_function; neither",
        ),
        ("ppo", {"ppo.reward_function": "a:b"}, "both are set"),
        ("ppo", {"ppo.num_minibatches": 3}, r"8 rows cannot be cut into 3 equal parts"),
        (
            "ppo",
            {"ppo.num_minibatches": 4, "num_microbatches": 4},
            r"config\.ppo\.num_minibatches \* config\.num_microbatches\): 8 rows cannot be cut into 16",
        ),
    ],
)
def test_config_errors_name_key_value_and_way_out(stage, changes, message, runs, tmp_path):
    devices = 1 if stage == "ppo" else 8
    with pytest.raises((ConfigError, CheckpointError, DataError), match=message):
        run(stage, runs, tmp_path, devices=devices, **changes)


def test_a_model_of_the_wrong_kind_is_named(runs, tmp_path):
    for stage in ("sft", "dpo", "ppo"):
        with pytest.raises(
            ConfigError, match=r"init_from='.*reward' is a reward model; name a language model"
        ):
            run(stage, runs, tmp_path / stage, **{"model.init_from": str(runs / "reward")})
    with pytest.raises(
        ConfigError, match=r"config\.ppo\.reward_model='.*sft' is a language model; name a run of"
    ):
        run("ppo", runs, tmp_path / "rm", **{"ppo.reward_model": str(runs / "sft")})


def test_an_unfinished_run_is_no_model_to_start_from(runs, tmp_path):
    with pytest.raises(Stopped):
        run("pretrain", runs, tmp_path / "half", stop_at=lambda *now: now == (1, 0))
    with pytest.raises(
        CheckpointError, match=r"init_from='.*half': that run has not finished; run it to its end"
    ):
        run("sft", runs, tmp_path / "sft", **{"model.init_from": str(tmp_path / "half")})


def test_another_tokenizer_is_refused(runs, tmp_path):
    train_sentencepiece(["some other words altogether\n"] * 50, tmp_path / "other.model", 290)
    message = r"other\.model'?: the model has vocab_size=336, but its tokenizer has 290 pieces"
    with pytest.raises(ConfigError, match=message):
        run("sft", runs, tmp_path / "sft", **{"data.tokenizer": str(tmp_path / "other.model")})
    # The same size, but other pieces: the reward model would read something else than the policy writes.
    shutil.copytree(runs / "reward", tmp_path / "reward")
    model = next((tmp_path / "reward" / "model").glob("tokenizer*.model"))
    train_sentencepiece(["zebras yawn, xylophones wail over quiet vales\n"] * 50, model, 300)
    with pytest.raises(ConfigError, match=r"has another tokenizer than config\.model.init_from"):
        run("ppo", runs, tmp_path / "ppo", **{"ppo.reward_model": str(tmp_path / "reward")})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "raising_reward",
            RewardError,
            r"raising_reward raised KeyError: 'no such thing' for .*prompts.jsonl:\d+, prompt '.*completion",
        ),
        (
            "nan_reward",
            RewardError,
            r"nan_reward returned nan for .*prompts.jsonl:\d+, prompt '.*; return a finite number",
        ),
        (
            "absent",
            ConfigError,
            r"reward_function='tiny:absent' cannot be imported .* write FILE.py:function",
        ),
        ("WORDS", ConfigError, "reward_function='tiny:WORDS' is not callable"),
    ],
)
def test_bad_reward_functions_are_named(name, error, message, runs, tmp_path):
    with pytest.raises(error, match=message):
        run("ppo", runs, tmp_path, **set_reward_function(name))


def test_positions_beyond_the_table_are_refused(runs, tmp_path):
    learned = {"model.positions": "learned", "model.max_length": 20, "data.max_length": 20}
    run("pretrain", runs, tmp_path / "learned", **learned, num_steps=1)
    changes = {"model.init_from": str(tmp_path / "learned")} | set_reward_function("reward_function")
    with pytest.raises(
        ConfigError, match=r"config\.data\.max_length=48: the model's position table ends at 20"
    ):
        run("sft", runs, tmp_path / "sft", **{"model.init_from": str(tmp_path / "learned")})
    with pytest.raises(
        ConfigError, match=r"make 24 positions, but the table of the model in config\.model.init_from"
    ):
        run("ppo", runs, tmp_path / "ppo", **changes)


def test_an_unsupervised_file_is_named(runs, tmp_path):
    data = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "the fox"}])
    with parallel.use_mesh(parallel.make_mesh()), pytest.raises(DataError, match=r"bad\.jsonl:1: "):
        opened("sft", runs, tmp_path, **{"data.train": data})
