"""What cannot work is refused before it starts, with the key, the value and the way out."""

import shutil

import pytest
from test_stage_invariance import opened
from tiny import ON_POLICY, WORDS, run, set_reward_function, write_jsonl

from jaxalign import parallel
from jaxalign.data import train_sentencepiece
from jaxalign.errors import CheckpointError, ConfigError, DataError, RewardError


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
        ("sft", {"model.vocab_size": 400}, r"vocab_size=400, but its tokenizer has 336"),
        ("sft", {"model.init_from": "nowhere"}, r"config\.model\.init_from='nowhere': no checkpoint in"),
        ("sft", {"model.init_from": ""}, r"config\.data\.tokenizer is empty"),
        ("sft", {"data.train": "missing.jsonl"}, r"missing\.jsonl.*config\.data\.train"),
        ("sft", {"on_nonfinite": "ignore"}, r"config\.on_nonfinite='ignore' is not one of stop, skip"),
        ("dpo", {"dpo.beta": 0.0}, r"config\.dpo\.beta=0\.0 must be a positive"),
        (
            "ppo",
            {"ppo.reward": ""},
            r"config\.ppo\.reward is empty: name what scores",
        ),
        ("ppo", {"ppo.reward": "one,two"}, r"ppo\.reward='one,two' names 2 reward models, one and two"),
        (
            "ppo",
            {"ppo.reward": "mine.py"},
            r"ppo\.reward='mine\.py' names no function; write mine\.py:FUNCTION",
        ),
        ("rloo", {"rloo.reward": "a:b,a:b"}, r"'a:b,a:b' names one of them twice; give it a weight"),
        (
            "ppo",
            {"ppo.reward_weights": (1.0, 2.0)},
            r"reward_weights=\(1\.0, 2\.0\): give one for each of the 1 in config\.ppo\.reward",
        ),
        (
            "sft",
            {"model.dtype": "float16"},
            r"config\.model\.dtype='float16' cannot train: .* use 'bfloat16'",
        ),
        (
            "ppo",
            {"ppo.kl_target": 1.0, "ppo.kl_horizon": 1},
            r"config\.ppo\.kl_horizon=1 is too short for the 8 episodes .* use more than 1\.6, such as 10000",
        ),
        ("ppo", {"ppo.num_minibatches": 3}, r"8 rows cannot be cut into 3 equal parts"),
        (
            "ppo",
            {"ppo.num_minibatches": 4, "num_microbatches": 4},
            r"config\.ppo\.num_minibatches \* config\.num_microbatches\): 8 rows cannot be cut into 16",
        ),
        (
            "grpo",
            {"grpo.group_size": 3},
            r"config\.batch_size=16 completions are no whole number of groups of config\.grpo\.group_size=3; make the "
            "batch a multiple of it, such as 18",
        ),
        ("rloo", {"rloo.group_size": 5}, r"groups of config\.rloo\.group_size=5; .* such as 20"),
        ("grpo", {"grpo.group_size": 1}, r"config\.grpo\.group_size=1 "),
        ("rloo", {"rloo.group_size": 1}, r"config\.rloo\.group_size=1 "),
        ("grpo", {"grpo.loss_type": "ppo"}, r"config\.grpo\.loss_type='ppo' is not one of grpo, dapo"),
        ("rloo", {"rloo.clip": 0.0}, r"config\.rloo\.clip=0\.0 must be a positive"),
        (
            "grpo",
            {"grpo.reference_rate": 0.1},
            r"config\.grpo\.reference_rate=0\.1 moves a reference, but a run of grpo with these settings reads none",
        ),
        (
            "grpo",
            {"grpo.reward": ""},
            r"config\.grpo\.reward is empty: name what scores",
        ),
        (
            "kto",
            {"kto.variant": "dpo"},
            r"config\.kto\.variant='dpo' is not one of kto, apo_zero_unpaired",
        ),
        ("kto", {"kto.undesirable_weight": 0.0}, r"config\.kto\.undesirable_weight=0\.0 must be a positive"),
        (
            "distill",
            {"distill.teacher": ""},
            r"config\.distill\.teacher is empty: name the model to learn from",
        ),
        ("distill", {"distill.teacher": "nowhere"}, r"config\.distill\.teacher='nowhere': no checkpoint in"),
        ("distill", {"distill.early_stop_kl": 0.1}, r"config\.distill\.early_stop_kl=0\.1 has no use"),
    ],
)
def test_config_errors_name_key_value_and_way_out(stage, changes, message, runs, tmp_path):
    devices = 1 if stage in ON_POLICY else 8
    with pytest.raises((ConfigError, CheckpointError, DataError), match=message):
        run(stage, runs, tmp_path, devices=devices, **changes)


