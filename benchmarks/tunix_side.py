"""One row of the comparison by Tunix, in a process of its own: prints one line of JSON; see `vs_tunix`.

python -m benchmarks.tunix_side ROW WORK {check,time} STEPS
"""

# Tunix stands in no extra: it is installed for this alone.
# pyright: reportMissingImports=false

import dataclasses
import json
import logging
import os
import pathlib
import resource
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file
from transformers import AutoTokenizer
from tunix.generate import sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import common, rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import hooks, peft_trainer
from tunix.sft.dpo import dpo_trainer

from benchmarks.rows import ADAMW, BATCH, BEGAN, EPISODES, GROUP, NEW_TOKENS, reward
from benchmarks.work import PROMPT, SHAPE

EOS = SHAPE["eos_token_id"]


class Clock(hooks.TrainingHooks):
    """When each step ended, and its loss."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any) -> None:
        pass

    def on_train_end(self, trainer: Any) -> None:
        pass

    def on_train_step_start(self, trainer: Any) -> None:
        pass

    def on_train_step_end(self, trainer: Any, step: int, loss: Any) -> None:
        self.losses.append(float(loss))
        self.at.append(time.time())

    def on_eval_step_start(self, trainer: Any) -> None:
        pass

    def on_eval_step_end(self, trainer: Any, loss: Any) -> None:
        pass


class Scorer(nnx.Module):
    """A Llama whose head gives one score a token; Tunix's PPO names segments to it, which its Llama does not take."""

    def __init__(self, model: llama.Llama3, head: nnx.Linear) -> None:
        model.lm_head, model.config = head, dataclasses.replace(model.config, weight_tying=False)
        self.model = model

    def __call__(self, *args: Any, segment_ids: Any = None, **kwargs: Any) -> Any:
        # The mask says the same: there is one segment a row, and padding.
        return self.model(*args, **kwargs)


