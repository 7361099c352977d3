"""One row of the comparison by TRL, in a process of its own: prints one line of JSON; see `vs_trl`.

python -m benchmarks.trl_side ROW WORK {check,time} STEPS
"""

import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TrainerCallback,
)

from benchmarks.rows import ADAMW, BATCH, BEGAN, EPISODES, GROUP, NEW_TOKENS, reward
from benchmarks.work import LONGEST

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Clock(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.at.append(time.time())


class Side:
    """The trainers of one work folder."""

    def __init__(self, work: str, steps: int, *, check: bool) -> None:
        self.work, self.steps, self.check = work, steps, check
        self.clock = Clock()
        self.tokenizer = AutoTokenizer.from_pretrained(f"{work}/start")
        self.dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32

    def model(self) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(f"{self.work}/start", dtype=self.dtype)

    def scorer(self) -> LlamaForSequenceClassification:
        return LlamaForSequenceClassification.from_pretrained(
            f"{self.work}/scorer", num_labels=1, dtype=self.dtype
        )

    def rows(self, name: str) -> Dataset:
        file = f"{self.work}/{name}{'_first' if self.check else ''}.jsonl"
        return load_dataset("json", data_files=file, split="train")

    def common(self, **changes: Any) -> dict[str, Any]:
        """Settings of every trainer: AdamW at a constant rate, as on our side."""
        return {
            "output_dir": f"{self.work}/trl",
            "report_to": [],
            "save_strategy": "no",
            "logging_steps": 10_000,
            "disable_tqdm": True,
            "use_cpu": DEVICE == "cpu",
            "bf16": DEVICE == "cuda",
            "gradient_checkpointing": False,
            "lr_scheduler_type": "constant",
            "learning_rate": ADAMW["learning_rate"],
            "adam_beta1": ADAMW["b1"],
            "adam_beta2": ADAMW["b2"],
            "adam_epsilon": ADAMW["eps"],
            "weight_decay": 0.0,
            "max_grad_norm": ADAMW["clip_norm"],
            "per_device_train_batch_size": BATCH,
            "max_steps": self.steps,
        } | changes

    def trainer(
        self, kind: Any, config: Any, data: str, *, model: Any = None, ref_model: Any = None, **own: Any
    ) -> Any:
        """A trainer of given rows; `own` are settings of its config."""
        args = config(max_length=LONGEST, **own, **self.common())
        models = {"model": model or self.model()} | ({} if ref_model is None else {"ref_model": ref_model})
        return kind(args=args, train_dataset=self.rows(data), **models, **self.parts())

    def sft(self, *, packing: bool = False) -> Any:
        from trl import SFTConfig, SFTTrainer

        return self.trainer(SFTTrainer, SFTConfig, "sft", packing=packing)

    def sft_packed(self) -> Any:
        return self.sft(packing=not self.check)

    def reward(self) -> Any:
        from trl import RewardConfig, RewardTrainer

        return self.trainer(RewardTrainer, RewardConfig, "preference", model=self.scorer())

    def dpo(self) -> Any:
        from trl import DPOConfig, DPOTrainer

        return self.trainer(DPOTrainer, DPOConfig, "preference", beta=0.1, ref_model=self.model())

    def orpo(self) -> Any:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        self.tokenizer.bos_token = None  # which this trainer alone would put in front
        return self.trainer(ORPOTrainer, ORPOConfig, "preference", beta=0.1)

    def kto(self) -> Any:
        from trl import KTOConfig, KTOTrainer

        return self.trainer(KTOTrainer, KTOConfig, "unpaired", beta=0.1, ref_model=self.model())

    def grpo(self) -> Any:
        from trl import GRPOConfig, GRPOTrainer

        def score(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
            return [
                reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)
            ]

        args = GRPOConfig(
            **self.common(per_device_train_batch_size=EPISODES),
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            beta=0.04,
            temperature=1.0,
        )
        parts = {"processing_class": self.tokenizer, "callbacks": [self.clock]}
        return GRPOTrainer(
            model=self.model(), reward_funcs=score, args=args, train_dataset=self.rows("prompts"), **parts
        )

    def ppo(self) -> Any:
        from trl.experimental.ppo import PPOConfig, PPOTrainer  # of TRL 1.9.2, the last that has it

        self.tokenizer.padding_side = "left"
        rows = self.rows("prompts")
        prompts = rows.map(
            lambda row: {"input_ids": self.tokenizer(row["prompt"]).input_ids}, remove_columns=["prompt"]
        )
        settings = self.common(per_device_train_batch_size=EPISODES // 4)
        del settings["max_steps"]
        args = PPOConfig(
            gradient_accumulation_steps=4,
            num_mini_batches=4,
            num_ppo_epochs=4,
            total_episodes=EPISODES * self.steps,
            response_length=NEW_TOKENS,
            local_rollout_forward_batch_size=EPISODES,
            num_sample_generations=0,
            missing_eos_penalty=1.0,
            stop_token="eos",
            **settings,
        )
        models = {"model": self.model(), "ref_model": self.model()}
        scorers = {"reward_model": self.scorer(), "value_model": self.scorer()}
        data = {"train_dataset": prompts, "eval_dataset": prompts.select(range(8))}
        return PPOTrainer(args=args, **models, **scorers, **data, **self.parts())

    def parts(self) -> dict[str, Any]:
        return {"processing_class": self.tokenizer, "callbacks": [self.clock]}

    def generate(self) -> dict[str, Any]:
        """Seconds of each turn of 64 prompts with NEW_TOKENS each."""
        model = self.model().eval().to(DEVICE)
        self.tokenizer.padding_side = "left"
        prompts = [row["prompt"] for row in self.rows("prompts").select(range(32 if self.check else 64))]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True).to(DEVICE)
        inputs.pop("token_type_ids", None)
        sampling = {"do_sample": True, "top_k": 0, "temperature": 1.0, "min_new_tokens": NEW_TOKENS}
        seconds = []
        for _ in range(self.steps):
            start = time.time()
            with torch.no_grad():
                model.generate(**inputs, max_new_tokens=NEW_TOKENS, **sampling)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.time() - start)
        return {"seconds": seconds}


def losses_of(trainer: Any, steps: int) -> list[float]:
    """The losses that the trainer differentiates, one a step."""
    found: list[float] = []
    own: Callable[..., Any] = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        found.append(float((out[0] if isinstance(out, tuple) else out).detach()))
        return out

    trainer.compute_loss = compute_loss
    trainer.train()
    return found[:steps]


def main() -> None:
    """Prints {"losses": [...]} or {"seconds": [...], "first_step": ..., "peak_gb": ...}."""
    row, work, what, steps = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    side = Side(work, steps, check=what == "check")
    if row == "generate":
        out = side.generate()
    elif what == "check":
        out = {"losses": losses_of(getattr(side, row)(), steps)}
    else:
        getattr(side, row)().train()
        at = side.clock.at
        out = {"seconds": [b - a for a, b in pairwise(at)], "first_step": at[0] - float(os.environ[BEGAN])}
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(out | {"device": DEVICE, "peak_gb": peak / 1e9}))


if __name__ == "__main__":
    main()
