"""How alike the two responses of a preference are to a language model (arXiv 2410.08847, definition 2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset, eval_batches
from jaxalign.models import ModelConfig, Params
from jaxalign.models.forward import hidden_states
from jaxalign.parallel import batch_sharding


@functools.partial(jax.jit, static_argnames=("config", "num_segments"))
def _sums(params, config, tokens, positions, segment_ids, loss_mask, num_segments):
    hidden = hidden_states(params, config, tokens, positions, segment_ids)[0].astype(jnp.float32)
    # The state that a token is read off stands one place before it.
    says = jnp.pad(loss_mask[:, 1:], ((0, 0), (0, 1)))
    member = segment_ids[:, None, :] == jnp.arange(1, num_segments + 1, dtype=jnp.int32)[None, :, None]
    weight = member * says[:, None, :]
    return jnp.einsum("bst,btd->bsd", weight, hidden), weight.sum(-1)


def ches(
    params: Params, config: ModelConfig, dataset: Dataset, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centred hidden embedding similarity of each pair of a preference dataset; inside `parallel.use_mesh`.

    With h the last hidden states off which the tokens of a response are read, it is <Σ h⁺, Σ h⁻> - ‖Σ h⁺‖²; in its
    length-normalised form the sums are means. The higher, the more DPO lowers the preferred response.

    Returns:
      Record numbers int32 [N], and both forms, float64 [N, 2].
    """
    layout = batch_sharding(jax.sharding.get_mesh())
    numbers, scores = [], []
    for batch in eval_batches(dataset.rows, batch_size):
        arrays = jax.device_put((batch.tokens, batch.positions, batch.segment_ids, batch.loss_mask), layout)
        sums, lengths = (
            np.asarray(x, np.float64)
            for x in _sums(params, config, *arrays, num_segments=batch.rows.shape[1])
        )
        row, pair = np.nonzero(batch.weight)
        chosen, rejected = batch.chosen[row, pair] - 1, batch.rejected[row, pair] - 1
        numbers.append(batch.rows[row, chosen])
        one, other = sums[row, chosen], sums[row, rejected]
        means = one / lengths[row, chosen, None], other / lengths[row, rejected, None]
        scores.append(np.stack([np.sum(a * b - a * a, axis=1) for a, b in ((one, other), means)], axis=1))
    return np.concatenate(numbers), np.concatenate(scores)
