"""A stage of one phase: batch -> loss -> gradient -> update, of one model on given data."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxalign.data import abstract_batch
from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import Metrics, finalize, merge
from jaxalign.models import ModelConfig, Params
from jaxalign.models.flops import full_work, step_flops
from jaxalign.models.frozen import FrozenConfig, abstract_keep, keep
from jaxalign.training.memory import FROZEN, OPTIMIZER, PARAMETERS, Program
from jaxalign.training.open import Run
from jaxalign.training.programs import made_once
from jaxalign.training.reference import score_dataset
from jaxalign.training.samples import count_samples, make_sampler
from jaxalign.training.saved_model import SavedModel, find_language_model, fingerprint
from jaxalign.training.state import TrainState, abstract_train_state, make_state
from jaxalign.training.trainer import Trainer

if TYPE_CHECKING:
    from jaxalign.training.stage import FrozenModel, Stage


@dataclasses.dataclass(frozen=True)
class FrozenModels:
    """The models that a loss reads: their parameters, architectures and a digest of them all."""

    params: dict[str, Params]
    configs: dict[str, ModelConfig]  # of those that are not like the trained model
    digest: str


def build_trainer(stage: "Stage", run: Run) -> Trainer:
    """The stage's trainer for the loop.

    Raises:
      ConfigError: config.frozen is set, and there is no frozen model.
    """
    options = run.config.options
    run, frozen = load_frozen(stage.frozen(options), run)
    check_frozen(run, held=bool(frozen.params))
    train_step = stage.step(run.config, run.model, frozen.configs, total_steps=run.updates)
    evaluate_batch, whole = _make_evaluation(stage, options, run.model, frozen.configs)
    abstract = abstract_train_state(run.abstract_params(scalar=stage.scalar), run.optimizer, run.mesh)

    @functools.cache
    def held_out_totals() -> dict[str, dict[str, jax.Array]]:
        return {
            name: functools.reduce(add_trees, [whole(None, batch, {}) for batch in run.eval_batches(name)])
            for name in run.eval_sets
        }

    def evaluate(state: TrainState, go_on: Callable[[], bool]) -> dict[str, float]:
        # Each batch's loss divides by the totals of its set, and of them all: so they add up to the loss of all data.
        totals = held_out_totals()
        pooled = functools.reduce(add_trees, totals.values())
        found: dict[str, dict[str, float]] = {}
        losses, every, going = [], [], True
        for name, own in totals.items():
            mine, merged = [], None
            for batch in run.eval_batches(name):
                going = going and go_on()
                if not going:
                    break
                (value, share), metrics = evaluate_batch(state.params, batch, (own, pooled), frozen.params)
                mine.append(value)
                losses.append(share)
                merged = metrics if merged is None else merge_two(merged, metrics)
            if merged is not None:
                every.append(merged)
                found[name] = _floats(finalize(merged)) | {"loss": sum(map(float, mine))}
        if not every:
            return {}
        together = _floats(finalize(functools.reduce(merge_two, every))) | {"loss": sum(map(float, losses))}
        return name_sets({name: found.get(name, {}) for name in totals}, together)

    sample = make_sampler(run, count_samples(run, stage.log_samples, scalar=stage.scalar))

    def verify(state: TrainState, batch: Any) -> None:
        if stage.step_zero is not None:
            stage.step_zero(run, state.params, batch, frozen.params)

    return Trainer(
        run=run,
        abstract_state=abstract,
        init=lambda: make_state(run.init_params(scalar=stage.scalar), run.optimizer, abstract, donate=True),
        phases=(("update", lambda state, batch: train_step(state, batch, frozen.params)),),
        evaluate=evaluate,
        samples=lambda state: sample(state.params),
        scalar=stage.scalar,
        verify=verify,
        headlines=stage.headlines,
        changeable=stage.changeable,
        fingerprint=frozen.digest,
    )


@made_once
def _make_evaluation(
    stage: "Stage", options: Any, model: ModelConfig, others: dict[str, ModelConfig]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The evaluation of a batch, and what the losses of a set are divided by."""
    return jax.jit(stage.evaluation(model, options, others)), jax.jit(stage.total(model, options))


def check_frozen(run: Run, *, held: bool) -> None:
    """Raises ConfigError where config.frozen is set, and no frozen model is `held` that it could be of."""
    if not held and run.config.frozen != FrozenConfig():
        raise ConfigError(
            f"config.frozen is {run.config.frozen}, but this run holds no frozen model; leave it as it is by default"
        )


def find_frozen(wanted: dict[str, "FrozenModel"], run: Run) -> dict[str, SavedModel]:
    """The models that a loss reads beside the one that training starts from, by name, not loaded; see `load_frozen`."""
    found = {}
    for name, model in sorted(wanted.items()):
        if model.path:
            found[name] = find_language_model(model.path, model.key)
            check_same_tokenizer(found[name], model.path, model.key, run)
    return found


