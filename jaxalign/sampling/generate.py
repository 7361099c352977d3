"""Decoding with a key-value cache: prompts in, completions and their log-probabilities out.

Shapes: B prompts, P prompt slots (padded on the left), N new tokens, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.errors import ConfigError
from jaxalign.fields import Checked, field
from jaxalign.models import (
    Cache,
    ModelConfig,
    Params,
    hidden_states,
    init_cache,
    lay_out,
    readout,
    unembedding,
)
from jaxalign.parallel.sharding import constrain, decoding, laid_out, mesh_axes, shards
from jaxalign.sampling.slots import Slots, first_slots, put_tokens, take_rows


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Checked, at="config.sampling"):
    """How the next token is chosen.

    Raises:
      ConfigError: a value outside its range.
    """

    max_new_tokens: int = field(64, at_least=1, doc="tokens of the longest completion")
    temperature: float = field(
        1.0, at_least=0, says=" must be 0 (greedy) or positive", doc="0: always the likeliest token"
    )
    top_k: int = field(
        0, at_least=0, says=" must be 0 (off) or positive", doc="sample among the k likeliest tokens; 0: all"
    )
    # arXiv 1904.09751
    top_p: float = field(
        1.0,
        above=0,
        at_most=1,
        says=" must be above 0 and at most 1 (off)",
        doc="sample among the likeliest tokens that together hold this probability",
    )
    # arXiv 2407.01082
    min_p: float = field(
        0.0,
        at_least=0,
        below=1,
        says=" must be at least 0 (off) and below 1",
        doc="drop tokens below this fraction of the likeliest one's probability",
    )
    min_new_tokens: int = field(0, at_least=0, doc="tokens before which nothing may stop")
    # arXiv 1909.05858 §4.1
    repetition_penalty: float = field(
        1.0,
        above=0,
        doc="makes tokens of the prompt and the completion so far less likely: their logits are divided by it, "
        "multiplied where negative; 1: off",
    )
    slots: int = field(
        0,
        at_least=0,
        doc="completions that are sampled at a time, where the next takes the place of one that has ended: quicker "
        "where some are much longer than most; 0: all at once",
    )
    # Of the text, not of tokens; what was sampled after it is thrown away.
    stop: str | tuple[str, ...] = field("", doc="ends a completion where its text has this, which is cut off")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"{self.key('min_new_tokens')}={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}; "
                "lower it"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a completion."""
        return tuple(text for text in ((self.stop,) if isinstance(self.stop, str) else self.stop) if text)

    @property
    def altered(self) -> tuple[str, ...]:
        """The fields by which another distribution is sampled than the model's at the temperature."""
        default = SamplingConfig()
        names = ("min_new_tokens", "repetition_penalty", "stop")
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))

    @property
    def truncated(self) -> bool:
        """True when some tokens can never be sampled."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@flax.struct.dataclass
class Completions:
    """What was sampled. The stop token, where there is one, belongs to the completion."""

    tokens: jax.Array  # [B, N] int32, 0 after the end
    mask: jax.Array  # [B, N] float32, 1 for sampled tokens
    logp: jax.Array  # [B, N] float32 at the sampling temperature, over the whole vocabulary
    stopped: jax.Array  # [B] bool: ended by a stop token, or never begun because the prompt row is empty
    places: jax.Array | Any = None  # int32: tokens that there was room for, in all steps and slots


def truncate_logits(logits: jax.Array, sampling: SamplingConfig) -> jax.Array:
    """Sets the logits that top-k, top-p and min-p exclude to -inf: float32 [B, V]; the likeliest always stays."""
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        probability = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        kept = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True)
        smallest = jnp.take_along_axis(descending, kept - 1, axis=-1)
        # Of those that are tied with the last one, the first ones are kept that are still needed.
        tied = logits == smallest
        needed = kept - jnp.sum(logits > smallest, axis=-1, keepdims=True)
        logits = jnp.where(
            (logits > smallest) | (tied & (jnp.cumsum(tied, axis=-1) <= needed)), logits, -jnp.inf
        )
    if sampling.min_p:
        floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return logits


def last_logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Float32 logits [B, V] of what follows the last of the hidden states [B, T, D]."""
    logits = readout(hidden[:, -1], unembedding(params, config), config.final_softcap)
    # config.mesh.rules may have one axis split rows and vocabulary: then rows it is.
    apart = set(mesh_axes("batch")).isdisjoint(mesh_axes("vocab"))
    return constrain(logits, "batch", "vocab" if apart else None)


