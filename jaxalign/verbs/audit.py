"""What a model will really be trained on, measured before training: `jaxalign audit`.

Reads tokenizer, architecture and data of a config as training does, and no weights.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxalign.data import Dataset, Tokenizer, build_datasets
from jaxalign.data.dataset import find_template
from jaxalign.data.encode import DEFAULT, Reading, encode_prompt
from jaxalign.data.invalid import BadRow
from jaxalign.data.items import Item
from jaxalign.data.kinds import PROMPTS, TEXT
from jaxalign.data.overlap import ALSO_IN_EVAL, HELD_OUT, KEYS, by_record, prompt_key, sequence_key
from jaxalign.data.records import Chat, Prompt, Record, Turns, parse_record
from jaxalign.errors import amount
from jaxalign.stages import parse_config
from jaxalign.storage import to_path, write_whole
from jaxalign.streams import say
from jaxalign.text.templates import ChatTemplate
from jaxalign.text.tokenizer import unknown_id
from jaxalign.training.config import Config
from jaxalign.training.open import open_inputs
from jaxalign.verbs.requests import ConfigRequest, flag
from jaxalign.verbs.rows import write_beside

MOST_UNKNOWN = 0.01  # share of tokens
MOST_DROPPED = 0.5  # share of records
CONTEXTS_CHECKED = 1000  # records, rendered once more
BINS = 10
SHOWN = 3  # rows that cannot be used


@dataclasses.dataclass(frozen=True)
class Audit:
    """The numbers, as JSON has them, what is wrong in them, and the data they are of."""

    numbers: dict[str, Any]
    problems: list[str]
    notes: list[str]
    tokenizer: Tokenizer
    train: Dataset
    invalid: tuple[BadRow, ...] = ()  # rows of both parts that cannot be used and are left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditRequest(ConfigRequest):
    """Show what a stage will really be trained on, token by token, and check it. Exit code 1: do not train on it.

    jaxalign audit --config=sft --config.data.train=mine.jsonl --config.model.init_from=MODEL
    """

    show: int = flag("sequences to print token by token", default=3, at_least=0)
    json: str = flag("write all numbers here", default="", show="FILE")


def run(request: AuditRequest) -> int:
    """Prints what there is, and returns 1 on a problem."""
    from jaxalign.verbs.audit_page import print_audit  # which imports this file

    # Nothing is computed, and accelerators may be busy.
    jax.config.update("jax_platforms", "cpu")
    found = audit(parse_config(request.read()))
    print_audit(found, Console(), request.show)
    if request.json:
        write_json(found, request.json)
        if written := write_beside(to_path(request.json), found.invalid):
            say(written)
    return 1 if found.problems else 0


def audit(config: Config) -> Audit:
    """Measure the data of a config.

    Raises:
      ConfigError, DataError, CheckpointError: as at the beginning of training.
    """
    inputs = open_inputs(config)
    data, kind, tokenizer = inputs.config.data, config.stage.data, inputs.tokenizer
    # What overlap="error" refuses is to be counted here, among all else.
    counted = dataclasses.replace(data, overlap="allow" if data.overlap == "error" else data.overlap)
    train, held_out = build_datasets(counted, tokenizer, kind)
    template = find_template(data, tokenizer)
    reading = Reading(data.learn, data.control_tokens)
    parts = {"train": train} | ({"eval": held_out} if held_out else {})
    numbers = {
        "stage": config.stage.name,
        "kind": kind,
        "tokenizer": data.tokenizer,
        "fields": data.fields,
        "max_length": data.max_length,
        **{part: measure(dataset, kind, tokenizer, data.max_length) for part, dataset in parts.items()},
        "overlap": {"rule": data.overlap, "train_records": _overlap(train, held_out, data.overlap_by)},
        "contexts": check_contexts(train, kind, tokenizer, template, reading),
    }
    invalid = train.invalid + (held_out.invalid if held_out else ())
    notes = find_notes(numbers)
    if invalid:
        first = "; ".join(f"{row.where}: {row.problem}" for row in invalid[:SHOWN])
        notes.append(
            f"{amount(len(invalid), 'row')} left out by config.data.invalid='drop', the first at {first}"
        )
    return Audit(numbers, find_problems(numbers), notes, tokenizer, train, invalid)


def measure(dataset: Dataset, kind: str, tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """The numbers of one dataset; token counts are those of all its sequences, each once."""
    report, groups = dataset.report, by_record(dataset.rows.items)
    sequences = [example for item in dataset.rows.items for example in item.own]
    unknown = unknown_id(tokenizer)
    unknowns = sum(int((example.ids == unknown).sum()) for example in sequences)
    lengths = np.array([len(example.ids) for example in sequences])
    return {
        "records": {
            "read": report.read,
            "kept": report.kept,
            "dropped": dict(report.dropped),
            "truncated": report.truncated,
            "split": report.split,
        },
        "unread": _by_source(report.unread),
        "remarks": dict(report.remarks),
        "sequences": len(sequences),
        "tokens": report.tokens,
        "supervised": report.supervised,
        "supervised_share": report.supervised / report.tokens,
        "unknown": {"tokens": unknowns, "share": unknowns / report.tokens},
        "bos": check_bos(groups.values(), tokenizer.bos_id, tokenizer.eos_ids),
        "eos": check_eos(dataset, groups.values(), tokenizer.eos_ids, max_length, report.truncated),
        "duplicates": {
            "sequences": _repeats([sequence_key(items) for items in groups.values()]),
            "prompts": _repeats([prompt_key(items) for items in groups.values()]),
        },
        "lengths": _histogram(lengths),
        "packing": {
            "rows": len(dataset.rows),
            "row_length": dataset.rows.row_length,
            "efficiency": dataset.rows.efficiency,
        },
        "fingerprint": dataset.fingerprint,
    }


def _by_source(unread: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Of each source the fields that nothing is made from, with the number of rows that have them."""
    found: dict[str, dict[str, int]] = {}
    for (source, name), count in unread.items():
        found.setdefault(source, {})[name] = count
    return found


