"""A stage as one declaration: which data it reads, what may be set, and its loss. All else is made from it.

    def loss(policy: Scores, batch: PairBatch, frozen: dict[str, Scores], options: SimPOConfig, total: Totals):
        ...
        return value, metrics

    STAGE = Stage("simpo", data=PAIRS, options=SimPOConfig, loss=loss, totals=pair_totals)

The machinery scores the model that is trained and those that are not, each once a batch, adds the losses of a mixture
of experts, differentiates, updates, evaluates, and checks what must hold before the first update. A loss sees arrays.
"""

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data import Batch, PairBatch, UnpairedBatch
from jaxalign.errors import ConfigError
from jaxalign.losses.metrics import Mean, Metric, Metrics, finalize, masked_mean, merge, normalized
from jaxalign.models import ModelConfig, Params
from jaxalign.models.logprobs import TokenStatistics
from jaxalign.models.scoring import Scores, score_batch
from jaxalign.training.flops import count_work, flops_metric, tokens_metric, update_flops
from jaxalign.training.memory import Program
from jaxalign.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxalign.training.programs import made_once
from jaxalign.training.recipe import Recipe
from jaxalign.training.state import Objective, Update, make_update, slices
from jaxalign.training.supervised import build_trainer, find_frozen, update_program
from jaxalign.training.trainer import Trainer

