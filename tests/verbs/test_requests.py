"""Requests: flags, help and errors are made from the fields of one dataclass."""

import dataclasses
import inspect
import re
import shlex

import pytest

from jaxalign.cli import main, usage
from jaxalign.errors import ConfigError
from jaxalign.fields import DOC
from jaxalign.verbs import VERBS, load_verb
from jaxalign.verbs.chat import ChatRequest
from jaxalign.verbs.evaluate import EvaluateRequest
from jaxalign.verbs.generate import GenerateRequest
from jaxalign.verbs.label import LabelRequest
from jaxalign.verbs.requests import ConfigRequest, Request, flag, help_text, synopsis
from jaxalign.verbs.tokenizer import TokenizerRequest
from jaxalign.verbs.train import TrainRequest

GENERATE = ["--model=m", "--prompts=p", "--out=o"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_every_flag_exactly_once(verb, capsys):
    _, request = load_verb(verb)
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and " ".join(text.split()).find(inspect.getdoc(request).split("\n")[0]) > 0
    listed = re.findall(r"^  (--[\w-]+)(?==|$| )", text, re.MULTILINE)
    fields = [each for each in dataclasses.fields(request) if DOC in each.metadata]
    wanted = [request.key(each.name) for each in fields if not each.metadata.get("place")]
    assert sorted(listed) == sorted([*wanted, "--help"])
    assert ("--config.KEY=VALUE" in text) == issubclass(request, ConfigRequest)
    assert max(map(len, text.splitlines())) <= 110
    assert " ".join(text.split()).startswith(f"usage: jaxalign {synopsis(verb, request)}")
    (example,) = re.findall(rf"^ +jaxalign ({verb}\b.*)$", text, re.MULTILINE)[:1]
    assert request.parse(shlex.split(example)[1:])


def test_usage_has_every_verb():
    text = usage()
    for verb in VERBS:
        assert len(re.findall(rf"^  {verb} +[A-Z]", text, re.MULTILINE)) == 1
    train, label = (synopsis(verb, load_verb(verb)[1]) for verb in ("train", "label"))
    assert train == "train --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...] [FLAGS]"
    assert "(--reward=MODULE:FUNCTION | --reward-model=SRC | --world=FILE)" in label


def test_every_verb_takes_its_request_and_returns_a_code():
    for verb in VERBS:
        module, request = load_verb(verb)
        (parameter,) = inspect.signature(module.run).parameters.values()
        assert parameter.annotation is request and inspect.signature(module.run).return_annotation is int


def test_flags_become_fields_of_their_type():
    flags = ["--n=3", "--temperature", "0.5", "-top-k=7", "--max-new-tokens=9"]
    request = GenerateRequest.parse([*GENERATE, *flags])
    assert request == GenerateRequest(
        model="m", prompts="p", out="o", n=3, temperature=0.5, top_k=7, max_new_tokens=9
    )
    assert (request.sampling.max_new_tokens, request.sampling.top_k, request.batch_size) == (9, 7, 64)
    assert GenerateRequest.parse([*GENERATE, "--out=last"]).out == "last"
    assert GenerateRequest.parse(GENERATE).max_new_tokens == 256
    assert EvaluateRequest.parse(["--model=m", "--prompts=p", "--reward=a:b"]).max_new_tokens == 64


@pytest.mark.parametrize(
    ("cls", "argv", "said"),
    [
        (GenerateRequest, [*GENERATE, "--n=two"], "--n=two must be a whole number"),
        (GenerateRequest, [*GENERATE, "--temperature=hot"], "--temperature=hot must be a number"),
        (GenerateRequest, [*GENERATE, "--temperature=-1"], "--temperature=-1.0 must be 0 (greedy) or positive"),
        (GenerateRequest, [*GENERATE, "--n=0"], "--n=0 must be at least 1"),
        (GenerateRequest, [*GENERATE, f"--seed={2**32}"],
         "--seed=4294967296 must be at least 0 and below 4294967296"),
        (GenerateRequest, [*GENERATE, "--dtype=float23"], "--dtype='float23' is not one of float32, bfloat16, "),
        (GenerateRequest, GENERATE[1:], "--model=SRC is missing: a run, RUN@STEP, RUN@best or RUN@latest of its "
         "checkpoints, a Hugging Face folder or a hub name"),
        (GenerateRequest, [*GENERATE, "--promts=x"], "--promts=x is not a flag; did you mean --prompts?"),
        (GenerateRequest, [*GENERATE, "--max-new=5"], "--max-new=5 is not a flag; did you mean --max-new-tokens?"),
        (GenerateRequest, [*GENERATE, "x"], "'x' is not a flag; the flags are --model, --prompts, --out, --n,"),
        (GenerateRequest, [*GENERATE, "--seed"], "--seed: expected one argument"),
        (GenerateRequest, [*GENERATE, "--config.seed=1"], "--config.seed=1 is not a flag"),
        (TokenizerRequest, ["--data=d", "--out=o", "--type=bpee"], "--type='bpee' is not one of bpe, unigram; did"),
        (TrainRequest, ["--config=sft", "--wrokdir=w"], "--wrokdir=w is not a flag; did you mean --workdir?"),
        (TrainRequest, ["--config=sft"], "--workdir=DIR is missing: the folder for checkpoints"),
        (TrainRequest, ["--workdir=w"], "--config=FILE is missing: a config file, or the name of one"),
        (LabelRequest, ["--completions=c", "--out=o"], "give one of --reward, --reward-model, --world; none is giv"),
        (LabelRequest, ["--completions=c", "--out=o", "--reward=a:b", "--world=w"], "give one of --reward, --reward-"),
        (LabelRequest, ["--completions=c", "--out=o", "--reward=a:b", "--noise=1", "--pairs=ranking"],
         "--noise=1.0 must be 0 with --pairs=ranking"),
        (ChatRequest, ["--model=m", "--plain", "--system=be brief"], "--system=be brief: a text that is"),
    ],
)  # fmt: skip
def test_flags_that_cannot_work_are_named(cls, argv, said, capsys):
    with pytest.raises(ConfigError) as refused:
        cls.parse(argv)
    assert str(refused.value).startswith(said)
    verb = cls.__name__.removesuffix("Request").lower()
    assert main([verb, *argv]) == 2
    assert capsys.readouterr().err.startswith(f"jaxalign {verb}: {said}")


def test_all_flags_that_are_none_are_told_at_once():
    argv = ["--config=sft", "--workdir=w", "--learning_rate", "1e-5", "--dataset=p.jsonl", "--frob"]
    with pytest.raises(ConfigError) as refused:
        TrainRequest.parse(argv)
    assert str(refused.value).splitlines() == [
        "--learning_rate is not a flag; did you mean --config.optimizer.learning_rate=1e-5?",
        "  --dataset=p.jsonl is not a flag; did you mean --config.data.train=p.jsonl?",
        "  --frob is not a flag; the flags are --config, --workdir, --dry-run, --profile, --debug-nans, --print-config",
    ]


def test_a_request_made_by_a_program_is_checked_under_the_same_names():
    with pytest.raises(ConfigError, match=r"^--top-p=0\.0 must be above 0 and at most 1"):
        GenerateRequest(model="m", prompts="p", out="o", top_p=0.0)
    with pytest.raises(ConfigError, match=r"^--workdir=DIR is missing"):
        TrainRequest(config="sft")
    assert TrainRequest(config="sft", print_config=True).read().stage == "sft"


def test_settings_of_a_config_are_read_however_they_are_written():
    argv = ["--config", "sft", "--config.seed", "7", "-config.batch_size=4", "--workdir", "w"]
    request = TrainRequest.parse(argv)
    assert request.settings == ("--config.seed=7", "--config.batch_size=4") and request.workdir == "w"
    values = request.read()
    assert (values.seed, values.batch_size) == (7, 4)
    by_hand = TrainRequest(config="sft", workdir="w", settings=("--config.seed=7", "--config.batch_size=4"))
    assert by_hand == request


def test_a_verb_of_ones_own_is_a_dataclass():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CountRequest(Request):
        """Count words."""

        in_: str = flag("the file", show="FILE")
        most_words: int | None = flag("stop there", default=None, at_least=1)
        loud: bool = flag("say each", default=False)

    request = CountRequest.parse(["--in=f", "--loud"])
    assert (request.in_, request.most_words, request.loud) == ("f", None, True)
    assert CountRequest.parse(["--in=f", "--most-words=3"]).most_words == 3
    assert help_text("count", CountRequest).splitlines()[:5] == [
        "usage: jaxalign count --in=FILE [FLAGS]",
        "",
        "Count words.",
        "",
        "  --in=FILE                   the file (required)",
    ]
