"""What models say of given sequences: log-probabilities, values and rewards, aligned with the tokens.

Everything is aligned with the token it is about: `logp[b, t]` is the log-probability of `tokens[b, t]` given the
earlier tokens of its segment, and `values[b, t]` the value of the state before that token. Entries at the first
token of a segment and at padding are 0 and carry no gradient.

Shapes: B rows, T tokens, S segments a row.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxalign.models.config import ModelConfig, Params
from jaxalign.models.embedding import TABLE
from jaxalign.models.forward import hidden_states_and_router, scalar_head, unembedding
from jaxalign.models.logprobs import TokenLogprobs, TokenStatistics, token_divergence, token_logprobs
from jaxalign.models.packed import Layout, Whole
from jaxalign.parallel.sharding import split_rows


class Scores(NamedTuple):
    """What one model says of a batch. A language model has no values and rewards, a scalar model has nothing else.

    What it does not say is None. The type is left open, since every stage knows what it asked for.
    """

    logp: jax.Array | Any = None  # float32 [B, T], nats
    logsumexp: jax.Array | Any = None  # float32 [B, T]
    entropy: jax.Array | Any = None  # float32 [B, T], where it was asked for
    values: jax.Array | Any = None  # float32 [B, T]: a scalar model's number of the state before each token
    # float32 [B, S]: that number at the last token of each segment; 0 for an absent one
    rewards: jax.Array | Any = None
    router: jax.Array | None = None  # of a mixture of experts: see `hidden_states_and_router`
    readout: "Readout | None" = None
    statistics: TokenStatistics | Any = None  # float32 [B, T] each, where they were asked for


@flax.struct.dataclass
class Readout:
    """What a language model's logits are made of, without the [B, T, V] logits themselves."""

    hidden: jax.Array  # [B, T, D]
    head: jax.Array  # [V, D]
    softcap: float | None = flax.struct.field(pytree_node=False)
    layout: Layout | None = None  # by which the hidden states are packed


def predicted(segment_ids: jax.Array) -> jax.Array:
    """[B, T] bool: the token has an earlier token in its own segment."""
    same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    return jnp.pad(same, ((0, 0), (1, 0)))