Totals = dict[str, jax.Array]  # float32 scalars over the whole batch, by name
LossFn = Callable[[Scores, Any, dict[str, Scores], Any, Totals], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A model that a loss reads and nothing changes."""

    path: str = ""  # a run, a Hugging Face folder or a hub name; empty: the model that training starts from
    key: str = ""  # the config key that gave the path, for errors
    # Score the data before training, and put the sums over each segment into batch.ref_logp.
    precompute: bool = False


# Batches whose tokens were there before: of these a log shows how likely they are.
SUPERVISED = (Batch, PairBatch, UnpairedBatch)


def supervised_tokens(batch: Any, options: Any) -> jax.Array:
    """Of a stage that reads nothing but the tokens which are to be learned."""
    return batch.loss_mask


def no_models(options: Any) -> dict[str, FrozenModel]:
    """Of a stage whose loss reads no other model."""
    return {}


def plain_reading(options: Any) -> dict[str, Any]:
    """Log-probabilities at temperature 1, without entropies."""
    return {}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training. Register it by `default_config(STAGE)` in a config file."""

    name: str  # its options stand under config.<name>
    data: str  # a kind of jaxalign.data.kinds
    options: type  # a frozen dataclass, the defaults of config.<name>
    # (policy, batch, frozen, options, total) -> (scalar float32, metrics). It divides by `total`, so that the slices of
    # a batch add up to the batch.
    loss: LossFn
    # (batch, options) -> what the loss divides by, over the whole batch.
    totals: Callable[[Any, Any], Totals]
    scalar: bool = False  # train a model with one number a token, such as a reward model
    # options -> the models in the loss's `frozen`
    frozen: Callable[[Any], dict[str, FrozenModel]] = no_models
    # options -> temperature, with_entropy of `score_batch`
    reading: Callable[[Any], dict[str, Any]] = plain_reading
    # (batch, options) -> [B, T], nonzero at the tokens of which the loss, statistics and metrics read the scores: for
    # the others no logits are computed. None: all.
    reads: Callable[[Any, Any], jax.Array] | None = None
    # (policy, batch, frozen, options) -> means over the whole batch that the loss needs as constants, in its `total`.
    statistics: Callable[[Scores, Any, dict[str, Scores], Any], Metrics] | None = None
    # (run, params, first batch, frozen parameters): raises StepZeroError before the first update.
    step_zero: Callable[..., None] | None = None
    headlines: tuple[str, ...] = ()  # the metrics that a line of the log shows; none named: all
    log_samples: int = 0  # config.log_samples, where it is not set
    alarms: str = "grad_norm>20sd"  # config.alarms, where it is not set
    # Commands for what people do next with the model, as the end of a run tells them: {run} is its folder, {beside} the
    # one that it lies in, words in capitals are for the reader to fill in.
    afterwards: tuple[str, ...] = ()
    # The numbers that a config may leave to the stage.
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    # Keys of config.<name> with which a run may go on though it began with others.
    changeable: tuple[str, ...] = ()

    def weights(self, options: Any) -> str:
        """Where in the state the weights are that the stage is for: names of its fields, with "/" between them."""
        return "params"

    def shapes(self, options: Any) -> int:
        """For how many numbers of rows a program may be compiled."""
        return 1

    def tokens_read(self, batch: Any, options: Any) -> jax.Array | None:
        """What `reads` says of a batch."""
        return None if self.reads is None else self.reads(batch, options)

    def scores(
        self, model: ModelConfig, options: Any, others: dict[str, ModelConfig] | None = None
    ) -> Callable[..., tuple[Scores, dict[str, Scores]]]:
        """(params, batch, frozen parameters) -> what the trained and the frozen models say of a batch.

        Args:
          others: the architectures of frozen models that are not like `model`.
        """
        reading, others = dict(self.reading(options)), others or {}
        observed = reading.pop("with_statistics", False)

        def score(params: Params, batch: Any, frozen: dict[str, Params]) -> tuple[Scores, dict[str, Scores]]:
            measured = observed or (isinstance(batch, SUPERVISED) and not self.scalar)
            settings = reading | {"scalar": self.scalar, "mask": self.tokens_read(batch, options)}
            policy = score_batch(params, model, batch, **settings, with_statistics=measured)
            fixed = {
                name: score_batch(x, others.get(name, model), batch, **settings) for name, x in frozen.items()
            }
            return policy, jax.lax.stop_gradient(fixed)

        return score

    def objective(
        self,
        model: ModelConfig,
        options: Any,
        others: dict[str, ModelConfig] | None = None,
        *,
        whole: bool = True,
    ) -> Objective:
        """(params, batch, total, frozen parameters) -> (loss, metrics), for `make_update` to differentiate.

        Args:
          whole: batches are whole, so that `statistics` can be taken with the loss; of slices, `total` has them.
        """
        score = self.scores(model, options, others)

        def objective(
            params: Params, batch: Any, total: Totals, frozen: dict[str, Params]
        ) -> tuple[jax.Array, Metrics]:
            policy, fixed = score(params, batch, frozen)
            return self._value(policy, batch, fixed, options, total, model, whole=whole)

        return objective

    def evaluation(
        self, model: ModelConfig, options: Any, others: dict[str, ModelConfig] | None = None
    ) -> Callable[..., tuple[tuple[jax.Array, ...], Metrics]]:
        """(params, batch, totals, frozen parameters) -> the loss for each of several totals, and metrics.

        A batch of an evaluation set is part of that set's loss and of the loss over all sets, and is scored once.
        """
        score = self.scores(model, options, others)

        def evaluate(
            params: Params, batch: Any, totals: tuple[Totals, ...], frozen: dict[str, Params]
        ) -> tuple[tuple[jax.Array, ...], Metrics]:
            policy, fixed = score(params, batch, frozen)
            found = [self._value(policy, batch, fixed, options, total, model) for total in totals]
            return tuple(value for value, _ in found), found[0][1]

        return evaluate

    def total(
        self,
        model: ModelConfig,
        options: Any,
        others: dict[str, ModelConfig] | None = None,
        *,
        num_microbatches: int = 1,
    ) -> Callable[[Params, Any, dict[str, Params]], Totals]:
        """(params, batch, frozen parameters) -> what the loss divides by, and the statistics of a batch to be cut.

        The latter cost a forward pass over all slices before the first of them is differentiated.
        """
        score = self.scores(model, options, others)

        def total(params: Params, batch: Any, frozen: dict[str, Params]) -> Totals:
            out = self._call_totals(batch, options) | real_tokens(batch)
            statistics = self.statistics
            if statistics is None or num_microbatches == 1:
                return out

            def body(_: None, part: Any) -> tuple[None, Metrics]:
                policy, fixed = score(params, part, frozen)
                return None, statistics(policy, part, fixed, options)

            _, stacked = jax.lax.scan(body, None, slices(batch, num_microbatches))
            return out | finalize(merge(stacked))

        return total

    def step(
        self,
        config: Any,
        model: ModelConfig | None = None,
        others: dict[str, ModelConfig] | None = None,
        *,
        total_steps: int = 0,
    ) -> Update:
        """The jitted pure (state, batch, frozen parameters) -> (state, metrics): one update; donates the state.

        Args:
          config: the frozen Config of a run of this stage.
          model: the architecture; None takes that of config.model, whose vocab_size must be set.
          total_steps: updates in all, for the schedule; 0: config.num_steps.
        """
        architecture: ModelConfig = model or config.architecture(jax.default_backend())
        updates, parts = total_steps or config.num_steps, config.num_microbatches or 1
        models = (architecture, others or {})
        halt = config.on_nonfinite != "skip"
        return _make_step(self, config.options, *models, config.optimizer, updates, parts, halt)

    def check(self, run: Any) -> None:
        """Raises, as `build` would, for what can be known without loading a model."""
        find_frozen(self.frozen(run.config.options), run)

    def build(self, run: Any) -> Trainer:
        """What the loop runs."""
        return build_trainer(self, run)

    def programs(self, run: Any) -> list[Program]:
        """Every program that takes time or memory, with abstract arguments, for `jaxalign plan`."""
        return [update_program(self, run)]

    def _value(
        self,
        policy: Scores,
        batch: Any,
        fixed: dict[str, Scores],
        options: Any,
        total: Totals,
        model: ModelConfig,
        *,
        whole: bool = True,
    ) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of what models say of a batch; see `objective`."""
        if self.statistics is not None and whole:
            constant = jax.lax.stop_gradient(policy)
            total = total | finalize(self.statistics(constant, batch, fixed, options))
        value, metrics = self._call_loss(policy, batch, fixed, options, total)
        if policy.statistics is not None and isinstance(batch, SUPERVISED):
            metrics = token_metrics(policy.statistics, batch) | metrics
        return add_router_losses(value, metrics, policy.router, batch, total, model)

    def _call_totals(self, batch: Any, options: Any) -> Totals:
        """What the totals function returns.

        Raises:
          ConfigError: it is no dict of float32 numbers.
        """
        where = f"the totals of stage {self.name!r} ({_name(self.totals)})"
        totals = self.totals(batch, options)
        if not isinstance(totals, dict):
            raise ConfigError(f"{where} returns {type(totals).__name__}; return a dict: {{'pairs': ...}}")
        for name, x in totals.items():
            if not _is_number(x):
                raise ConfigError(
                    f"{where}: {name!r} is {_describe(x)}; give one float32 number, such as x.sum()"
                )
        return totals

    def _call_loss(
        self, policy: Scores, batch: Any, frozen: dict[str, Scores], options: Any, total: Totals
    ) -> tuple[jax.Array, Metrics]:
        """What the loss returns.

        Raises:
          ConfigError: it is not (loss, metrics), or the loss reads a total or a frozen model that is not there.
        """
        where = f"the loss of stage {self.name!r} ({_name(self.loss)})"
        try:
            result = self.loss(policy, batch, frozen, options, total)
        except KeyError as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"{where} reads {error}, in line {line.lineno} of {line.filename}; its `total` has "
                f"{', '.join(sorted(total))}, its `frozen` has {', '.join(sorted(frozen)) or 'no model'}: they are "
                "what `totals`, `statistics` and `frozen` of the Stage name"
            ) from error
        return check_loss(result, where)


@made_once
def _make_step(
    stage: Stage,
    options: Any,
    model: ModelConfig,
    others: dict[str, ModelConfig],
    optimizer: OptimizerConfig,
    updates: int,
    parts: int,
    halt: bool,
) -> Update:
    read = [name for name, x in stage.frozen(options).items() if not x.precompute]

    def measure(batch: Any) -> Metrics:
        frozen = tuple(others.get(name, model) for name in read)
        work = count_work(model, batch.segment_ids, batch.positions)
        mask = stage.tokens_read(batch, options)
        flops = update_flops(model, batch, frozen, scalar=stage.scalar, mask=mask)
        return tokens_metric(work) | flops_metric(flops)

    return make_update(
        stage.objective(model, options, others, whole=parts == 1),
        stage.total(model, options, others, num_microbatches=parts),
        make_optimizer(optimizer, updates),
        make_schedule(optimizer, updates),
        num_microbatches=parts,
        halt=halt,
        measure=measure,
    )


def token_metrics(statistics: TokenStatistics, batch: Any) -> Metrics:
    """What TRL reports of tokens, under its names, over the supervised ones.

    `entropy` of the next-token distribution, nats; `mean_token_accuracy`, how often the token is the likeliest, of
    pairs in the chosen response; of pairs also `logits/chosen` and `logits/rejected`, means over tokens and vocabulary.
    """
    counted, sides = batch.loss_mask, {}
    if isinstance(batch, PairBatch):
        sides = {"chosen": batch.weight_of(batch.chosen), "rejected": batch.weight_of(batch.rejected)}
    if isinstance(batch, UnpairedBatch):
        counted = batch.mask_of(batch.completion)
    found: Metrics = {
        "entropy": masked_mean(statistics.entropy, counted),
        "mean_token_accuracy": masked_mean(statistics.is_top1, sides.get("chosen", counted)),
    }
    return found | {
        f"logits/{side}": masked_mean(statistics.mean_logit, weight) for side, weight in sides.items()
    }


def check_loss(result: Any, where: str) -> tuple[jax.Array, Metrics]:
    """What a loss returned.

    Args:
      where: names the loss, for the error.

    Raises:
      ConfigError: it is not (one float32 number, metrics that can be merged).
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        kinds = [_describe(x) for x in result] if isinstance(result, tuple) else []
        found = f"({', '.join(kinds)})" if kinds else type(result).__name__
        raise ConfigError(f"{where} returns {found}; return (loss, metrics), a dict of metrics")
    value, metrics = result
    if not _is_number(value):
        raise ConfigError(
            f"{where} returns a loss of type {_describe(value)}; return one float32 number, such as "
            "normalized(masked_mean(x, weight), total[...])"
        )
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise ConfigError(
                f"{where}: its metric {name!r} is {type(metric).__name__}; give a Mean, Max or Min of "
                "jaxalign.losses, which can be merged over batches: masked_mean(x, weight)"
            )
    return value, metrics


def _name(function: Callable) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"


def _is_number(x: Any) -> bool:
    return getattr(x, "shape", None) == () and getattr(x, "dtype", None) == jnp.float32


def _describe(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


def real_tokens(batch: Any) -> Totals:
    """What router losses divide by: the tokens of the whole batch that are not padding."""
    return {"real_tokens": (batch.segment_ids > 0).sum().astype("float32")}


def add_router_losses(
    value: jax.Array,
    metrics: Metrics,
    router: jax.Array | None,
    batch: Any,
    total: Totals,
    model: ModelConfig,
) -> tuple[jax.Array, Metrics]:
    """Adds the weighted load-balancing loss and router z-loss of a mixture of experts; a dense model has none.

    Args:
      router: [2] sums over the real tokens of `batch`; see `models.experts.router_losses`.
      total: has `real_tokens` of the global batch.
    """
    if router is None:
        return value, metrics
    here = real_tokens(batch)["real_tokens"]
    balance, z = (Mean(x, here) for x in router)
    value = value + model.router_balance_coef * normalized(balance, total["real_tokens"])
    value = value + model.router_z_coef * normalized(z, total["real_tokens"])
    return value, metrics | {"router/balance_loss": balance, "router/z_loss": z}
