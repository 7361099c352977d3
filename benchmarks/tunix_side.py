"""One row of the comparison by Tunix, in a process of its own: prints one line of JSON; see `vs_tunix`.

python -m benchmarks.tunix_side ROW WORK {check,time} STEPS
"""

# Tunix stands in no extra: it is installed for this alone.
# pyright: reportMissingImports=false

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
from tokenizers import Tokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.rl import common
from tunix.sft import hooks, peft_trainer
from tunix.sft.dpo import dpo_trainer

from benchmarks.rows import ADAMW, BATCH, BEGAN
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


class Side:
    """The trainers of one work folder."""

    def __init__(self, work: str, steps: int, *, check: bool) -> None:
        self.work, self.steps, self.check = pathlib.Path(work), steps, check
        self.tokenizer = Tokenizer.from_file(f"{work}/start/tokenizer.json")
        self.clock = Clock()

    def model(self) -> Any:
        shape = json.loads((self.work / "start/config.json").read_text())
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
        mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        with jax.set_mesh(mesh):
            return llama_params.create_model_from_safe_tensors(
                str(self.work / "start"), config, mesh, jnp.float32
            )

    def rows(self, name: str) -> list[dict[str, str]]:
        file = self.work / f"{name}{'_first' if self.check else ''}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def batches(self, rows: list[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
        while True:
            for start in range(0, len(rows) - BATCH + 1, BATCH):
                yield rows[start : start + BATCH]

    def width(self, texts: list[str]) -> int:
        """Tokens of the longest, with its end: one width for all batches, as each is compiled."""
        return 1 + max(len(self.tokenizer.encode(text).ids) for text in texts)

    def ids(self, texts: list[str], width: int, *, left: bool = False, end: bool = False) -> tuple[Any, Any]:
        """Tokens and mask [B, width], padded on one side."""
        ids, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), np.int32)
        for row, text in enumerate(texts):
            own = self.tokenizer.encode(text).ids + [EOS] * end
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


def main() -> None:
    """Prints {"losses": [...]} or {"seconds": [...], "first_step": ..., "peak_gb": ...}."""
    logging.disable(logging.WARNING)
    row, work, what, steps = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    side = Side(work, steps, check=what == "check")
    getattr(side, row)()
    if what == "check":
        out: dict[str, Any] = {"losses": side.clock.losses}
    else:
        at = side.clock.at
        out = {"seconds": [b - a for a, b in pairwise(at)], "first_step": at[0] - float(os.environ[BEGAN])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(out | {"device": jax.default_backend(), "peak_gb": peak / 1e9}))


if __name__ == "__main__":
    main()