def check_bos(
    records: Iterable[Sequence[Item]], bos: int | None, eos_ids: tuple[int, ...]
) -> dict[str, int | None]:
    """Sequences without BOS at their start, and with another one; later chunks of a text have none."""
    missing = doubled = 0
    if bos is None:
        return {"id": None, "missing": 0, "doubled": 0}
    for items in records:
        for chunk, item in enumerate(items):
            opens = chunk == 0 or item.desirable is not None  # both answers of a pair, judged one by one
            for example in item.own:
                missing += int(opens and example.ids[0] != bos)
                doubled += int(_extra_bos(example, bos, eos_ids, opens))
    return {"id": bos, "missing": missing, "doubled": doubled}


def _extra_bos(example: Item, bos: int, eos_ids: tuple[int, ...], opens: bool) -> bool:
    if bos in eos_ids:  # then later ones may be ends of turns
        return opens and example.ids[:2].tolist() == [bos, bos]
    # Llama 2's template writes it where a turn has ended, too.
    later = np.flatnonzero(example.ids == bos)
    later = later[later > 0] if opens else later
    return any(at == 0 or example.ids[at - 1] not in eos_ids for at in later)


def check_eos(
    dataset: Dataset,
    records: Iterable[Sequence[Item]],
    eos_ids: tuple[int, ...],
    max_length: int,
    truncated: int,
) -> dict[str, int]:
    """How the supervised spans end: with an EOS, cut by max_length, or without either."""
    counts = Counter()
    for items in records:
        for item in items:
            for example in item.own:
                for end in _span_ends(example.mask):
                    at_end = end == len(example.ids) - 1
                    if example.ids[end] in eos_ids:
                        counts["ended"] += 1
                    elif at_end and item is not items[-1] and item.desirable is None:
                        counts["split"] += 1
                    elif at_end and truncated and len(example.ids) == max_length:
                        counts["truncated"] += 1
                    elif at_end and _is_transcript(dataset, item.row):
                        counts["ended"] += 1  # as its chat template ends conversations
                    else:
                        counts["missing"] += 1
    return {name: counts[name] for name in ("ended", "truncated", "split", "missing")}


