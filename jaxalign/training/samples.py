"""What a model answers to a few held-out prompts while it is trained, to be read."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data import Tokenizer, eval_batches
from jaxalign.data.items import Item
from jaxalign.data.kinds import PROMPTS
from jaxalign.data.packing import build_rows
from jaxalign.errors import ConfigError
from jaxalign.models import Params
from jaxalign.parallel.processes import fetch_whole
from jaxalign.sampling.answers import answer_text
from jaxalign.sampling.generate import SamplingConfig, generate
from jaxalign.training.open import Run

SAMPLING = SamplingConfig(max_new_tokens=128, temperature=0.0)
TEXT_PROMPT = 32  # tokens of a text that are given, where nothing in it is a prompt
# Where a row of prompts may have the answer that is asked for.
ANSWERS = ("reference", "answer", "solution", "ground_truth", "completion", "response", "output", "chosen")

Samples = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """A held-out prompt, and what stands beside it in a sample."""

    ids: np.ndarray  # int32, of the prompt
    beside: Mapping[str, Any]


def count_samples(run: Run, by_default: int, *, scalar: bool = False) -> int:
    """How many prompts are answered at an evaluation: as config.log_samples says, or the stage.

    Raises:
      ConfigError: some are asked for, and the model is a `scalar` one, or there are no held-out data.
    """
    asked = run.config.log_samples
    if asked and scalar:
        raise ConfigError(f"config.log_samples={asked}: a reward model writes no text; leave it out")
    if asked and run.held_out is None:
        raise ConfigError(
            f"config.log_samples={asked}: the prompts are those of held-out data, of which there are none; set "
            "config.data.eval or config.data.eval_fraction"
        )
    return by_default if asked is None else asked


def shares(run: Run, count: int) -> dict[str, int]:
    """How many of `count` prompts are of each evaluation set: as many of one as of another."""
    names = list(run.eval_sets)
    return {name: len(range(i, count, len(names))) for i, name in enumerate(names)}


def make_sampler(run: Run, count: int) -> Callable[[Params], Samples]:
    """Parameters -> greedy answers to the first prompts of the held-out data; reads and changes nothing else.

    Raises:
      ConfigError: see `count_samples`.
    """
    asked = list(choose_prompts(run, count)) if count else []
    if not asked:
        return lambda params: []
    slots, new = max(len(x.ids) for x in asked), SAMPLING.max_new_tokens
    _, longest = run.model.sampling_limit
    new = min(new, longest - slots)  # prompts take half at most
    prompts = [Item(x.ids, np.zeros(len(x.ids), np.float32), row) for row, x in enumerate(asked)]
    pad = run.tokenizer.pad_id
    rows = build_rows([prompts], PROMPTS, row_length=max(2, slots), max_segments=1, pad_id=pad)
    parts = run.share["num_parts"]
    (batch,) = map(run.put, eval_batches(rows, -(-len(asked) // parts) * parts, **run.share))

    def sample(params: Params) -> Samples:
        completions = generate(
            params,
            run.model,
            batch.tokens,
            batch.positions,
            batch.segment_ids,
            jax.random.key(0),
            sampling=dataclasses.replace(SAMPLING, max_new_tokens=new),
            stop_ids=run.tokenizer.eos_ids,
        )
        tokens, mask, stopped = map(fetch_whole, (completions.tokens, completions.mask, completions.stopped))
        said = [answer_text(ids[live > 0], run.tokenizer) for ids, live in zip(tokens, mask, strict=True)]
        return [
            make_sample(x, text, bool(ended))
            for x, text, ended in zip(asked, said[: len(asked)], stopped[: len(asked)], strict=True)
        ]

    return sample


def make_sample(asked: Asked, completion: str, finished: bool, **more: Any) -> dict[str, Any]:
    """One line of samples.jsonl: prompt, completion, whether it ended by itself, and what else is known."""
    beside = {name: value for name, value in asked.beside.items() if value is not None}
    return beside | {"completion": completion, "finished": finished} | more


def describe_prompt(run: Run, name: str, item: Item, prompt: np.ndarray, answer: np.ndarray | None) -> Asked:
    """A held-out prompt of the evaluation set `name`, with the answer that its row has."""
    assert run.held_out is not None
    if answer is not None:
        reference: Any = answer_text(answer, run.tokenizer)
    else:
        record = run.held_out.record(item.row)
        reference = next((record[key] for key in ANSWERS if record.get(key) is not None), None)
    beside = {"set": name or None, "row": run.held_out.where(item.row)}
    beside |= {"prompt": spell(run.tokenizer, prompt), "reference": reference}
    return Asked(prompt, beside)


def spell(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """The text of ids with the control tokens in it by their names: a prompt as the model sees it."""
    names = {number: name for name, number in tokenizer.control_ids.items()}
    out, plain = [], []
    for number in [*map(int, ids), None]:
        if number is not None and number not in names:
            plain.append(number)
            continue
        out.append(tokenizer.decode(plain))
        plain = []
        out.append(names[number] if number is not None else "")
    return "".join(out)


def choose_prompts(run: Run, count: int) -> Iterator[Asked]:
    """The first prompts of each evaluation set, in the order of the data; each record's once."""
    assert run.held_out is not None
    longest = run.model.sampling_limit[1] // 2
    left, seen = shares(run, count), set()
    for name, item in _items(run):
        if not left[name] or item.row in seen:
            continue
        prompt, answer = _cut(item)
        if len(prompt) <= longest:
            left[name] -= 1
            seen.add(item.row)
            yield describe_prompt(run, name, item, prompt, answer)


def _items(run: Run) -> Iterator[tuple[str, Item]]:
    """Every held-out item with the name of its set, in the order of the data."""
    assert run.held_out is not None
    rows = run.held_out.rows
    for name, span in run.eval_sets.items():
        for number in sorted(number for row in span for number in rows.bins[row]):
            yield name, rows.items[number]


def _cut(item: Item) -> tuple[np.ndarray, np.ndarray | None]:
    """The prompt of an item, and the answer that is learned first: the preferred one, or the first turn."""
    if not item.mask.any():
        return item.ids, None
    wins = Counter(better for better, _ in item.pairs)
    best = item.examples[wins.most_common(1)[0][0]]
    start = best.prompt_length
    if start <= 1:  # a text: nothing but its beginning stands before what is learned
        start = min(TEXT_PROMPT, max(1, len(best.ids) // 2))
    after = np.flatnonzero(best.mask[start:] == 0)
    end = start + int(after[0]) if len(after) else len(best.ids)
    return best.ids[:start], best.ids[start:end]
