"""How many rows the completions of a rollout take, and which stands in which: see `models.packed`."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxalign.data.bins import pack
from jaxalign.models.config import ModelConfig
from jaxalign.models.packed import Layout, can_share
from jaxalign.parallel import processes
from jaxalign.parallel.sharding import shards
from jaxalign.training.open import Run

# Numbers of rows, as parts of the number of completions. Each that occurs is compiled: so they are few. Rows are
# packed where at most half of them are left; where prompts are shared, any row less saves what it costs.
SIZES = (1 / 8, 1 / 4, 1 / 2, 1)
SHARED_SIZES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Where the one sequence of each row begins, how many tokens it has, none of an empty row, and its prompt.

    All int [E], the length of the prompt among that of the sequence.
    """

    starts: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray  # a number for each prompt
    prompt_lengths: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Spans":
        return Spans(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def lay_out(spans: Spans, width: int, *, parts: int, multiple: int, sharing: int = 1) -> Layout | None:
    """The layout, in NumPy, of sequences that stand one in a row.

    Args:
      width: T, and W.
      parts: microbatches: sequence e belongs to number e % parts, as does row r, see `slices`.
      multiple: shards of a microbatch, each of which keeps its own sequences.
      sharing: the most sequences with one prompt, of which its tokens stand once in a shard; 1: none are shared.

    Returns:
      None where no row would be saved.
    """
    count = len(spans.lengths) // (parts * multiple)
    # A device has neighbouring rows of the batch, and every `parts`-th of them is of one microbatch.
    own = np.arange(len(spans.lengths)).reshape(multiple, count, parts).transpose(2, 0, 1).reshape(-1, count)
    blocks = [_pack(spans[chosen], width) for chosen in own]
    rows = _size(SIZES, count, max(len(block.slots) for block in blocks))
    if sharing > 1:
        packed = [_share(spans[chosen], width) for chosen in own]
        fewer = _size(SHARED_SIZES, count, max(len(block.slots) for block in packed))
        if fewer < rows and any(len(block.leaders) for block in packed):
            blocks, rows = packed, fewer
    if rows >= count:
        return None

    def spread(arrays: list[np.ndarray]) -> Any:
        x = np.stack(arrays).reshape(parts, multiple, *arrays[0].shape)
        return np.moveaxis(x, 0, 2).reshape(-1, *arrays[0].shape[1:])

    made = [block.arrays(rows, count, width) for block in blocks]
    layout = Layout(*(spread([block[name] for block in made]) for name in ("source", "place", "segment_ids")))
    if not any(len(block.leaders) for block in blocks):
        return dataclasses.replace(layout, shards=multiple)
    # A power of two, as every size is compiled.
    most = 1 << (-(-max(len(block.leaders) for block in blocks) // width) - 1).bit_length()
    copies, shared = zip(*(block.sharing(rows, most, width, sharing - 1) for block in blocks), strict=True)
    return dataclasses.replace(
        layout, copies=spread(list(copies)), shared=spread(list(shared)), shards=multiple
    )


def _size(sizes: tuple[float, ...], count: int, needed: int) -> int:
    return next(rows for rows in (int(np.ceil(size * count)) for size in sizes) if rows >= needed)


@dataclasses.dataclass(frozen=True)
class _Block:
    """The rows of one shard of a microbatch, of the same width as the batch's."""

    slots: list[np.ndarray]  # of each row, the slots of the batch that it has
    segments: list[np.ndarray]  # the segment of each
    leaders: np.ndarray  # int [N], slots of the batch whose tokens are shared, each the first one
    followers: np.ndarray  # int [N, J], the others, -1 where there are fewer

    def arrays(self, rows: int, count: int, width: int) -> dict[str, np.ndarray]:
        source, segment_ids = np.full((rows, width), -1, np.int32), np.zeros((rows, width), np.int32)
        for row, (slots, segments) in enumerate(zip(self.slots, self.segments, strict=True)):
            source[row, : len(slots)], segment_ids[row, : len(slots)] = slots, segments
        place = np.full(count * width, -1, np.int32)
        held = np.flatnonzero(source >= 0)
        place[source.reshape(-1)[held]] = held
        there = self.followers >= 0
        place[self.followers[there]] = np.broadcast_to(place[self.leaders][:, None], there.shape)[there]
        return {"source": source, "segment_ids": segment_ids, "place": place.reshape(count, width)}

    def sharing(self, rows: int, most: int, width: int, others: int) -> tuple[np.ndarray, np.ndarray]:
        """`Layout.copies` and `Layout.shared`."""
        copies, shared = np.full((most * width, others), -1, np.int32), np.full((rows, width), -1, np.int32)
        copies[: len(self.leaders), : self.followers.shape[1]] = self.followers
        number = {slot: i for i, slot in enumerate(self.leaders.tolist())}
        for row, slots in enumerate(self.slots):
            shared[row, : len(slots)] = [number.get(slot, -1) for slot in slots.tolist()]
        return copies.reshape(most, width, others), shared


def _slots(spans: Spans, index: int, width: int, skipped: int = 0) -> np.ndarray:
    return index * width + spans.starts[index] + np.arange(skipped, spans.lengths[index])


def _pack(spans: Spans, width: int) -> _Block:
    """Whole sequences, as few rows of them as can be."""
    live = np.flatnonzero(spans.lengths)
    bins = pack(spans.lengths[live], width, max_segments=max(1, len(live)))
    chosen = [live[np.asarray(members)] for members in bins]
    slots = [np.concatenate([_slots(spans, i, width) for i in row]) for row in chosen]
    segments = [np.repeat(np.arange(1, len(row) + 1), spans.lengths[row]) for row in chosen]
    return _Block(slots, segments, np.zeros(0, int), np.zeros((0, 1), int))


def _share(spans: Spans, width: int) -> _Block:
    """One stream of tokens, cut into rows; of each prompt all but its last token stand once.

    What is said of a completion's first token is read off that last one, which everyone keeps.
    """
    first: dict[int, int] = {}
    others: dict[int, list[int]] = {}
    pieces, segments = [np.zeros(0, int)], [np.zeros(0, int)]
    for i in np.flatnonzero(spans.lengths).tolist():
        common = max(0, int(min(spans.prompt_lengths[i], spans.lengths[i])) - 1)
        leader = first.setdefault(int(spans.prompts[i]), i)
        if leader != i:
            others.setdefault(leader, []).append(i)
        pieces.append(_slots(spans, i, width, common if leader != i else 0))
        segments.append(np.full(len(pieces[-1]), len(pieces) - 1))
    most = max(map(len, others.values()), default=1)
    leaders, followers = [np.zeros(0, int)], [np.zeros((0, most), int)]
    for leader, rest in others.items():
        common = np.arange(max(0, int(spans.prompt_lengths[leader]) - 1))
        leaders.append(leader * width + spans.starts[leader] + common)
        theirs = np.full((len(common), most), -1)
        theirs[:, : len(rest)] = np.asarray(rest) * width + spans.starts[rest] + common[:, None]
        followers.append(theirs)
    stream, marks = np.concatenate(pieces), np.concatenate(segments)
    cuts = range(width, len(stream), width)
    return _Block(
        np.split(stream, cuts), np.split(marks, cuts), np.concatenate(leaders), np.concatenate(followers)
    )


class Packer:
    """Lays out the completions of a run, as the option of its stage says, for the policy and `others` to read."""

    def __init__(self, run: Run, *others: ModelConfig | None) -> None:
        options = run.config.options
        self._run, self._packs, self._samples = run, options.pack_completions, options.samples_per_row
        self._multiple = shards(run.mesh, "batch")
        readers = [run.model, *filter(None, others)]
        self._sharing = self._samples if all(can_share(model, run.mesh) for model in readers) else 1

    def __call__(self, segment_ids: jax.Array, prompt_slots: int) -> Layout | None:
        """The layout of sequences [E, T], for all of them at once."""
        found = self.several(segment_ids, prompt_slots, np.arange(len(segment_ids))[None], parts=1)
        return found[0]

    def several(
        self, segment_ids: jax.Array, prompt_slots: int, chosen: np.ndarray, *, parts: int
    ) -> list[Layout | None]:
        """The layout of each of several choices [n, e] among sequences [E, T], for microbatches.

        Args:
          prompt_slots: of every row, the first ones.
        """
        if not self._packs:
            return [None] * len(chosen)
        starts, lengths, prompts = (processes.fetch_whole(x) for x in _spans(segment_ids, prompt_slots))
        spans = Spans(starts, lengths, np.arange(len(lengths)) // self._samples, prompts)
        settings: Any = {"parts": parts, "multiple": self._multiple, "sharing": self._sharing}
        found = [lay_out(spans[rows], segment_ids.shape[1], **settings) for rows in chosen]
        return [None if layout is None else self._place(layout) for layout in found]

    def _place(self, layout: Layout) -> Layout:
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, self._run.rows_sharding, lambda index: x[index]),
            layout,
        )


@functools.partial(jax.jit, static_argnames="slots")
def _spans(segment_ids: jax.Array, slots: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the one sequence of a row begins, its length, and that of its prompt in the first `slots`: int32 [E]."""
    real = segment_ids > 0
    begins, lengths, prompts = real.argmax(1), real.sum(1), real[:, :slots].sum(1)
    return begins.astype("int32"), lengths.astype("int32"), prompts.astype("int32")
