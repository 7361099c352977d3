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


def sequence_logprobs(params: Params, batch: Any, model: ModelConfig) -> jax.Array:
    """Log-probability of the supervised tokens of every segment: float32 [B, S]."""
    logp = score_batch(params, model, batch).logp
    return segment_sums(logp * batch.loss_mask, batch.segment_ids, batch.rows.shape[1])


def verify_reference(run: Run, params: Params, batch: Any, frozen: dict[str, Params]) -> None:
    """Checks that every sequence of a batch is as likely under the reference as under the policy.

    Raises:
      StepZeroError: one is not, and so its margin is not 0 before the first update.
    """

    @jax.jit
    def compare(params: Params, batch: Any, frozen: dict[str, Params]) -> tuple[jax.Array, jax.Array]:
        mine = sequence_logprobs(params, batch, run.model)
        theirs = sequence_logprobs(frozen["reference"], batch, run.model) if frozen else batch.ref_logp
        return jnp.max(jnp.abs(mine - theirs)), jnp.max(jnp.abs(mine))

    gap, size = map(float, compare(params, batch, frozen))
    tolerance = 1e-4 if run.model.dtype == run.config.frozen.dtype == "float32" else 0.1
    if not gap <= tolerance * max(1.0, size):
        raise StepZeroError(
            f"before the first update the policy is the reference, and every margin is 0, yet the log-probabilities "
            f"of a sequence differ by {gap:.3e}; those of the reference belong to other weights or other data, or "
            f"config.frozen.dtype rounds them by too much"
        )


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