def gumbel_noise(keys: jax.Array, size: int) -> jax.Array:
    """Gumbel noise [B, size] of one key a row, by which argmax(logits + noise) is a sample.

    Of 46 bits: with the usual 23, what has a probability of 1e-7 comes half as often, and of 1e-8 never.
    """
    return jax.vmap(lambda key: jax.random.gumbel(key, (size,), mode="high"))(keys)


def draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Tokens [B] of the distributions with float32 logits [B, V], by one key a row.

    First a group of neighbours by its share of the probability, then one of the group: two choices by Gumbel noise for
    some 2 √V numbers, where one among all tokens would take V of them.
    """
    B, V = logits.shape
    size = 1 << (V - 1).bit_length() // 2
    groups = jnp.pad(logits, ((0, 0), (0, -V % size)), constant_values=-jnp.inf).reshape(B, -1, size)
    count = groups.shape[1]
    noise = gumbel_noise(keys, count + size)
    group = jnp.argmax(jax.nn.logsumexp(groups, axis=-1) + noise[:, :count], axis=-1)
    within = jnp.take_along_axis(groups, group[:, None, None], axis=1)[:, 0]
    return (group * size + jnp.argmax(within + noise[:, count:], axis=-1)).astype(jnp.int32)


def first_seen(config: ModelConfig, sampling: SamplingConfig, tokens: jax.Array, segments: jax.Array) -> Any:
    """Bool [B, V]: which tokens stand in the prompts [B, P]; None where nothing asks for it."""
    if sampling.repetition_penalty == 1:
        return None
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), config.vocab_size), bool).at[rows, tokens].max(segments > 0)


def note_seen(seen: jax.Array | None, token: jax.Array, live: jax.Array | bool = True) -> Any:
    """`seen` with the tokens [B] that were chosen."""
    return None if seen is None else seen.at[jnp.arange(len(token)), token].max(live)


def adjust_logits(
    logits: jax.Array,
    sampling: SamplingConfig,
    number: jax.Array | int,
    stop_ids: tuple[int, ...],
    seen: jax.Array | None,
) -> jax.Array:
    """Float32 logits [B, V] after the repetition penalty, and without stop tokens before `min_new_tokens`.

    In this order, before temperature and truncation, as in transformers.

    Args:
      number: how many tokens have been sampled, of all rows or of each [B].
      seen: see `first_seen`.
    """
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.min_new_tokens and stop_ids:
        stops = jnp.zeros(logits.shape[-1], bool).at[jnp.array(stop_ids)].set(True)
        early = jnp.reshape(number, (-1, 1)) < sampling.min_new_tokens
        logits = jnp.where(stops[None] & early, -jnp.inf, logits)
    return logits


def choose(
    logits: jax.Array,
    keys: jax.Array,
    sampling: SamplingConfig,
    number: jax.Array | int = 0,
    stop_ids: tuple[int, ...] = (),
    seen: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Next tokens [B] and the model's log-probabilities of them [B] from float32 logits [B, V] and one key a row.

    Args:
      number, stop_ids, seen: see `adjust_logits`.
    """
    allowed = adjust_logits(logits, sampling, number, stop_ids, seen)
    if sampling.temperature == 0:
        token = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
    else:
        logits = logits / sampling.temperature
        allowed = truncate_logits(allowed / sampling.temperature, sampling)
        token = draw(allowed, keys)
    logp = jax.nn.log_softmax(logits, axis=-1)
    return token, jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0]


