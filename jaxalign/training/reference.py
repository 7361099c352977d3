"""A reference that training starts from: its log-probabilities of a whole dataset, and the check that it is one."""

import dataclasses
import functools
import hashlib
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset
from jaxalign.data.batch import segment_sums
from jaxalign.errors import StepZeroError
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import score_batch
from jaxalign.parallel import processes
from jaxalign.storage import write_whole
from jaxalign.training.open import Run
from jaxalign.training.saved_model import fingerprint

FOLDER = "reference_logp"
# Relative rounding error of one number; float32's is covered by its own tolerance, and int8 has 127 steps a channel.
_UNIT = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 2.0**-7}
_UNITS = 8.0  # of that error, in the log-probability of a token, that passes for rounding


def sequence_logprobs(params: Params, batch: Any, model: ModelConfig) -> jax.Array:
    """Log-probability of the supervised tokens of every segment: float32 [B, S]."""
    logp = score_batch(params, model, batch).logp
    return segment_sums(logp * batch.loss_mask, batch.segment_ids, batch.rows.shape[1])


def verify_reference(run: Run, params: Params, batch: Any, frozen: dict[str, Params]) -> None:
    """Checks that every sequence of a batch is as likely under the reference as under the policy.

    With config.resume_from the policy is not its reference any more, and there is nothing to check.

    Raises:
      StepZeroError: one is not, and so its margin is not 0 before the first update.
    """
    if run.config.resume_from:
        return

    @jax.jit
    def compare(params: Params, batch: Any, frozen: dict[str, Params]) -> tuple[jax.Array, ...]:
        mine = sequence_logprobs(params, batch, run.model)
        theirs = sequence_logprobs(frozen["reference"], batch, run.model) if frozen else batch.ref_logp
        count = segment_sums(batch.loss_mask, batch.segment_ids, batch.rows.shape[1])
        return jnp.abs(mine - theirs), jnp.abs(mine), count

    gap, size, count = map(processes.fetch_whole, compare(params, batch, frozen))
    allowed = _allowed_gap(size, count, {run.model.dtype, run.config.frozen.dtype})
    worst = np.unravel_index(np.argmax(np.where(np.isfinite(gap), gap - allowed, np.inf)), gap.shape)
    if not gap[worst] <= allowed[worst]:
        raise StepZeroError(
            f"before the first update the policy is the reference, and every margin is 0, yet the log-probabilities "
            f"of a sequence of {count[worst]:.0f} tokens differ by {gap[worst]:.3e}, and rounding explains "
            f"{allowed[worst]:.1e}; those of the reference belong to other weights or other data, or "
            f"config.frozen.dtype rounds them by too much"
        )


def _allowed_gap(size: np.ndarray, count: np.ndarray, dtypes: set[str]) -> np.ndarray:
    """By how much rounding may move the log-probabilities of sequences: nats [B, S].

    In fewer bits each token's is off by several units of its own size (or of 1, for a token that is almost certain),
    up and down alike, so that over `count` tokens the errors grow as the root of their number.

    Args:
      size: |log-probability| of each sequence. dtypes: those of the computation and of the frozen weights.
    """
    unit = max(_UNIT[dtype] for dtype in dtypes)
    if not unit:
        return 1e-4 * np.maximum(1.0, size)
    tokens = np.maximum(1.0, count)
    return _UNITS * unit * np.sqrt(tokens) * np.maximum(1.0, size / tokens)


def score_dataset(run: Run, reference: Params) -> Run:
    """The run with `ref_logp` filled in for every row of its data, each process scoring its share.

    Files are named by a digest of the tokens, their packing, the weights and the compute type: a file that is
    found belongs to exactly this data and this reference.
    """
    score = jax.jit(functools.partial(sequence_logprobs, model=run.model))
    weights = fingerprint(reference)

    def computed(dataset: Dataset) -> np.ndarray:
        parts = [processes.fetch_whole(score(reference, batch)) for batch in run.batches(dataset)]
        return np.concatenate(parts)[: len(dataset.rows)]

    def filled(dataset: Dataset) -> Dataset:
        rows = dataset.rows
        layout = repr((rows.bins, rows.row_length, rows.max_segments, run.model.dtype))
        digest = hashlib.sha256(f"{dataset.fingerprint} {weights} {layout}".encode()).hexdigest()[:24]
        path = run.workdir / FOLDER / f"{digest}.npy"
        # Only process 0 looks: on a network disk, who once saw no file may go on seeing none.
        if not processes.broadcast_from_first(jax.process_index() == 0 and path.is_file()):
            values = computed(dataset)
            if jax.process_index() == 0:
                file = io.BytesIO()
                np.save(file, values)
                write_whole(path, file.getvalue())
            processes.barrier()
        values = np.load(io.BytesIO(path.read_bytes()))
        return dataclasses.replace(dataset, rows=dataclasses.replace(rows, ref_logp=values))

    held_out = filled(run.held_out) if run.held_out is not None else None
    return dataclasses.replace(run, train=filled(run.train), held_out=held_out)