def test_a_model_of_the_wrong_kind_is_named(runs, tmp_path):
    for stage in ("sft", "dpo", "ppo"):
        with pytest.raises(
            ConfigError, match=r"init_from='.*reward' is a reward model; name a language model"
        ):
            run(stage, runs, tmp_path / stage, **{"model.init_from": str(runs / "reward")})
    for stage in ("ppo", "grpo", "rloo"):
        message = rf"config\.{stage}\.reward='.*sft' is a language model; name a run of"
        with pytest.raises(ConfigError, match=message):
            run(stage, runs, tmp_path / "rm", **{f"{stage}.reward": str(runs / "sft")})
    with pytest.raises(
        ConfigError, match=r"config\.distill\.teacher='.*reward' is a reward model; name a lang"
    ):
        run("distill", runs, tmp_path / "teacher", **{"distill.teacher": str(runs / "reward")})


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
        run("ppo", runs, tmp_path / "ppo", **{"ppo.reward": str(tmp_path / "reward")})
    with pytest.raises(ConfigError, match=r"grpo\.reward='.*' has another tokenizer than config\.model.init"):
        run("grpo", runs, tmp_path / "grpo", **{"grpo.reward": str(tmp_path / "reward")})
    shutil.copytree(runs / "pretrain", tmp_path / "teacher")
    shutil.copy(model, next((tmp_path / "teacher" / "model").glob("tokenizer*.model")))
    with pytest.raises(
        ConfigError, match=r"distill\.teacher='.*' has another tokenizer than config\.model.init"
    ):
        run("distill", runs, tmp_path / "student", **{"distill.teacher": str(tmp_path / "teacher")})


@pytest.mark.slow
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
            r"reward='tiny:absent' cannot be imported .* write FILE.py:function",
        ),
        ("WORDS", ConfigError, "reward='tiny:WORDS' is not callable"),
    ],
)
def test_bad_reward_functions_are_named(name, error, message, runs, tmp_path):
    with pytest.raises(error, match=message):
        run("ppo", runs, tmp_path, **set_reward_function(name))


@pytest.mark.slow
def test_positions_beyond_the_table_are_refused(runs, tmp_path):
    learned = {"model.positions": "learned", "model.max_length": 20, "data.max_length": 20}
    run("pretrain", runs, tmp_path / "learned", **learned, num_steps=1)
    changes = {"model.init_from": str(tmp_path / "learned")} | set_reward_function("reward_function")
    with pytest.raises(
        ConfigError,
        match=r"data\.max_length=48 makes .* 48 tokens, but the position table .*init_from ends at 20;",
    ):
        run("sft", runs, tmp_path / "sft", **{"model.init_from": str(tmp_path / "learned")})
    with pytest.raises(
        ConfigError,
        match=r"max_length=16 and config\.ppo\.sampling\.max_new_tokens=8: prompt and completion .* the 20",
    ):
        run("ppo", runs, tmp_path / "ppo", **changes)


def test_an_unsupervised_file_is_named(runs, tmp_path):
    data = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "the fox"}])
    with parallel.use_mesh(parallel.make_mesh()), pytest.raises(DataError, match=r"bad\.jsonl:1: "):
        opened("sft", runs, tmp_path, **{"data.train": data})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("def f(text):\n    return 1.0\n", ConfigError, r"reward='.*reward\.py:f'.*f\(text\)"),
        (
            "def f(prompts, completions):\n    return [1.0]\n",
            RewardError,
            r"f returned 1 values for 16 completions",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_reward_functions_of_another_form_are_named(stage, code, error, message, runs, tmp_path):
    (tmp_path / "reward.py").write_text(code)
    changes = {f"{stage}.reward": f"{tmp_path}/reward.py:f"}
    with pytest.raises(error, match=message):
        run(stage, runs, tmp_path / "run", **changes)


@pytest.mark.parametrize("label", [True, False])
def test_completions_of_one_label_alone_are_refused(label, runs, tmp_path):
    rows = [{"prompt": f"{a}?", "completion": f"{b} {a}", "label": label} for a in WORDS for b in WORDS[:3]]
    data = write_jsonl(tmp_path / "one.jsonl", rows)
    missing = "undesirable" if label else "desirable"
    with pytest.raises(DataError, match=rf"one\.jsonl: \d+ .* and 0 {missing} ones: training needs both"):
        run("kto", runs, tmp_path / "run", **{"data.train": data})
