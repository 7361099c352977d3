"""A reference that training starts from: its log-probabilities of a whole dataset, and the check that it is one."""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Dataset
from jaxalign.data.batch import segment_sums
from jaxalign.errors import CheckpointError, StepZeroError
from jaxalign.models import ModelConfig, Params
from jaxalign.models.scoring import score_batch
from jaxalign.parallel import processes
from jaxalign.storage import Path, write_whole
from jaxalign.training.open import Run
from jaxalign.training.programs import made_once
from jaxalign.training.saved_model import fingerprint

FOLDER = "reference_logp"
_SUM = hashlib.sha256().digest_size  # bytes at the end of a file, of all that stands before
# Relative rounding error of one number; int8 has 127 steps a channel.
_UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11, "int8": 2.0**-7}


def sequence_logprobs(params: Params, batch: Any, model: ModelConfig) -> jax.Array:
    """Log-probability of the supervised tokens of every segment: float32 [B, S]."""
    logp = score_batch(params, model, batch, mask=batch.loss_mask).logp
    return segment_sums(logp * batch.loss_mask, batch.segment_ids, batch.rows.shape[1])


def verify_reference(run: Run, params: Params, batch: Any, frozen: dict[str, Params]) -> None:
    """Checks that every sequence of a batch is as likely under the reference as under the policy.

    With config.resume_from the policy is not its reference any more, and there is nothing to check.

    Raises:
      StepZeroError: one is not, and so its margin is not 0 before the first update.
    """
    if run.config.resume_from:
        return
    compare = _make_comparison(run.model)
    gap, size, count = (processes.fetch_whole(x) for x in compare(params, batch, frozen))
    dtypes = {run.model.dtype, run.config.frozen.dtype}
    if dtypes == {"float32"}:
        allowed = np.full_like(size, 1e-4 * max(1.0, size.max()))
        off = (gap / allowed).max()
    else:
        # One program that reads the same weights twice rounds alike; scores from before, or rounded weights, do not.
        units = 2.0 if frozen and run.config.frozen.dtype == "float32" else 8.0
        allowed = units * _rounding(size, count, dtypes)
        off = np.sqrt(np.mean(np.square((gap / allowed)[count > 0])))
    if not off <= 1:
        worst = np.argmax(np.where(count > 0, gap / allowed, 0.0))
        raise StepZeroError(
            f"before the first update the policy is the reference, and every margin is 0, yet the log-probabilities "
            f"of a sequence differ by {gap.flat[worst]:.3e}, and rounding explains {allowed.flat[worst]:.1e} (its "
            f"{count.flat[worst]:.0f} tokens have {-size.flat[worst]:.4g} nats); those of the reference belong to "
            f"other weights or other data, or config.frozen.dtype rounds them by too much"
        )


@made_once
def _make_comparison(model: ModelConfig) -> Callable[..., tuple[jax.Array, ...]]:
    """How far the sequences of a batch are from the reference's, their own size, and their tokens: float32 [B, S]."""
    model = dataclasses.replace(model, scan_layers=True)  # it runs once: what counts is how long it compiles

    def compare(params: Params, batch: Any, frozen: dict[str, Params]) -> tuple[jax.Array, ...]:
        mine = sequence_logprobs(params, batch, model)
        theirs = sequence_logprobs(frozen["reference"], batch, model) if frozen else batch.ref_logp
        count = segment_sums(batch.loss_mask, batch.segment_ids, batch.rows.shape[1])
        return jnp.abs(mine - theirs), jnp.abs(mine), count

    return jax.jit(compare)


def _file_of(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue() + hashlib.sha256(file.getvalue()).digest()


def _read_scores(path: Path, count: int) -> np.ndarray:
    """The log-probabilities in a file, a row of each of `count` rows.

    Raises:
      CheckpointError: the file is cut short, was changed, or is another one.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[:-_SUM]).digest() != data[-_SUM:]:
            raise ValueError("its SHA-256 is another")
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it, and it is made again") from None
    if values.ndim != 2 or len(values) != count or not np.isfinite(values).all():
        raise CheckpointError(
            f"{path}: has the shape {list(values.shape)} or numbers that are not finite, and belongs to {count} rows; "
            "delete it, and it is made again"
        )
    return values


@made_once
def _make_scorer(model: ModelConfig) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(sequence_logprobs, model=model))


def _rounding(size: np.ndarray, count: np.ndarray, dtypes: set[str]) -> np.ndarray:
    """The unit in which rounding moves the log-probabilities of sequences: nats [B, S].

    A token's is off by some units of rounding of its own size, or of 1 where it is almost certain, up and down alike:
    over `count` tokens the errors grow as the root of their number. Measured on a model of 20,000 parameters, in root
    mean squares over sequences: 0 units where policy and reference are read by one program, 1.9 between bfloat16 and
    float32, 1.8 for a reference rounded to bfloat16, 2.0 for int8; and 3.2 of bfloat16 for tables that are 1 % larger.

    Args:
      size: |log-probability| of each sequence. count: its tokens. dtypes: of the computation and the frozen weights.
    """
    tokens = np.maximum(1.0, count)
    return max(_UNIT[dtype] for dtype in dtypes) * np.sqrt(tokens) * np.maximum(1.0, size / tokens)


def score_dataset(run: Run, reference: Params) -> Run:
    """The run with `ref_logp` filled in for every row of its data, each process scoring its share.

    Files are named by a digest of the tokens, their packing, the weights and the compute type: a file that is
    found belongs to exactly this data and this reference. What they end with says that they are as they were written.
    """
    score = _make_scorer(run.model)
    weights = fingerprint(reference)

    def computed(dataset: Dataset) -> np.ndarray:
        parts = [processes.fetch_whole(score(reference, batch)) for batch in run.batches(dataset)]
        return np.concatenate(parts)[: len(dataset.rows)]

    def filled(dataset: Dataset) -> Dataset:
        rows = dataset.rows
        layout = repr((rows.bins.digest, rows.row_length, rows.max_segments, run.model.dtype))
        # The first files had no checksum: those are made again.
        digest = hashlib.sha256(f"2 {dataset.fingerprint} {weights} {layout}".encode()).hexdigest()[:24]
        path = run.workdir / FOLDER / f"{digest}.npy"
        # Only process 0 looks: on a network disk, who once saw no file may go on seeing none.
        if not processes.broadcast_from_first(jax.process_index() == 0 and path.is_file()):
            values = computed(dataset)
            if jax.process_index() == 0:
                write_whole(path, _file_of(values))
            processes.barrier()
        values = _read_scores(path, len(rows))
        return dataclasses.replace(dataset, rows=dataclasses.replace(rows, ref_logp=values))

    held_out = filled(run.held_out) if run.held_out is not None else None
    return dataclasses.replace(run, train=filled(run.train), held_out=held_out)