def check_request(config: ModelConfig, P: int, N: int, stop_ids: tuple[int, ...]) -> None:
    """Raises ConfigError unless a model can read P prompt slots, write N tokens, and stop at `stop_ids`."""
    name, longest = config.sampling_limit
    if P + N > longest:
        raise ConfigError(
            f"config.sampling.max_new_tokens={N} after {P} prompt slots needs {P + N} positions, but the model "
            f"has config.model.{name}={longest}; make the two sum to at most that"
        )
    for stop in stop_ids:
        if not 0 <= stop < config.vocab_size:
            raise ConfigError(
                f"stop id {stop} is not in the vocabulary of config.model.vocab_size={config.vocab_size}; "
                f"use ids from 0 to {config.vocab_size - 1}"
            )


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids", "samples"))
def generate(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    key: jax.Array,
    *,
    sampling: SamplingConfig,
    stop_ids: tuple[int, ...],
    rows: jax.Array | None = None,
    samples: int = 1,
) -> Completions:
    """Samples completions of each prompt, which is read once; ends early when every row has stopped.

    A row's noise depends on `key` and its number in `rows` alone, so the same prompt gets the same completion
    in any batch. Row b * samples + j is the j-th completion of prompt b.

    Args:
      tokens, positions, segment_ids: int32 [B, P], padded on the left: segment 1, or 0 for padding.
      stop_ids: token ids that end a completion.
      rows: int32 [B * samples]; counted from 0 when None.
      samples: completions of each prompt.

    Raises:
      ConfigError: the model is made for fewer than P + N positions, or a stop id is not in the vocabulary.
    """
    rows = jnp.arange(len(tokens) * samples, dtype=jnp.int32) if rows is None else rows
    check_request(config, tokens.shape[1], sampling.max_new_tokens, stop_ids)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    with decoding():
        params = lay_out(params, config)
        return _decode(params, config, tokens, positions, segment_ids, keys, sampling, stop_ids, samples)


