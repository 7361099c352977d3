"""MaxText's step, or Tunix's on MaxText's model, compiled for a slice that is not here; see `tpu`.

python -m benchmarks.maxtext_side TABLE
"""

# MaxText and Tunix stand in no extra: they are installed for this alone.
# pyright: reportMissingImports=false

import functools
import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks import tpu
from jaxalign.models import ModelConfig
from jaxalign.models.presets import preset
from jaxalign.parallel.sharding import RULES
from jaxalign.plan.measure import measure
from jaxalign.plan.topology import parse_topology
from jaxalign.training.memory import Program

try:
    import optax
    from flax import nnx
    from flax.core.spmd import logical_axis_rules
    from maxtext.common.train_state_nnx import TrainStateNNX
    from maxtext.configs import pyconfig
    from maxtext.integration.tunix.tunix_adapter import TunixMaxTextAdapter
    from maxtext.optimizers import optimizers
    from maxtext.trainers.pre_train import train, train_compile
    from maxtext.utils import maxtext_utils, model_creation_utils, sharding
    from tunix.sft.dpo import dpo_trainer
except ImportError as error:
    sys.exit(
        f"{error}\nto compile the peers: pip install 'maxtext[tpu]==0.2.5' google-metrax perfetto -e . && "
        "pip install --no-deps google-tunix==0.1.7 (Python 3.12 or newer)"
    )

PROMPT = 512  # tokens of a pair's prompt, for which Tunix computes logits, too


def read(settings: dict[str, Any], folder: str) -> Any:
    """MaxText's config: its defaults, which are float32 weights and AdamW, but for what is given."""
    given = {"model_name": "llama3.1-8b", "max_target_length": 8192, "run_name": "plan"}
    given |= {
        "base_output_directory": folder,
        "enable_checkpointing": False,
        "compile_topology_num_slices": 1,
    }
    return pyconfig.initialize(["", *(f"{key}={x}" for key, x in (given | settings).items())])


def program(
    config: Any,
    name: str,
    step: Callable[..., Any],
    arguments: tuple,
    beside: dict[str, Any] | None = None,
    **jit: Any,
) -> Program:
    """A program of theirs as `measure` takes it.

    Args:
      beside: as `Program` has it.
      jit: what `jax.jit` is told.
    """

    @functools.wraps(step)
    def traced(*given: Any) -> Any:
        with logical_axis_rules(config.logical_axis_rules):
            return step(*given)

    # What is known of ours alone, such as the model's FLOP, is left out.
    empty: dict[str, Any] = {"kinds": {}, "tokens": 0, "model_flops": 0.0, "parameters": {}, "passes": 0}
    return Program(name, jax.jit(traced, **jit), arguments, beside=beside or {}, **empty)


def sft(config: Any, mesh: Mesh) -> list[Program]:
    """As `train_compile` makes it: of MaxText SFT and pretraining are one step."""
    arguments, _, shardings, _, graph = train_compile.get_shaped_inputs(mesh, config)
    params, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step, inputs, outputs, _, donated = maxtext_utils.get_functional_train_with_signature(
        train.train_step, sharding.get_input_data_sharding(config, mesh), shardings, graph, config, params
    )
    jit = {"in_shardings": inputs, "out_shardings": outputs, "donate_argnums": donated}
    return [program(config, "update", step, arguments, **jit)]


def dpo(config: Any, mesh: Mesh) -> list[Program]:
    """What MaxText's `train_dpo` has Tunix run: the reference's forward pass, then `PeftTrainer._train_step`."""
    make_model, _ = model_creation_utils.create_nnx_abstract_model(config, mesh)
    transform = optax.chain(
        optax.clip_by_global_norm(config.gradient_clipping_threshold),
        optimizers.get_optimizer(config, maxtext_utils.create_learning_rate_schedule(config)),
    )
    settings = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, max_steps=1)

    def make_state() -> TrainStateNNX:
        model = TunixMaxTextAdapter(base_model=make_model(), pad_id=0)
        return TrainStateNNX(model, nnx.Optimizer(model, transform, wrt=nnx.Param))

    state, _, shardings = maxtext_utils.get_abstract_state(config, mesh, make_state)
    with logical_axis_rules(config.logical_axis_rules):
        graph, _ = nnx.split(nnx.eval_shape(make_state))
    example = make_example(config, mesh)

    def update(state: Any, example: dpo_trainer.TrainExample) -> Any:
        whole = nnx.merge(graph, state)
        trainer = dpo_trainer.DPOTrainer(whole.model, None, transform, settings)
        loss = trainer._train_step(whole.model, whole.optimizer, example)
        return nnx.state(whole, nnx.Not(nnx.Intermediate)), loss

    def refer(state: Any, example: dpo_trainer.TrainExample) -> Any:
        model = nnx.merge(graph, state).model
        keep = example.logits_to_keep
        inputs = (example.input_ids, example.positions, example.attention_mask, keep, example.completion_mask)
        return dpo_trainer.compute_logps(model, *inputs)

    # The reference is a copy of the model; policy, its optimizer and reference stay in memory through both programs.
    jit = {"donate_argnums": 0, "out_shardings": (shardings, None)}
    return [
        program(config, "reference", refer, (state, example), beside={"policy": arrays(state)}),
        program(
            config, "update", update, (state, example), beside={"reference": arrays(state["model"])}, **jit
        ),
    ]


def arrays(state: Any) -> list[jax.ShapeDtypeStruct]:
    """Parameters and moments, without counts and keys."""
    return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]


def make_example(config: Any, mesh: Mesh) -> dpo_trainer.TrainExample:
    """Chosen above rejected, as Tunix's trainer lays pairs out: twice the batch in rows."""
    pairs, length = config.global_batch_size_to_load, config.max_target_length
    rows = sharding.get_input_data_sharding(config, mesh)
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(rows.spec[0]))

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch)

    answer = length - PROMPT
    return dpo_trainer.TrainExample(
        input_ids=array(2 * pairs, length),
        positions=array(2 * pairs, length),
        attention_mask=array(2 * pairs, length, length, dtype=jnp.bool_),
        ref_chosen_logps=array(pairs, dtype=jnp.float32),
        ref_rejected_logps=array(pairs, dtype=jnp.float32),
        completion_mask=array(2 * pairs, answer),
        logits_to_keep=answer,
    )


def main() -> None:
    """Prints {"steps": [...]}, each as `measure` gives it."""
    table = tpu.TABLES[sys.argv[1]]
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")  # as `train_compile` does
    with tempfile.TemporaryDirectory() as folder:
        config = read(table.peers, folder)
        mesh = train_compile.get_topology_mesh(config)
        model = ModelConfig(**preset("llama3_1_8b"))
        where = parse_topology(table.topology)
        steps = (dpo if table.pairs else sft)(config, mesh)
        print(json.dumps({"steps": [measure(step, model, mesh, RULES, where) for step in steps]}))


if __name__ == "__main__":
    main()
