"""The command line: `jaxalign VERB ...`."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from jaxalign import signals
from jaxalign.errors import JaxalignError
from jaxalign.streams import unbroken_output

USAGE = """usage: jaxalign VERB ...

  quickstart [--workdir=DIR] [--seed=N] [--fast]
      Pretrain, fine-tune and align a small model in a synthetic world, by every method, and report. No download.

  train --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]
      Run one stage. Goes on from the latest checkpoint in DIR. Config files: configs/*.py; --print-config in place of
      --workdir shows every key with its value, and starts nothing. On several hosts, run the same on each: SLURM and
      TPU hosts find each other; on others set JAXALIGN_COORDINATOR=HOST:PORT (of process 0), JAXALIGN_NUM_PROCESSES=N
      and JAXALIGN_PROCESS_ID=0..N-1.

  audit --config=FILE[:ARG] [--config.KEY=VALUE ...] [--show=N] [--json=FILE]
      Show what a stage will really be trained on, token by token, and check it. Exit code 1: do not train on it.

  plan --config=FILE[:ARG] --topology=CHIP:SHAPE [--config.KEY=VALUE ...] [--json=FILE] [--search]
      Compile every step of a stage for a TPU slice, without one: memory, time and traffic of a chip, and whether it
      fits. Config files take a published model as ARG: configs/dpo.py:llama3_1_8b. Exit code 1: it does not fit.

  evaluate --model=SRC --prompts=FILE --reward=MODULE:FUNCTION [--reference=SRC] [--base=SRC] [--take=N] ...
      Sample an answer to every prompt; print mean reward, KL from the reference, perplexity under the base, length.

  tokenizer --data=FILE --out=FILE.model [--vocab=N] [--type=bpe|unigram]
      Train a SentencePiece tokenizer on rows {"text": ...}.

  generate --model=SRC --prompts=FILE --out=FILE.jsonl [--n=N] [--temperature=T] [--max-new-tokens=N] ...
      Write N completions of every prompt, as rows for SFT or for `label`. Goes on where it was stopped.

  label --completions=FILE --out=FILE.jsonl (--reward=MODULE:FUNCTION | --reward-model=SRC | --world=FILE)
      Score completions and write preference pairs (or rankings): data for on-policy and iterative DPO.

  chat --model=SRC [--other=SRC] [--system=TEXT] [--plain]
      Talk to a model in the terminal, or to two side by side.

  convert --from=SRC --out=DIR --to=hf|jaxalign [--dtype=float32|bfloat16|float16] [--max-shard-size=5GB]
      Write a model in Hugging Face's format, or from it. SRC: a run, a Hugging Face folder, or a hub name.

  version
"""


@unbroken_output()
def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 1 for a deliberate error or a problem that `audit` found, 2 for bad usage,
    75 when stopped by a signal, 130 when interrupted with nothing saved. A run that hangs ends itself with 70.
    """
    argv = sys.argv[1:] if argv is None else argv
    verb, rest = (argv[0], argv[1:]) if argv else ("help", [])
    verbs = {
        "quickstart": _quickstart,
        "train": _train,
        "audit": _audit,
        "plan": _plan,
        "evaluate": _evaluate,
        "tokenizer": _tokenizer,
        "generate": _generate,
        "label": _label,
        "chat": _chat,
        "convert": _convert,
        "version": _version,
    }
    if verb in ("help", "-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if verb not in verbs:
        print(f"jaxalign: unknown verb {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    resumable = verb in ("quickstart", "train")
    try:
        with signals.leaving_at_once(verb) if resumable else contextlib.nullcontext():
            return _run(verb, verbs[verb], rest)
    except KeyboardInterrupt:
        print(f"jaxalign {verb}: interrupted", file=sys.stderr)
        return 130  # what a shell says of a program that Ctrl-C ended


def _run(verb: str, function: Callable[[list[str]], int | None], argv: list[str]) -> int:
    # Imports take seconds: usage errors should not have to wait for them.
    import jax

    from jaxalign.training.loop import Stopped

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        code = function(argv)
    except JaxalignError as error:
        print(f"jaxalign {verb}: {error}", file=sys.stderr)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"jaxalign {verb}: out of memory on a device ({str(error).splitlines()[0]}); take shorter rows "
            "(config.data.max_length and row_length) or fewer (config.batch_size), cut batches into slices "
            "(config.num_microbatches), or split the model (config.mesh.fsdp); jaxalign plan says what a step takes",
            file=sys.stderr,
        )
        return 1
    except Stopped as stopped:
        print(f"jaxalign {verb}: {stopped}; run the same command to go on", file=sys.stderr)
        return signals.TRY_AGAIN
    return code or 0


@contextlib.contextmanager
def _no_early_end() -> Iterator[None]:
    """Makes an error of a sys.exit() in what is called: exit code 0 shall mean that there is a model.

    Raises:
      JaxalignError: names the place.
    """
    try:
        yield
    except SystemExit as error:
        if error.code:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise JaxalignError(
            f"{place.filename}:{place.lineno} ended the program before its end (sys.exit); remove that call, or let "
            "it give an exit code other than 0"
        ) from error


def _quickstart(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign quickstart")
    parser.add_argument(
        "--workdir", help="folder for everything (default: quickstart, or quickstart-fast with --fast)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="a smoke version; its numbers mean nothing")
    args = parser.parse_args(argv)
    import jax

    from jaxalign.quickstart.pipeline import quickstart

    if args.fast:  # which would otherwise spend most of its minute on compiling well what runs briefly
        jax.config.update("jax_disable_most_optimizations", True)
    workdir = args.workdir or ("quickstart-fast" if args.fast else "quickstart")
    with _no_early_end():
        quickstart(workdir, fast=args.fast, seed=args.seed)


@_no_early_end()
def _train(argv: list[str]) -> None:
    if "--help" in argv or "-h" in argv:
        print(USAGE)
        return
    import jax

    from jaxalign.config import parse_flags
    from jaxalign.parallel import processes
    from jaxalign.stages import parse_config, train
    from jaxalign.training.loop import summarize
    from jaxalign.training.open import settings
    from jaxalign.training.progress import print_summary

    if "--print-config" in argv:
        rest = [arg for arg in argv if arg != "--print-config"]
        config = parse_config(parse_flags([*rest, "--workdir="])[0])
        for name, value in settings(config).items():
            if value is None:
                print(f"# {name} is not set")
            else:
                print(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
        return
    values, workdir = parse_flags(argv)
    config = parse_config(values)
    processes.initialize()
    summary = train(config, workdir)
    if jax.process_index() > 0:
        return
    print_summary(
        [{"metric": name, "value": f"{x:.6g}"} for name, x in summarize(summary).items()],
        title=f"{summary['stage']}: {summary['steps']} steps in {summary['seconds']} s",
    )


def _audit(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("jaxalign audit", allow_abbrev=False)
    parser.add_argument("--show", type=int, default=3, help="sequences to print token by token (default: 3)")
    parser.add_argument("--json", help="write all numbers here")
    args, rest = parser.parse_known_args(argv)
    import jax
    from rich.console import Console

    from jaxalign.config import parse_flags
    from jaxalign.stages import parse_config
    from jaxalign.verbs.audit import audit, write_json
    from jaxalign.verbs.audit_page import print_audit

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and accelerators may be busy
    found = audit(parse_config(parse_flags(rest, workdir=False)[0]))
    print_audit(found, Console(), args.show)
    if args.json:
        write_json(found, args.json)
    return 1 if found.problems else 0


def _plan(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("jaxalign plan", allow_abbrev=False)
    parser.add_argument(
        "--topology", required=True, help="v5p:4x4x4, 2*v5e:16x16, or h200:8 (estimates only)"
    )
    parser.add_argument(
        "--search", action="store_true", help="try mesh shapes, microbatches and remat policies"
    )
    parser.add_argument("--budget", type=int, default=6, help="programs that --search compiles (default: 6)")
    parser.add_argument("--json", help="write all numbers here")
    args, rest = parser.parse_known_args(argv)
    # Before libtpu is loaded: nothing is run, so no TPU is looked for, and one that is here stays free.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    import jax
    from rich.console import Console

    from jaxalign.config import parse_flags
    from jaxalign.plan.report import print_plan
    from jaxalign.stages import parse_config
    from jaxalign.verbs.plan import run_plan, write_json

    jax.config.update("jax_platforms", "cpu")
    # What is compiled for devices elsewhere could not be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    config = parse_config(parse_flags(rest, workdir=False)[0])
    found = run_plan(config, args.topology, search=args.search, budget=args.budget)
    print_plan(found, Console())
    if args.json:
        write_json(found, args.json)
    return 0 if all(step["fits"] for step in found["steps"]) else 1


def _evaluate(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign evaluate")
    parser.add_argument("--model", required=True, help="a run, a Hugging Face folder or a hub name")
    parser.add_argument("--prompts", required=True, help="rows with a field prompt, text or messages")
    parser.add_argument(
        "--reward", required=True, help="a reward function, module:function or FILE.py:function"
    )
    parser.add_argument("--reference", help="measure KL from this model, as --model")
    parser.add_argument(
        "--base", help="measure perplexity of the answers by this model (default: --reference)"
    )
    parser.add_argument("--take", type=int, default=0, help="only the first N prompts")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--prompt-slots", type=int, default=64, help="tokens of the longest prompt; longer: left out"
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write the answers here, JSONL")
    args = parser.parse_args(argv)
    from jaxalign.verbs.evaluate import evaluate_run, report_lines

    for line in report_lines(evaluate_run(args)):
        print(line)


def _tokenizer(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign tokenizer")
    parser.add_argument("--data", required=True, help="rows with a field text")
    parser.add_argument("--out", required=True, help="the .model file to write")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--type", choices=("bpe", "unigram"), default="bpe")
    args = parser.parse_args(argv)
    from jaxalign.data import read_records, train_sentencepiece
    from jaxalign.data.records import parse_record

    records = read_records(args.data)
    texts = (parse_record(row, "text", records.where(i)).text for i, row in enumerate(records))
    tokenizer = train_sentencepiece(texts, args.out, args.vocab, args.type)
    print(f"{args.out}: {tokenizer.vocab_size} pieces")


def _convert(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign convert")
    parser.add_argument(
        "--from", dest="source", required=True, help="a run, a Hugging Face folder or a hub name"
    )
    parser.add_argument("--out", required=True, help="the folder to write; must not exist, or be empty")
    parser.add_argument("--to", required=True, choices=("hf", "jaxalign"))
    parser.add_argument(
        "--dtype", default="", help="of the tensors (default: as the model came, else float32)"
    )
    parser.add_argument("--max-shard-size", default="5GB", help="of a safetensors file")
    parser.add_argument("--architecture", default="", help="of config.json (default: as the model came)")
    args = parser.parse_args(argv)
    import jax

    from jaxalign.verbs.convert import convert

    jax.config.update("jax_platforms", "cpu")  # nothing is computed, and accelerators may be busy
    for notice in convert(
        args.source,
        args.out,
        args.to,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        architecture=args.architecture,
    ):
        print(notice)
    print(f"{args.out}: written")


def _sampling_flags(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chat-template", default="", help="Jinja file (default: the model's own)")
    parser.add_argument("--dtype", default="float32", help="of the computation")


def _sampling(args: argparse.Namespace) -> Any:
    from jaxalign.sampling.generate import SamplingConfig

    return SamplingConfig(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.min_p)


def _generate(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign generate")
    parser.add_argument("--model", required=True, help="a run, a Hugging Face folder or a hub name")
    parser.add_argument("--prompts", required=True, help="rows with a field prompt")
    parser.add_argument("--out", required=True, help="the JSONL file to write, or to go on with")
    parser.add_argument("--n", type=int, default=1, help="completions of each prompt")
    parser.add_argument("--take", type=int, default=0, help="only the first N prompts")
    parser.add_argument("--prompt-slots", type=int, default=0, help="leave out prompts of more tokens")
    parser.add_argument("--batch-size", type=int, default=64, help="completions at a time")
    _sampling_flags(parser, 256)
    args = parser.parse_args(argv)
    from jaxalign.verbs.generate import Request, generate_file

    request = Request(
        model=args.model,
        prompts=args.prompts,
        out=args.out,
        samples=args.n,
        sampling=_sampling(args),
        prompt_slots=args.prompt_slots,
        take=args.take,
        batch_size=args.batch_size,
        seed=args.seed,
        chat_template=args.chat_template,
        dtype=args.dtype,
    )
    for line in generate_file(request):
        print(line, flush=True)


def _label(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign label")
    parser.add_argument(
        "--completions", required=True, help="rows with prompt and completion, as generate writes"
    )
    parser.add_argument("--out", required=True, help="the JSONL file to write")
    judges = parser.add_mutually_exclusive_group(required=True)
    judges.add_argument("--reward", help="a reward function, module:function or FILE.py:function")
    judges.add_argument("--reward-model", help="a run of the reward stage, or a sequence classifier")
    judges.add_argument("--world", help="a quickstart's data/world.json: its judge")
    parser.add_argument("--pairs", default="best-worst", help="best-worst of each prompt, all, or ranking")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="temperature of Bradley-Terry labels; 0: none"
    )
    parser.add_argument("--max-length", type=int, default=1024, help="tokens a reward model reads")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="packed rows that it reads, or completions that a function is given, at a time",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from jaxalign.verbs.label import function_scorer, judge_scorer, label_file, model_scorer

    if args.reward:
        scorer = function_scorer(args.reward, batch_size=args.batch_size)
    elif args.world:
        scorer = judge_scorer(args.world)
    else:
        scorer = model_scorer(args.reward_model, max_length=args.max_length, batch_size=args.batch_size)
    made = label_file(
        args.completions, args.out, scorer, pairing=args.pairs, noise=args.noise, seed=args.seed
    )
    print(
        f"{args.out}: {len(made.rows)} rows from {made.prompts} prompts; {made.without} prompts gave none (fewer than "
        f"two different completions, or equal scores); {made.empty} empty completions and {made.cut} completions "
        f"without an end left out; mean score {made.mean:.4f}"
    )


def _chat(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("jaxalign chat")
    parser.add_argument("--model", required=True, help="a run, a Hugging Face folder or a hub name")
    parser.add_argument("--other", help="a second model, to answer beside the first")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--plain", action="store_true", help="continue texts, for models that know no chat")
    _sampling_flags(parser, 512)
    args = parser.parse_args(argv)
    from jaxalign.verbs.chat import chat

    chat(
        [args.model] + ([args.other] if args.other else []),
        sampling=_sampling(args),
        system=args.system,
        plain=args.plain,
        seed=args.seed,
        chat_template=args.chat_template,
        dtype=args.dtype,
    )


def _version(argv: list[str]) -> None:
    import jax

    import jaxalign

    print(
        f"jaxalign {jaxalign.__version__}, jax {jax.__version__}, {jax.default_backend()} x {jax.device_count()}"
    )


if __name__ == "__main__":
    sys.exit(main())