def align(x: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Moves what position t - 1 says of the next token to position t."""
    return jnp.where(predicted(segment_ids), jnp.pad(x[:, :-1], ((0, 0), (1, 0))), 0.0)


def score_batch(
    params: Params,
    config: ModelConfig,
    batch: Any,
    *,
    scalar: bool = False,
    temperature: float = 1.0,
    with_entropy: bool = False,
    with_statistics: bool = False,
    mask: jax.Array | None = None,
) -> Scores:
    """Scores of any batch that has tokens, positions and segment_ids [B, T], and rows [B, S] where it is packed.

    One that has a `layout` is read by it.
    """
    arrays, layout = (batch.tokens, batch.positions, batch.segment_ids), getattr(batch, "layout", None)
    if not scalar:
        settings: dict[str, Any] = {"with_entropy": with_entropy, "with_statistics": with_statistics}
        return score_tokens(
            params, config, *arrays, temperature=temperature, mask=mask, layout=layout, **settings
        )
    rows = getattr(batch, "rows", None)
    count = 1 if rows is None else rows.shape[-1]
    return score_scalar(params, config, *arrays, num_segments=count, layout=layout)


def score_tokens(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    with_statistics: bool = False,
    mask: jax.Array | None = None,
    layout: Layout | None = None,
) -> Scores:
    """Log-probabilities (log-sum-exp, and entropy and statistics when asked) of every token by a language model.

    Args:
      tokens, positions, segment_ids: int32 [B, T]; segment 0 is padding.
      temperature: logits are divided by it, as they were when the tokens were sampled.
      mask: [B, T], nonzero at the tokens whose scores are read; those of all others are 0, and no logits are computed
        for them. None: all are read.
      layout: packs the sequences of the batch, one a row, into fewer rows for the model.
    """
    hidden, router = _read(params, config, tokens, positions, segment_ids, layout)
    head, softcap = unembedding(params, config), config.final_softcap or None

    def read(hidden: jax.Array, head: jax.Array, targets: jax.Array, *mask: jax.Array) -> TokenLogprobs:
        return token_logprobs(
            hidden,
            head,
            targets,
            temperature=temperature,
            softcap=softcap,
            with_entropy=with_entropy,
            with_statistics=with_statistics,
            mask=mask[0] if mask else None,
        )

    # What is said of a token is read off the position before it.
    following = [jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (tokens, mask) if x is not None]
    if layout is not None:  # a token that is shared is read where any of its sequences reads it
        following = [move(x) for move, x in zip((layout.pack, layout.sum), following, strict=False)]
    scored = split_rows(read, None, TABLE, *[None] * len(following))(hidden, head, *following)
    if layout is not None:
        scored = jax.tree.map(layout.unpack, scored)
    aligned = jax.tree.map(lambda x: align(x, segment_ids), scored)
    return Scores(
        aligned.logp,
        aligned.logsumexp,
        aligned.entropy,
        router=router,
        readout=Readout(hidden, head, softcap, layout),
        statistics=aligned.statistics,
    )


def score_scalar(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    num_segments: int = 1,
    layout: Layout | None = None,
) -> Scores:
    """Values of all states, and rewards of segments 1..S, by a scalar model; arguments as for `score_tokens`."""
    hidden, router = _read(params["transformer"], config, tokens, positions, segment_ids, layout)
    numbers = scalar_head(params["head"], hidden)
    numbers = numbers if layout is None else layout.unpack(numbers)
    rewards = _at_last_token(numbers, segment_ids, num_segments)
    return Scores(values=align(numbers, segment_ids), rewards=rewards, router=router)


def divergence(
    policy: Scores,
    reference: Scores,
    segment_ids: jax.Array,
    *,
    kind: str = "reverse_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
) -> jax.Array:
    """How far the policy's next-token distribution is from another model's, before every token: float32 [B, T], nats.

    Exact over the vocabulary; see `token_divergence` for the kinds. Gradients reach the policy alone.
    """
    mine, other = policy.readout, reference.readout
    assert mine is not None and other is not None, "ask score_batch for the readouts"
    read = functools.partial(
        token_divergence,
        kind=kind,
        beta=beta,
        temperature=temperature,
        softcap=mine.softcap,
        ref_softcap=other.softcap,
    )
    split = split_rows(read, None, TABLE, None, TABLE)
    each = split(mine.hidden, mine.head, other.hidden, other.head)
    return align(each if mine.layout is None else mine.layout.unpack(each), segment_ids)


def exact_kl(
    params: Params,
    ref_params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """KL(policy || reference) of the whole next-token distribution before every token: float32 [B, T], nats."""
    policy, reference = (
        score_tokens(x, config, tokens, positions, segment_ids) for x in (params, ref_params)
    )
    return divergence(policy, reference, segment_ids, temperature=temperature)


def segment_rewards(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    num_segments: int,
) -> jax.Array:
    """A scalar model's score at the last token of segments 1..S: float32 [B, S], 0 for absent segments."""
    return score_scalar(params, config, tokens, positions, segment_ids, num_segments=num_segments).rewards


def _read(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    layout: Layout | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Hidden states [B, T, D], or [R, T, D] by a layout, and what `hidden_states_and_router` says of the router."""
    whole = None
    if layout is not None:
        if layout.copies is not None:
            whole = Whole(layout, positions, segment_ids)
        tokens, positions, segment_ids = layout.pack(tokens), layout.pack(positions), layout.segment_ids
    return hidden_states_and_router(params, config, tokens, positions, segment_ids, whole)


def _at_last_token(numbers: jax.Array, segment_ids: jax.Array, num_segments: int) -> jax.Array:
    # The last token is found by segment and position, never by a token's id: padding and packing cannot move it.
    member = segment_ids[:, None, :] == jnp.arange(1, num_segments + 1, dtype=jnp.int32)[None, :, None]
    order = jnp.arange(1, segment_ids.shape[1] + 1, dtype=jnp.int32)[None, None, :]
    last = jnp.max(jnp.where(member, order, 0), axis=-1)
    picked = jnp.take_along_axis(numbers, jnp.maximum(last - 1, 0), axis=1)
    return jnp.where(last > 0, picked, 0.0)