class Side:
    """The trainers of one work folder."""

    def __init__(self, work: str, steps: int, *, check: bool) -> None:
        self.work, self.steps, self.check = pathlib.Path(work), steps, check
        self.tokenizer = AutoTokenizer.from_pretrained(f"{work}/start")
        self.tokenizer.bos_token = None  # which the sampler would put in front
        self.mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        self.clock = Clock()

    def model(self, name: str = "start") -> Any:
        shape = json.loads((self.work / name / "config.json").read_text())
        config = llama.ModelConfig(
            num_layers=shape["num_hidden_layers"],
            vocab_size=shape["vocab_size"],
            embed_dim=shape["hidden_size"],
            hidden_dim=shape["intermediate_size"],
            num_heads=shape["num_attention_heads"],
            head_dim=shape["hidden_size"] // shape["num_attention_heads"],
            num_kv_heads=shape["num_key_value_heads"],
            rope_theta=int(shape["rope_theta"]),
            norm_eps=shape["rms_norm_eps"],
            weight_tying=shape["tie_word_embeddings"],
        )
        with jax.set_mesh(self.mesh):
            return llama_params.create_model_from_safe_tensors(
                str(self.work / name), config, self.mesh, jnp.float32
            )

    def scorer(self) -> Scorer:
        """The reward model."""
        model = self.model("scorer")
        score = load_file(self.work / "scorer/model.safetensors")["score.weight"].T
        with jax.set_mesh(self.mesh):
            head = nnx.Linear(*score.shape, use_bias=False, rngs=nnx.Rngs(0))
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        head.kernel[...] = jax.device_put(score, everywhere)
        return Scorer(model, head)

    def rows(self, name: str) -> list[dict[str, str]]:
        file = self.work / f"{name}{'_first' if self.check else ''}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def batches(self, rows: list[dict[str, str]], size: int = BATCH) -> Iterator[list[dict[str, str]]]:
        while True:
            for start in range(0, len(rows) - size + 1, size):
                yield rows[start : start + size]

    def width(self, texts: list[str]) -> int:
        """Tokens of the longest, with its end: one width for all batches, as each is compiled."""
        return 1 + max(len(self.tokenizer.encode(text)) for text in texts)

    def ids(self, texts: list[str], width: int, *, left: bool = False, end: bool = False) -> tuple[Any, Any]:
        """Tokens and mask [B, width], padded on one side."""
        ids, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), np.int32)
        for row, text in enumerate(texts):
            own = self.tokenizer.encode(text) + [EOS] * end
            slots = slice(width - len(own), width) if left else slice(len(own))
            ids[row, slots], mask[row, slots] = own, 1
        return ids, mask

    def optimizer(self) -> optax.GradientTransformation:
        adam = {name: ADAMW[name] for name in ("learning_rate", "b1", "b2", "eps")}
        return optax.chain(
            optax.clip_by_global_norm(ADAMW["clip_norm"]), optax.adamw(**adam, weight_decay=0.0)
        )

    def sft(self) -> None:
        config = peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=self.steps)
        trainer = peft_trainer.PeftTrainer(self.model(), self.optimizer(), config)

        def inputs(x: peft_trainer.TrainingInput) -> dict[str, Any]:
            tokens, real = x.input_tokens, x.input_tokens != 0
            return {
                "input_tokens": tokens,
                "input_mask": x.input_mask,
                "positions": common.build_positions_from_mask(real),
                "attention_mask": common.make_causal_attn_mask(real),
            }

        def made() -> Iterator[peft_trainer.TrainingInput]:
            every = self.rows("sft")
            width = self.width([x["prompt"] + x["completion"] for x in every])
            for rows in self.batches(every):
                both, mask = self.ids([x["prompt"] + x["completion"] for x in rows], width, end=True)
                _, asked = self.ids([x["prompt"] for x in rows], width)
                yield peft_trainer.TrainingInput(input_tokens=both, input_mask=mask - asked)

        self.run(trainer.with_gen_model_input_fn(inputs), made())

    def dpo(self) -> None:
        config = dpo_trainer.DPOTrainingConfig(
            eval_every_n_steps=10**9, max_steps=self.steps, algorithm="dpo", beta=0.1
        )
        trainer = dpo_trainer.DPOTrainer(self.model(), self.model(), self.optimizer(), config)

        def made() -> Iterator[dpo_trainer.TrainingInput]:
            every = self.rows("preference")
            width = self.width([x[side] for x in every for side in ("chosen", "rejected")])
            for rows in self.batches(every):
                asked = self.ids([x["prompt"] for x in rows], PROMPT, left=True)
                better, worse = (
                    self.ids([x[side] for x in rows], width, end=True) for side in ("chosen", "rejected")
                )
                yield dpo_trainer.TrainingInput(*asked, *better, *worse)

        self.run(trainer, made())

    def run(self, trainer: Any, batches: Iterator[Any]) -> None:
        trainer.with_training_hooks(self.clock)
        trainer.train(batches)

    def grpo(self) -> None:
        config = grpo_learner.GRPOConfig(num_generations=GROUP, num_iterations=1, beta=0.04)
        cluster = self.cluster(reference=self.model())
        self.learn(grpo_learner.GRPOLearner(cluster, config, [score]), EPISODES // GROUP)

    def ppo(self) -> None:
        """All episodes of a rollout make one update, by parts: Tunix samples no more of them than an update takes."""
        models = {"reference": self.model(), "critic": self.scorer(), "reward": self.scorer()}
        parts = {"mini_batch_size": EPISODES, "train_micro_batch_size": EPISODES // 4}
        parts |= {"rollout_micro_batch_size": EPISODES, "compute_logps_micro_batch_size": EPISODES}
        cluster = self.cluster(critic_optimizer=self.optimizer(), **models, **parts)
        self.learn(ppo_learner.PPOLearner(cluster, ppo_learner.PPOConfig(num_iterations=4)), EPISODES)

    def cluster(
        self, *, reference: Any, critic: Any = None, reward: Any = None, **training: Any
    ) -> rl_cluster.RLCluster:
        """The policy with the models beside it; `training` are settings of its updates."""
        return rl_cluster.RLCluster(
            actor=self.model(),
            reference=reference,
            critic=critic,
            reward=reward,
            tokenizer=self.tokenizer,
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(rl_cluster.Role, self.mesh),
                training_config=rl_cluster.RLTrainingConfig(
                    actor_optimizer=self.optimizer(),
                    eval_every_n_steps=10**9,
                    max_steps=10**9,  # of updates; the batches end it
                    **training,
                ),
                rollout_config=base_rollout.RolloutConfig(
                    max_tokens_to_generate=NEW_TOKENS,
                    max_prompt_length=PROMPT,
                    kv_cache_size=PROMPT + NEW_TOKENS,
                    temperature=1.0,
                ),
            ),
        )

    def learn(self, learner: Any, prompts: int) -> None:
        """Trains on batches of so many prompts, each of which is asked for when the step before has ended."""

        def made() -> Iterator[dict[str, Any]]:
            for step, rows in enumerate(self.batches(self.rows("prompts"), prompts)):
                if step:
                    self.clock.at.append(time.time())
                if step == self.steps:
                    return
                yield {"prompts": np.array([row["prompt"] for row in rows])}

        learner.train(made())

    def generate(self) -> list[float]:
        """Seconds of each turn of 64 prompts with NEW_TOKENS each."""
        model = self.model()
        sizes = {name: getattr(model.config, name) for name in ("num_layers", "num_kv_heads", "head_dim")}
        sample = sampler.Sampler(
            model, self.tokenizer, sampler.CacheConfig(cache_size=PROMPT + NEW_TOKENS, **sizes)
        )
        prompts = [row["prompt"] for row in self.rows("prompts")[:64]]
        lengths = {"max_generation_steps": NEW_TOKENS, "max_prompt_length": PROMPT}
        seconds = []
        for turn in range(self.steps):
            start = time.time()
            # No token is -1: nothing ends before the limit.
            sample(prompts, **lengths, eos_tokens=[-1], temperature=1.0, top_p=1.0, seed=turn)
            seconds.append(time.time() - start)
        return seconds


def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """`rows.reward` as Tunix calls it."""
    return [reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def main() -> None:
    """Prints {"losses": [...]} or {"seconds": [...], "first_step": ..., "peak_gb": ...}."""
    logging.disable(logging.WARNING)
    row, work, what, steps = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    side = Side(work, steps, check=what == "check")
    seconds = getattr(side, row)()
    if seconds is not None:
        out: dict[str, Any] = {"seconds": seconds}
    elif what == "check":
        out = {"losses": side.clock.losses}
    else:
        at = side.clock.at
        out = {"seconds": [b - a for a, b in pairwise(at)], "first_step": at[0] - float(os.environ[BEGAN])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(out | {"device": jax.default_backend(), "peak_gb": peak / 1e9}))


if __name__ == "__main__":
    main()
