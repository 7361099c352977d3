"""The files of a run in the HHH world: corpus, demonstrations, preferences, prompts, and the world itself."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxalign.storage import write_whole
from jaxalign.worlds.corpus import corpus
from jaxalign.worlds.judge import judge
from jaxalign.worlds.preferences import DEFAULT_NOISE, sample_preference
from jaxalign.worlds.questions import Question, Split, questions
from jaxalign.worlds.responses import demonstration, mixture, respond
from jaxalign.worlds.world import World, stream


@dataclass(frozen=True)
class DatasetSizes:
    """Records per file; a document of the corpus has about 16 words."""

    corpus: int = 60_000
    corpus_held_out: int = 500
    sft: int = 12_000
    sft_held_out: int = 400
    preference: int = 12_000
    preference_held_out: int = 600
    prompts: int = 4_000
    questions_held_out: int = 400


def write_dataset(
    world: World,
    directory: str | Path,
    *,
    sizes: DatasetSizes | None = None,
    seed: int = 0,
    noise: float = DEFAULT_NOISE,
) -> None:
    """Write every file of a run, the same bytes for the same arguments.

    corpus[_held_out].jsonl      {"text"}
    sft[_held_out].jsonl         {"messages"}, the last one a demonstration
    preference[_held_out].jsonl  {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}
    prompts.jsonl                {"prompt", "kind"} of the training split, for PPO
    questions_held_out.jsonl     {"prompt", "kind"} of the held-out split, for evaluation
    world.json                   what `World.load` needs to rebuild the judge; written last: where it is, all are

    The scores are the judge's own, without noise; `noise` is that of the choice between the two.
    """
    sizes = sizes or DatasetSizes()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "world.json").unlink(missing_ok=True)
    # No two files share questions or sentences by construction: every file has its own stream.
    parts: tuple[tuple[str, Split], ...] = (("", "train"), ("_held_out", "held_out"))
    for number, (name, split) in enumerate(parts):
        documents = corpus(world, getattr(sizes, f"corpus{name}"), 2 * seed + number)
        _write(folder / f"corpus{name}.jsonl", ({"text": text} for text in documents))
        _write(folder / f"sft{name}.jsonl", _sft(world, split, getattr(sizes, f"sft{name}"), seed))
        rows = _preferences(world, split, getattr(sizes, f"preference{name}"), seed, noise)
        _write(folder / f"preference{name}.jsonl", rows)
    _write(folder / "prompts.jsonl", _prompts(world, "train", sizes.prompts, 3 * seed + 2))
    _write(
        folder / "questions_held_out.jsonl",
        _prompts(world, "held_out", sizes.questions_held_out, 3 * seed + 2),
    )
    world.save(folder / "world.json")


def _sft(world: World, split: Split, n: int, seed: int) -> Iterable[dict]:
    rng = stream(f"sft/{split}", seed)
    for question in questions(world, split, n, 3 * seed):
        yield {"messages": [*question.messages, *_turn(demonstration(world, question, rng))]}


def _preferences(world: World, split: Split, n: int, seed: int, noise: float) -> Iterable[dict]:
    rng = stream(f"preference/{split}", seed)
    for question in questions(world, split, n, 3 * seed + 1):
        a, b = response_pair(world, question, rng)
        score_a, score_b = (judge(world, question.messages, text).score for text in (a, b))
        if not sample_preference(score_a, score_b, rng, noise):
            a, b, score_a, score_b = b, a, score_b, score_a
        yield {
            "prompt": question.messages,
            "chosen": _turn(a),
            "rejected": _turn(b),
            "chosen_score": score_a,
            "rejected_score": score_b,
        }


def response_pair(world: World, question: Question, rng: random.Random) -> tuple[str, str]:
    """Two responses of different quality, drawn from the demonstrators' mixture; their texts differ."""
    weights = mixture(question)
    first = second = ""
    while first == second:
        a, b = (rng.choices(list(weights), list(weights.values()))[0] for _ in range(2))
        if a != b:
            first, second = respond(world, question, rng, a), respond(world, question, rng, b)
    return first, second


def _prompts(world: World, split: Split, n: int, seed: int) -> Iterable[dict]:
    return ({"prompt": q.messages, "kind": q.kind} for q in questions(world, split, n, seed))


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _write(path: Path, rows: Iterable[dict]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
