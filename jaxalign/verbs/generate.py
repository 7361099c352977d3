"""`jaxalign generate`: a model's completions of a file of prompts, some for each, as rows to train on.

Each line of the output is one completion, in the form of the SFT stage's rows:
{"prompt", "completion", "row", "sample", "finished"}. `row` is the prompt's number in its file and `finished` says
whether the completion ended by itself. What was written is kept: the same command goes on after it.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxalign import parallel
from jaxalign.data import Dataset
from jaxalign.data.values import TOOLS
from jaxalign.errors import ConfigError
from jaxalign.evaluation.generation import read_prompts
from jaxalign.fields import like
from jaxalign.locks import LOCK, locked
from jaxalign.sampling.answers import answer_batches
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.storage import Lines, Path, claim, json_line, to_path
from jaxalign.streams import say
from jaxalign.training.saved_model import find_language_model, fingerprint
from jaxalign.verbs.requests import flag
from jaxalign.verbs.rows import SOURCES, RowsRequest, write_beside
from jaxalign.verbs.sampling import MODEL, SamplingRequest


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateRequest(SamplingRequest, RowsRequest):
    """Write N completions of every prompt, as rows for SFT or for `label`. Goes on where it was stopped.

    jaxalign generate --model=runs/sft --prompts=prompts.jsonl --out=completions.jsonl --n=4
    """

    model: str = flag(MODEL, show="SRC")
    prompts: str = flag(SOURCES, show="SRC")
    out: str = flag("the JSONL file to write, or to go on with", show="FILE.jsonl")
    n: int = flag("completions of each prompt", default=1, at_least=1)
    take: int = flag("only the first N prompts; 0: all", default=0, at_least=0)
    prompt_slots: int = flag("leave out prompts of more tokens; 0: none", default=0, at_least=0)
    batch_size: int = flag("completions at a time", default=64, at_least=1)
    max_new_tokens: int = like(SamplingConfig, "max_new_tokens", default=256)


def run(request: GenerateRequest) -> int:
    """Writes the completions, and prints how far it is."""
    for line in generate(request):
        say(line)
    return 0


def generate(request: GenerateRequest) -> Iterator[str]:
    """Writes the completions that are missing in `request.out`; yields lines that say how far it is.

    Raises:
      ConfigError: the file has completions of another request, or is in use, or the model is a reward model.
    """
    out = to_path(request.out)
    with locked(out.with_name(f".{out.name}{LOCK}"), f"--out={out}"):
        yield from _write_missing(request, out)


def _write_missing(request: GenerateRequest, out: Path) -> Iterator[str]:
    model = find_language_model(request.model, "--model")
    mesh = parallel.make_mesh(parallel.MeshConfig(data=-1), jax.devices())
    parallel.check_divides(mesh, "--batch-size", request.batch_size)
    with parallel.use_mesh(mesh):
        tokenizer = model.tokenizer(request.chat_template, request.template_args)
        prompts = _read_prompts(request, tokenizer)
        params = model.load(mesh)
        wanted = {
            "model": str(model.place),
            "weights": fingerprint(params),  # the run there may have gone on since
            "dtype": request.dtype,
            "prompts": prompts.fingerprint,
            "samples": request.n,
            "seed": request.seed,
            "sampling": dataclasses.asdict(request.sampling),
        }
        _claim(out, wanted)
        lines = Lines(out)
        start, total = len(lines), len(prompts.rows) * request.n
        yield f"{prompts.report}; {start} of {total} completions are there"
        if left_out := write_beside(out, prompts.invalid):
            yield left_out
        config = dataclasses.replace(model.config, dtype=request.dtype)
        batches = answer_batches(
            params,
            config,
            prompts,
            tokenizer,
            sampling=request.sampling,
            key=jax.random.key(request.seed),
            batch_size=request.batch_size,
            samples=request.n,
            start=start,
        )
        try:
            for answers in batches:
                rows = [
                    _row(prompts, number, request.n, text, bool(finished))
                    for number, (text, finished) in enumerate(
                        zip(answers.texts, answers.stopped, strict=True), start
                    )
                ]
                lines.append(*(json_line(row).removesuffix("\n") for row in rows))
                if lines.due:
                    lines.flush()
                start += len(rows)
                yield f"{start} of {total}"
        finally:
            lines.flush()


def _read_prompts(request: GenerateRequest, tokenizer: Any) -> Dataset:
    with request.named(eval="--prompts", max_length="--prompt-slots"):
        data = request.data_config(request.prompts, take=request.take)
        return read_prompts(data, tokenizer, slots=request.prompt_slots)


def _row(prompts: Dataset, number: int, samples: int, text: str, finished: bool) -> dict[str, Any]:
    row = prompts.rows.items[number // samples].row
    record = prompts.record(row)
    made = completion_row(record["prompt"], text, record)
    return made | {"row": row, "sample": number % samples, "finished": finished}


def completion_row(prompt: Any, text: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt, text or messages, and the text of its completion in the same form; with the tools of its row."""
    completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    tools = {name: row[name] for name in TOOLS if row.get(name)}
    return {"prompt": prompt, "completion": completion, **tools}


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Raises ConfigError unless what `out` holds is of this very request."""
    beside = out.with_name(out.name + ".request.json")
    if out.exists() and not beside.is_file():
        raise ConfigError(f"--out={out} exists and is not by this command; name another file")
    request = json.loads(json.dumps(request))  # tuples as the lists that JSON makes of them
    found = claim(beside, request, f"delete it and {out.name}, or name another --out")
    if found != request:
        keys = [key for key in request if request[key] != found.get(key)]
        raise ConfigError(
            f"--out={out} holds completions of a request with another {', '.join(keys)}; name another file, or "
            f"delete it and {beside.name}"
        )
