"""How an audit looks on a terminal: numbers, length bars, and sequences token by token."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign.data import Dataset, Tokenizer
from jaxalign.data.items import Item
from jaxalign.data.kinds import PROMPTS
from jaxalign.errors import amount
from jaxalign.streams import shown as as_text
from jaxalign.verbs.audit import Audit

STYLES = {"supervised": "bold green", "context": "cyan", "control": "magenta"}
_MARKS = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u3000": "□"})
_BAR = 40  # characters


def print_audit(found: Audit, console: Console, show: int) -> None:
    """Samples, numbers, notes and problems."""
    console.print(_legend(), soft_wrap=True)
    for line in sample_lines(found.train, found.tokenizer, show):
        console.print(line, soft_wrap=True)
    console.print(_table(found.numbers))
    for part in ("train", "eval"):
        if part in found.numbers:
            console.print(f"\nlengths in tokens, {part}", highlight=False)
            for line in histogram_lines(found.numbers[part]["lengths"]):
                console.print(line, highlight=False)
    console.print()
    for line in unread_lines(found.numbers):
        console.print(Text(as_text(line)), soft_wrap=True)
    for note in found.notes:
        console.print(Text(as_text(f"note: {note}")), soft_wrap=True)
    for problem in found.problems:
        console.print(Text(as_text(f"PROBLEM: {problem}"), style="bold red"), soft_wrap=True)
    if not found.problems:
        console.print(Text("no problem found", style="bold green"))


def sample_lines(dataset: Dataset, tokenizer: Tokenizer, count: int) -> list[Text]:
    """Items spread evenly over the dataset, each sequence with where it comes from."""
    items = dataset.rows.items
    lines = []
    for index in np.linspace(0, len(items) - 1, min(count, len(items)), dtype=int):
        item = items[index]
        lines.append(Text(as_text(f"\n{dataset.where(item.row)}"), style="dim"))
        for name, example in _named(item):
            lines.append(
                Text(f"{name} ({amount(len(example.ids), 'token')}): ") + show_tokens(example, tokenizer)
            )
    return lines


def _named(item: Item) -> list[tuple[str, Item]]:
    if item.desirable is not None:
        judged = "desirable" if item.desirable else "undesirable"
        return list(zip((judged, "mismatched"), item.examples, strict=False))
    names = {1: ("sequence",), 2: ("chosen", "rejected")}.get(len(item.examples))
    names = names or [f"reply {index + 1}" for index in range(len(item.examples))]
    return list(zip(names, item.examples, strict=True))


def show_tokens(example: Item, tokenizer: Tokenizer) -> Text:
    """Tokens separated by |, what is supervised in ⟦ ⟧ as well as in colour, whitespace visible."""
    line, open_span = Text(), False
    names = {token_id: name for name, token_id in tokenizer.control_ids.items()}
    for position, piece in enumerate(pieces(example.ids.tolist(), tokenizer)):
        supervised = bool(example.mask[position])
        if supervised != open_span:
            line.append("⟦" if supervised else "⟧", "dim")
        elif position:
            line.append("|", "dim")
        kind = "supervised" if supervised else "context"
        style = STYLES["control"] if int(example.ids[position]) in names else STYLES[kind]
        line.append(as_text(piece), f"{style} underline" if supervised else style)
        open_span = supervised
    return line.append("⟧", "dim") if open_span else line


def pieces(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text: control tokens by name, … for a part of a character."""
    names = {token_id: name for name, token_id in tokenizer.control_ids.items()}
    out, run, shown = [], [], ""
    for token in ids:
        if token in names:
            out.append(names[token])
            run, shown = [], ""
            continue
        run.append(token)
        text = tokenizer.decode(run)
        if text.endswith("\ufffd"):
            out.append("…")
        else:
            out.append(text[len(shown) :].translate(_MARKS))
            shown = text
    return out


def histogram_lines(lengths: dict[str, Any]) -> list[str]:
    """One bar a bin, the longest 40 characters."""
    most, edges = max(lengths["counts"]), lengths["edges"]
    return [
        f"  {low:7,} to {high - 1:7,} {count:9,} {'█' * round(_BAR * count / most)}".rstrip()
        for low, high, count in zip(edges[:-1], edges[1:], lengths["counts"], strict=True)
    ]


def unread_lines(numbers: dict[str, Any]) -> list[str]:
    """Each source with its fields that nothing is made from, and the number of rows that have them."""
    words = "no part of the prompts" if numbers["kind"] == PROMPTS else "not read"
    return [
        f"{words}, {part}, {source}: "
        + ", ".join(
            f"{name} ({count:,})" for name, count in sorted(fields.items(), key=lambda item: -item[1])
        )
        for part in ("train", "eval")
        if part in numbers
        for source, fields in numbers[part]["unread"].items()
    ]


def _legend() -> Text:
    line = Text("tokens: ")
    line.append("⟦supervised⟧", f"{STYLES['supervised']} underline").append("  ")
    line.append("context", STYLES["context"]).append("  ").append("<control>", STYLES["control"])
    return line.append("   · space, ↵ line break, ⇥ tab, … part of a character")


def _table(numbers: dict[str, Any]) -> Table:
    parts = [part for part in ("train", "eval") if part in numbers]
    table = Table("", *parts, title=f"{numbers['stage']}: {numbers['kind']} data")
    columns = [_facts(numbers[part]) for part in parts]
    for name in dict.fromkeys(name for facts in columns for name in facts):
        table.add_row(name, *(facts.get(name, "0") for facts in columns))
    overlap = numbers["overlap"]
    table.add_row("train records also in eval", f"{overlap['train_records']:,} ({overlap['rule']})")
    if numbers["fields"]:
        table.add_row("read as config.data.fields says", numbers["fields"])
    contexts = numbers["contexts"]
    table.add_row(
        "prompts unlike sampling's", f"{contexts['different']:,} of {contexts['checked']:,} checked"
    )
    return table


def _facts(part: dict[str, Any]) -> dict[str, str]:
    records, bos, eos, packing = part["records"], part["bos"], part["eos"], part["packing"]
    return {
        "records read": f"{records['read']:,}",
        "  kept": f"{records['kept']:,}",
        "  truncated": f"{records['truncated']:,}",
        "  split": f"{records['split']:,}",
        **{f"  dropped: {reason}": f"{count:,}" for reason, count in sorted(records["dropped"].items())},
        "sequences": f"{part['sequences']:,}",
        "tokens": f"{part['tokens']:,}",
        "  supervised": f"{part['supervised']:,} ({part['supervised_share']:.1%})",
        "  unknown": f"{part['unknown']['tokens']:,} ({part['unknown']['share']:.2%})",
        "BOS": "none" if bos["id"] is None else f"{bos['missing']:,} missing, {bos['doubled']:,} doubled",
        "completions ended by EOS": f"{eos['ended']:,}",
        "  cut, without": f"{eos['truncated']:,}",
        "  neither": f"{eos['missing']:,}",
        "repeated sequences": f"{part['duplicates']['sequences']:,}",
        "repeated prompts": f"{part['duplicates']['prompts']:,}",
        "rows": f"{packing['rows']:,} of {amount(packing['row_length'], 'token')}, {packing['efficiency']:.0%} full",
        "length": f"{part['lengths']['median']:.0f} median, {part['lengths']['longest']:,} longest",
        "fingerprint": part["fingerprint"][:16],
    }