def _decode(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    keys: jax.Array,
    sampling: SamplingConfig,
    stop_ids: tuple[int, ...],
    samples: int,
) -> Completions:
    B, P = tokens.shape
    N, E = sampling.max_new_tokens, B * samples
    stops = jnp.array(stop_ids, jnp.int32)
    parts = 1 if laid_out() else shards(jax.sharding.get_abstract_mesh(), "batch")
    S = E if not sampling.slots else min(E, -(-sampling.slots // parts) * parts)
    if B % parts:
        parts, S = 1, E
    queued = S < E

    def step(
        tokens: jax.Array, positions: jax.Array, segments: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        hidden, after = hidden_states(params, config, tokens, positions, segments, cache)
        assert after is not None  # since there was one before
        return last_logits(params, config, hidden), after

    def lay_cache(cache: Cache) -> Cache:
        def lay(x: jax.Array) -> jax.Array:
            return constrain(x, *[None] * (x.ndim - 4), "batch", "act_kv_heads", None, None)

        return dataclasses.replace(cache, k=jax.tree.map(lay, cache.k), v=jax.tree.map(lay, cache.v))

    # The prompts are read once, all of them; every completion has a row of its own.
    cache = lay_cache(init_cache(config, B, P + (0 if queued else N)))
    logits, cache = step(tokens, positions, segment_ids, cache)
    read = (logits, first_seen(config, sampling, tokens, segment_ids), cache)

    def begin(slots: Slots, filled: jax.Array, state: tuple) -> tuple:
        """What the slots know of the prompts whose completions have been put there: logits, seen tokens, cache."""
        prompt = slots.sequence // samples

        def put(old: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
            new = take_rows(new, prompt, parts, axis)
            which = filled.reshape(*(1,) * axis, -1, *(1,) * (new.ndim - axis - 1))
            # Of a cache, the slots of prompts: those of tokens stand behind them.
            new = jnp.where(which, new, jax.lax.slice(old, (0,) * old.ndim, new.shape))
            return jax.lax.dynamic_update_slice(old, new, (0,) * old.ndim)

        (logits, seen, cache), (first, known, prompts) = state, read
        of_layers = functools.partial(jax.tree.map, lambda old, new: put(old, new, old.ndim - 4))
        segments = put(jnp.where(filled[:, None], 0, cache.segment_ids), prompts.segment_ids)
        cache = dataclasses.replace(
            cache,
            k=of_layers(cache.k, prompts.k),
            v=of_layers(cache.v, prompts.v),
            positions=put(cache.positions, prompts.positions),
            segment_ids=segments,
        )
        return put(logits, first), None if seen is None else put(seen, known), lay_cache(cache)

    slots = first_slots(E, S, parts)
    if queued or samples > 1:
        empty = dataclasses.replace(init_cache(config, S, P + N), index=cache.index)
        seen = None if read[1] is None else jnp.zeros((S, config.vocab_size), bool)
        state = begin(slots, jnp.ones(S, bool), (jnp.zeros((S, *logits.shape[1:])), seen, lay_cache(empty)))
    else:
        state = read
    last = jnp.repeat(positions[:, -1], samples)
    out = Completions(
        tokens=jnp.zeros((E, N), jnp.int32),
        mask=jnp.zeros((E, N), jnp.float32),
        logp=jnp.zeros((E, N), jnp.float32),
        stopped=jnp.repeat(
            ~jnp.any(segment_ids > 0, axis=1), samples
        ),  # as yet of prompts that are not there
    )
    absent = out.stopped

    def of_slots(x: jax.Array, slots: Slots) -> jax.Array:
        """What there is of the sequence in each slot."""
        return take_rows(x, slots.sequence, parts) if queued else x

    def without_absent(slots: Slots) -> Slots:
        return dataclasses.replace(slots, sequence=jnp.where(of_slots(absent, slots), E, slots.sequence))

    def more(carry: tuple) -> jax.Array:
        _, slots, _, _ = carry
        waits = slots.want_more(E) if queued else False
        return jnp.any(slots.sequence < E) | waits

    def body(carry: tuple) -> tuple:
        i, slots, (logits, seen, cache), out = carry
        own = jax.vmap(jax.random.fold_in)(of_slots(keys, slots), slots.count)
        token, logp = choose(logits, own, sampling, slots.count, stop_ids, seen)
        live = slots.sequence < E
        seen = note_seen(seen, token, live)
        token, logp = jnp.where(live, token, 0), jnp.where(live, logp, 0.0)
        ends = live & jnp.any(token[:, None] == stops[None, :], axis=-1)

        def note(x: jax.Array, value: jax.Array) -> jax.Array:
            return put_tokens(x, slots, value) if queued else x.at[:, i].set(value)

        out = dataclasses.replace(
            out,
            tokens=note(out.tokens, token),
            mask=note(out.mask, live.astype(jnp.float32)),
            logp=note(out.logp, logp),
        )
        # The last token of a sequence is never read back, but one wasted step is cheaper than a branch.
        position = of_slots(last, slots) + 1 + slots.count
        cache = dataclasses.replace(cache, index=P + i % N)
        logits, cache = step(token[:, None], position[:, None], live[:, None].astype(jnp.int32), cache)
        slots = slots.next_token(~live | ends | (slots.count + 1 >= N), E)
        state = (logits, seen, cache)
        if queued:

            def refill(slots: Slots, state: tuple) -> tuple:
                slots, filled = slots.fill(E)
                return without_absent(slots), begin(slots, filled, state)

            slots, state = jax.lax.cond(slots.want_more(E), refill, lambda *same: same, slots, state)
        return i + 1, slots, state, out

    carry = (jnp.zeros((), jnp.int32), without_absent(slots), state, out)
    steps, _, _, out = jax.lax.while_loop(more, body, carry)
    at_stop = (out.mask > 0) & jnp.any(out.tokens[..., None] == stops[None, None], axis=-1)
    return dataclasses.replace(out, stopped=absent | jnp.any(at_stop, axis=1), places=steps * S)


def close(completions: Completions, ending: jax.Array) -> Completions:
    """Completions [B, N] that end as they do in training: [B, N + L - 1] tokens and mask.

    The sampled stop token, one of several that a model may have, gives place to `ending` int32 [B, L], from the
    format's own stop token on and filled up with -1. What ran into the limit has no end.
    """
    L = ending.shape[1]
    written = completions.mask.sum(axis=1).astype(jnp.int32)
    ended = completions.stopped & (written > 0)
    begin = jnp.where(ended, written - 1, written)
    tokens = jnp.pad(completions.tokens, ((0, 0), (0, L - 1)))
    at = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] - begin[:, None]
    size = jnp.sum(ending >= 0, axis=1)
    closing = ended[:, None] & (at >= 0) & (at < size[:, None])
    tokens = jnp.where(closing, jnp.take_along_axis(ending, jnp.clip(at, 0, L - 1), axis=1), tokens)
    live = (at < 0) | closing
    return dataclasses.replace(completions, tokens=jnp.where(live, tokens, 0), mask=live.astype(jnp.float32))


def join(
    tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array, completions: Completions
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Prompt and completion as one sequence, [B, P + N]: tokens, positions, segment_ids, completion mask."""
    N = completions.tokens.shape[1]
    after = positions[:, -1:] + 1 + jnp.arange(N, dtype=jnp.int32)[None, :]
    live = completions.mask.astype(jnp.int32)
    return (
        jnp.concatenate((tokens, completions.tokens), axis=1),
        jnp.concatenate((positions, after * live), axis=1),
        jnp.concatenate((segment_ids, live), axis=1),
        jnp.concatenate((jnp.zeros(tokens.shape, jnp.float32), completions.mask), axis=1),
    )