def _span_ends(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero((mask > 0) & (np.append(mask[1:], 0) == 0))


def _is_transcript(dataset: Dataset, row: int) -> bool:
    return dataset.rows.kind == TEXT and dataset.record(row).get("text") is None


def check_contexts(
    dataset: Dataset,
    kind: str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading = DEFAULT,
) -> dict[str, int]:
    """How often the tokens before a completion are not the very prompt that sampling would begin from.

    `plain` counts prompts that are text, where there is a chat template, which they are not rendered with.
    """
    checked = different = plain = 0
    known = template or tokenizer.template
    for row, items in list(by_record(dataset.rows.items).items())[:CONTEXTS_CHECKED]:
        record = parse_record(dataset.record(row), kind, dataset.where(row))
        prompts = _prompts(record, reading.learn)
        prompt = prompts[0] if prompts else None
        example = items[0].own[0]
        plain += known is not None and isinstance(prompt, str)
        if prompt and example.mask.any():
            checked += 1
            before, tools = example.ids[: example.prompt_length], getattr(record, "tools", "")
            asked = (encode_prompt(Prompt(p, tools), tokenizer, template, reading).ids for p in prompts)
            different += not any(np.array_equal(ids, before) for ids in asked)
    return {"checked": checked, "different": different, "plain": plain}


def _prompts(record: Record, learn: str) -> list[Turns]:
    """What may stand before the first answer that is learned; a template's own marks choose among answers, too."""
    if isinstance(record, Chat):
        learned = [i for i, m in enumerate(record.messages) if m.role == "assistant" and m.learned]
        return [record.messages[:i] for i in (learned[-1:] if learn == "last" else learned)]
    prompt = getattr(record, "prompt", None)
    return [] if prompt is None else [prompt]


def _overlap(train: Dataset, held_out: Dataset | None, by: str) -> int:
    """Training records that are also in eval, be they dropped or still there."""
    if held_out is None:
        return 0
    key = KEYS[by]
    keys = {key(items) for items in by_record(held_out.rows.items).values()}
    shared = sum(key(items) in keys for items in by_record(train.rows.items).values())
    return train.report.dropped[ALSO_IN_EVAL] + shared


def _repeats(keys: Sequence[bytes]) -> int:
    return len(keys) - len(set(keys))


def _histogram(lengths: np.ndarray) -> dict[str, Any]:
    """`counts[i]` sequences have a length from `edges[i]` to `edges[i + 1] - 1`."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    width = -(-(longest + 1 - shortest) // BINS)
    edges = np.arange(shortest, longest + 1 + width, width)
    return {
        "shortest": shortest,
        "median": float(np.median(lengths)),
        "mean": float(lengths.mean()),
        "longest": longest,
        "counts": np.histogram(lengths, edges)[0].tolist(),
        "edges": edges.tolist(),
    }


def find_problems(numbers: dict[str, Any]) -> list[str]:
    """What must not be trained on, each with a way out."""
    found = []
    for part in ("train", "eval"):
        if part in numbers:
            found += [f"{part}: {problem}" for problem in _part_problems(numbers[part], numbers["kind"])]
    overlap = numbers["overlap"]
    if overlap["rule"] == "error" and overlap["train_records"]:
        found.append(
            f"train: {amount(overlap['train_records'], 'record')} also in eval; take them out, or set "
            "config.data.overlap='drop'"
        )
    return found


def _part_problems(part: dict[str, Any], kind: str) -> list[str]:
    records, bos, eos = part["records"], part["bos"], part["eos"]
    held_out = records["dropped"].get(HELD_OUT, 0)
    lost = sum(records["dropped"].values()) - held_out
    worst = max(records["dropped"], key=records["dropped"].get, default="")
    checks = [
        (kind == PROMPTS or part["supervised"], "no token is supervised; check the completions"),
        (
            not bos["missing"],
            f"{amount(bos['missing'], 'sequence')} without BOS at the beginning; let the chat template write it "
            "first, or not at all",
        ),
        (
            not bos["doubled"],
            f"{amount(bos['doubled'], 'sequence')} with more than one BOS; remove it from the chat template or the "
            "texts",
        ),
        (
            not eos["missing"],
            f"{amount(eos['missing'], 'completion')} without EOS at the end: the model would not learn to stop; "
            "let the chat template end assistant turns with a token that stops generation",
        ),
        (
            lost <= MOST_DROPPED * (records["read"] - held_out),
            f"{lost} of {records['read'] - held_out} records dropped, most of them as {worst!r}; "
            + (
                "raise config.data.max_length, set config.data.overlong='truncate', or "
                if "too long" in worst
                else ""
            )
            + "take other data",
        ),
        (
            part["unknown"]["share"] <= MOST_UNKNOWN,
            f"{part['unknown']['share']:.1%} of the tokens are unknown to the tokenizer; take one with byte fallback, "
            "or one trained on such text",
        ),
    ]
    return [problem for holds, problem in checks if not holds]


def find_notes(numbers: dict[str, Any]) -> list[str]:
    """What may be meant so, but is worth a look."""
    train, overlap, contexts = numbers["train"], numbers["overlap"], numbers["contexts"]
    dropped = overlap["train_records"] and train["records"]["dropped"].get(ALSO_IN_EVAL)
    notes = [
        (train["eos"]["truncated"], "completion", "cut at config.data.max_length, without EOS"),
        (train["duplicates"]["sequences"], "record", "with the tokens of another one"),
        (dropped, "train record", "also in eval, dropped from train"),
        (
            overlap["rule"] == "allow" and overlap["train_records"],
            "train record",
            "also in eval, which config.data.overlap='allow' leaves in both",
        ),
        (
            contexts["different"],
            "prompt",
            f"of {contexts['checked']:,} tokenised otherwise for sampling than in training; "
            "take a chat template that writes the same before a reply as instead of one",
        ),
        (
            contexts["plain"],
            "prompt",
            f"of plain text in the first {CONTEXTS_CHECKED:,} records, which no chat template touches; for a model "
            "that is to chat, give prompts and completions as messages, lists of role and content",
        ),
    ]
    lines = [f"{amount(count, noun)} {what}" for count, noun, what in notes if count]
    return lines + [f"{count} {remark}" for remark, count in train["remarks"].items()]


def write_json(found: Audit, path: str) -> None:
    """All numbers, notes and problems as one JSON object."""
    whole = found.numbers | {"notes": found.notes, "problems": found.problems}
    write_whole(to_path(path), (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())
