"""`jaxalign generate`: a model's completions of a file of prompts, some for each, as rows to train on.

Each line of the output is one completion, in the form of the SFT stage's rows:
{"prompt", "completion", "row", "sample", "finished"}. `row` is the prompt's number in its file and `finished` says
whether the completion ended by itself. What was written is kept: the same command goes on after it.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax

from jaxalign import parallel
from jaxalign.data import DataConfig, Dataset, build_dataset, load_tokenizer
from jaxalign.data.dataset import LONGEST, fit_prompts
from jaxalign.errors import ConfigError, DataError
from jaxalign.locks import LOCK, locked
from jaxalign.sampling.answers import answer_batches
from jaxalign.sampling.generate import SamplingConfig
from jaxalign.storage import Lines, Path, claim, to_path
from jaxalign.training.saved_model import SavedModel, find_model


@dataclasses.dataclass(frozen=True)
class Request:
    """What `jaxalign generate` is asked for."""

    model: str  # a run, a Hugging Face folder or a hub name
    prompts: str  # rows with a field prompt
    out: str  # the JSONL file to write
    samples: int = 1  # completions of each prompt
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    prompt_slots: int = 0  # tokens of the longest prompt, longer ones being left out; 0: any prompt fits
    take: int = 0  # prompts to read; 0: all
    batch_size: int = 64
    seed: int = 0
    chat_template: str = ""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for flag, value in (("--n", self.samples), ("--batch-size", self.batch_size)):
            if value < 1:
                raise ConfigError(f"{flag}={value} must be at least 1")


def generate_file(request: Request) -> Iterator[str]:
    """Writes the completions that are missing in `request.out`; yields lines that say how far it is.

    Raises:
      ConfigError: the file has completions of another request, or is in use, or the model is a reward model.
    """
    out = to_path(request.out)
    with locked(out.with_name(f".{out.name}{LOCK}"), f"--out={out}"):
        yield from _write_missing(request, out)


def _write_missing(request: Request, out: Path) -> Iterator[str]:
    model = language_model(request.model, "--model")
    mesh = parallel.make_mesh(parallel.MeshConfig(data=-1), jax.devices())
    parallel.check_divides(mesh, "--batch-size", request.batch_size)
    with parallel.use_mesh(mesh):
        tokenizer = load_tokenizer(model.path, request.chat_template)
        prompts = _read_prompts(request, tokenizer)
        wanted = {
            "model": str(model.path),
            "prompts": prompts.fingerprint,
            "samples": request.samples,
            "seed": request.seed,
            "sampling": dataclasses.asdict(request.sampling),
        }
        _claim(out, wanted)
        lines = Lines(out)
        start, total = len(lines), len(prompts.rows) * request.samples
        yield f"{prompts.report}; {start} of {total} completions are there"
        config = dataclasses.replace(model.config, dtype=request.dtype)
        batches = answer_batches(
            model.load(mesh) if start < total else {},
            config,
            prompts,
            tokenizer,
            sampling=request.sampling,
            key=jax.random.key(request.seed),
            batch_size=request.batch_size,
            samples=request.samples,
            start=start,
        )
        try:
            for answers in batches:
                rows = [
                    _row(prompts, number, request.samples, text, bool(finished))
                    for number, (text, finished) in enumerate(
                        zip(answers.texts, answers.stopped, strict=True), start
                    )
                ]
                lines.append(*(json.dumps(row, ensure_ascii=False) for row in rows))
                if lines.due:
                    lines.flush()
                start += len(rows)
                yield f"{start} of {total}"
        finally:
            lines.flush()


def language_model(path: str, flag: str) -> SavedModel:
    """The model that a flag names.

    Raises:
      ConfigError: it is a reward model.
    """
    model = find_model(path, flag)
    if model.scalar:
        raise ConfigError(f"{flag}={path} is a reward model; name a language model")
    return model


def _read_prompts(request: Request, tokenizer: Any) -> Dataset:
    slots = request.prompt_slots or LONGEST
    data = DataConfig(eval=request.prompts, take=request.take, max_length=slots, row_length=slots)
    prompts = build_dataset(data, tokenizer, "prompt", "eval")
    return prompts if request.prompt_slots else fit_prompts(prompts)


def _row(prompts: Dataset, number: int, samples: int, text: str, finished: bool) -> dict[str, Any]:
    row = prompts.rows.items[number // samples].row
    prompt = prompts.record(row)["prompt"]
    return completion_row(prompt, text) | {"row": row, "sample": number % samples, "finished": finished}


def completion_row(prompt: Any, text: str) -> dict[str, Any]:
    """A prompt, text or messages, and the text of its completion in the same form."""
    completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    return {"prompt": prompt, "completion": completion}


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


@dataclasses.dataclass(frozen=True)
class Completion:
    """A row of a file of completions."""

    fields: dict[str, Any]  # "prompt", "completion", and any others
    where: str  # file:line


def read_completions(path: str) -> list[list[Completion]]:
    """The rows of a file by `generate_file` (or like it), those of one prompt together.

    Raises:
      DataError: a row without "prompt" and "completion", or no row at all.
    """
    groups: dict[str, list[Completion]] = {}
    try:
        lines = to_path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; write the file of completions") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict) or not {"prompt", "completion"} <= row.keys():
            raise DataError(
                f'{path}:{number}: needs the fields "prompt" and "completion", as generate writes'
            )
        prompt = json.dumps(row["prompt"], sort_keys=True)
        groups.setdefault(prompt, []).append(Completion(row, f"{path}:{number}"))
    if not groups:
        raise DataError(f"{path}: holds no completions")
    return list(groups.values())