def load_frozen(wanted: dict[str, "FrozenModel"], run: Run) -> tuple[Run, FrozenModels]:
    """Loads the models that a loss reads; of those to be scored beforehand the data keep their scores alone.

    Raises:
      ConfigError: a model is a reward model, or has other tokens than the trained one.
      CheckpointError: it is missing or damaged.
    """
    params: dict[str, Params] = {}
    configs: dict[str, ModelConfig] = {}
    digests = []
    others = find_frozen(wanted, run)
    for name, model in sorted(wanted.items()):
        if name in others:
            loaded = others[name].load(run.mesh)
            configs[name] = computed_alike(others[name].config, run)
        else:
            loaded = run.load_init()
        digests.append(f"{name}:{fingerprint(loaded)}")
        if model.precompute:
            if run.train.stream is not None:
                key = f"config.{run.config.stage.name}.precompute_reference"
                raise ConfigError(
                    f"{key}=True reads all rows before training, and a stream has no end; leave it out"
                )
            run = score_dataset(run, loaded)
        else:
            params[name] = keep(loaded, run.config.frozen)
    return run, FrozenModels(params, configs, "-".join(digests))


def computed_alike(model: ModelConfig, run: Run) -> ModelConfig:
    """Another model's architecture, computed as config.model says: in the run's type, and by the kernel named there.

    Where none is, it keeps the one that is best for it: not every kernel can do heads of every size.
    """
    kernel = run.config.model.attention
    attention = model.attention if kernel == "auto" else kernel
    return dataclasses.replace(model, dtype=run.model.dtype, attention=attention)


def check_same_tokenizer(found: SavedModel, path: str, key: str, run: Run) -> None:
    """Raises ConfigError unless a model reads the tokens that the trained one writes."""
    if run.source is None:
        return
    if found.tokenizer_digest() != run.source.tokenizer_digest():
        raise ConfigError(
            f"{key}={path!r} has another tokenizer than config.model.init_from; train it from "
            f"a model with the policy's tokenizer"
        )
    if found.config.vocab_size < run.tokenizer.vocab_size:
        raise ConfigError(
            f"{key}={path!r} has vocab_size={found.config.vocab_size}, and no rows for all of the "
            f"{run.tokenizer.vocab_size} tokens of config.data.tokenizer={run.config.data.tokenizer!r}; add the new "
            "ones in an sft run, and begin both models from that one"
        )


def update_program(stage: "Stage", run: Run) -> Program:
    """The stage's one step with abstract arguments."""
    config = run.config
    params = run.abstract_params(scalar=stage.scalar)
    state = abstract_train_state(params, run.optimizer, run.mesh)
    wanted = stage.frozen(config.options)
    # What a frozen model of another architecture takes cannot be known before it is there.
    frozen = {name: abstract_keep(params, config.frozen) for name, x in wanted.items() if not x.precompute}
    batch = abstract_batch(stage.data, config.data, config.batch_size, run.abstract_rows)
    tokens = config.batch_size * config.data.row_length
    length = min(config.data.max_length, config.data.row_length)
    work = full_work(run.model, 1, length).times(tokens / length)
    return Program(
        name="update",
        function=stage.step(config, run.model, total_steps=run.updates),
        arguments=(state, batch, frozen),
        kinds={PARAMETERS: state.params, OPTIMIZER: state.opt_state, FROZEN: frozen},
        tokens=tokens,
        # A frozen model runs forward only.
        model_flops=step_flops(run.model, work, scalar=stage.scalar, passes=3 + len(frozen)),
        parameters=params["transformer"] if stage.scalar else params,
        passes=config.num_microbatches * (2 + len(frozen)),
    )


def name_sets(found: dict[str, dict[str, float]], together: dict[str, float]) -> dict[str, float]:
    """The values of an evaluation by their full names: `eval/loss` over all sets, and `eval/SET/loss` of several.

    A set that was not reached has the same names, and NaN.
    """
    out = {f"eval/{name}": x for name, x in together.items()}
    for part, values in found.items() if len(found) > 1 else ():
        out |= {f"eval/{part}/{name}": values.get(name, math.nan) for name in together}
    return out


def _floats(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(x) for name, x in values.items()}


@jax.jit
def merge_two(a: Metrics, b: Metrics) -> Metrics:
    """Metrics of two batches as those of both."""
    return merge(jax.tree.map(lambda x, y: jnp.stack((x, y)), a, b))


def add_trees(a: Any, b: Any) -> Any:
    """The sum of two trees, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)
