"""The programs of a stage that samples, with abstract arguments: sampling, scoring, and every update."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxalign.data import abstract_batch
from jaxalign.models.flops import full_work, sampling_flops, step_flops
from jaxalign.models.frozen import abstract_keep
from jaxalign.rl.abstract import abstract_rollout, check_run
from jaxalign.sampling.generate import Completions, generate
from jaxalign.training.memory import FROZEN, OPTIMIZER, PARAMETERS, Program
from jaxalign.training.open import Run
from jaxalign.training.state import abstract_train_state

if TYPE_CHECKING:
    from jaxalign.rl.stage import OnPolicyStage


def on_policy_programs(stage: "OnPolicyStage", run: Run) -> list[Program]:
    """Every program of a run whose critic, reference and reward model are like its policy."""
    config, options, model = run.config, run.config.options, run.model
    check_run(stage, run)
    micro, k = config.num_microbatches, options.samples_per_row
    E, P, N = config.batch_size, config.data.slots(stage.data), options.sampling.max_new_tokens
    T, part = P + N, config.batch_size // options.num_minibatches
    params, scalar = run.abstract_params(), run.abstract_params(scalar=True)
    policy = abstract_train_state(params, run.optimizer, run.mesh)
    has_critic = stage.critic_loss is not None
    critic = abstract_train_state(scalar, run.optimizer, run.mesh) if has_critic else None
    kept = abstract_keep(params, config.frozen)
    moving = bool(options.reference_rate)
    reference = kept if stage.reference(options) and not moving else None
    # Where no reward is named, it may be a model.
    judged_by_model = bool(options.reward_model) or getattr(options, "rewards", None) == ()
    judge = abstract_keep(scalar, config.frozen) if judged_by_model else None
    read = {name: kept for name, x in stage.frozen(options).items() if not x.precompute}
    frozen = {"reference": reference, "reward": judge} | read
    # A moving reference and averaged weights are further copies in the state.
    copies = [params] * (moving + bool(options.average_decay))
    whole = jax.ShapeDtypeStruct((), jnp.int32, sharding=run.replicated)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=run.replicated)
    prompts = abstract_batch(stage.data, config.data, E // k, run.abstract_rows)
    abstract: Any = run.abstract_rows
    new = abstract((E, N), jnp.float32)
    done = Completions(abstract((E, N), jnp.int32), new, new, abstract((E,), jnp.bool_))

    def work(rows: int, length: int, scalar: bool, passes: float) -> float:
        return step_flops(model, full_work(model, rows, length), scalar=scalar, passes=passes)

    def program(name: str, function: Any, arguments: tuple, flops: float, **other: Any) -> Program:
        settings = {"tokens": E * T, "parameters": params, "passes": 1} | other
        return Program(name=name, function=function, arguments=arguments, model_flops=flops, **settings)

    sampled = sampling_flops(model, full_work(model, E // k, P), full_work(model, E, T), E // k, k)
    scored = stage.scores_policy(options)
    forward = scored + (reference is not None or moving)
    judged = work(E, T, False, forward) + work(E, T, True, has_critic + (judge is not None))
    states = {"policy": policy.opt_state, "critic": critic and critic.opt_state}
    policy_update, value_update = stage.updates(run)
    rollout = abstract_rollout(stage, run, (part, T))
    programs = [
        program(
            "rollout",
            generate,
            (params, model, prompts.tokens, prompts.positions, prompts.segment_ids, key),
            sampled,
            keywords={"sampling": options.sampling, "stop_ids": (0,), "samples": k},
            kinds={PARAMETERS: params},
            beside={"policy": policy.opt_state, "critic": critic, "frozen": frozen, "copies": copies},
            loop_trips=N * -(-E // (options.sampling.slots or E)),
        ),
        program(
            "score",
            stage.scorer(run, model, model if judge else None),
            (
                params if scored else None,
                scalar if has_critic else None,
                params if moving else reference,
                judge,
                prompts,
                done,
            ),
            judged,
            kinds={PARAMETERS: (params, scalar) if has_critic else params, FROZEN: frozen},
            beside=states | {"copies": copies},
            passes=forward + has_critic + (judge is not None),
        ),
        program(
            "policy update",
            policy_update,
            (policy, (rollout, None), read, whole),
            work(part, T, False, 3 + len(read)),
            kinds={PARAMETERS: policy.params, OPTIMIZER: policy.opt_state},
            beside={"critic": critic, "frozen": frozen, "copies": copies},
            tokens=part * T,
            passes=(2 + len(read)) * micro,
        ),
    ]
    if value_update is not None and critic is not None:
        programs.append(
            program(
                "value update",
                value_update,
                (critic, rollout, {}, whole),
                work(part, T, True, 3),
                kinds={PARAMETERS: critic.params, OPTIMIZER: critic.opt_state},
                beside={"policy": policy, "frozen": frozen, "copies": copies},
                tokens=part * T,
                passes=2 * micro,
                parameters=scalar["transformer"],
            )
        )
    return programs
