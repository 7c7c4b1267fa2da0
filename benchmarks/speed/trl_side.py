"""One training step of TRL's RLOOTrainer or GRPOTrainer on the same work, with the seconds of its parts.

All P·G rows are generated at once, and one optimizer update covers them all: per_device_train_batch_size is the micro-batch,
gradient_accumulation_steps and with it steps_per_generation are their number, num_iterations is 1. Gradient checkpointing
(TRL's default) is off because that is faster, and so are logging, saving and dropout. The step begins where the trainer
calls on_step_begin, with the prompts fetched, and ends at on_step_end, behind the optimizer.

RLOOTrainer scores every rollout under the policy before the update, GRPOTrainer does not; both score the reference model
where beta > 0. Forced equal lengths suppress EOS in sampling alone: TRL's log-probabilities keep it.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, GenerationConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from speed.ours import LEARNING_RATE, PROMPT_STEPS, even_share
from speed.timing import Clock
from speed.workloads import Workload, prompts

__all__ = ["TrlRun"]

BETA = 0.01
"""Weight of the KL term where there is a reference model: TRL keeps one for any value above 0."""


class TrlRun:
    """A trainer whose steps wait for `gate` and go to `report`; `train` returns once the gate says no."""

    def __init__(
        self,
        folder: str,
        workload: Workload,
        trainer: str = "rloo",
        precision: str = "fp32",
        reference: bool = False,
        microbatch_rows: int | None = None,
        device: str = "cpu",
        lora_rank: int | None = None,
    ) -> None:
        """`precision` is fp32, autocast (bf16 over fp32 weights) or bf16 (bf16 weights, which the optimizer moves too)."""
        rows = microbatch_rows or workload.rows
        if workload.rows % rows:
            raise ValueError(f"microbatch_rows = {rows} does not divide the {workload.rows} rows of a step")
        self._workload, self._clock = workload, Clock()
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        eos = GenerationConfig.from_pretrained(folder).eos_token_id
        kind, config = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}[trainer]
        settings: dict[str, Any] = {
            "output_dir": tempfile.mkdtemp(prefix="trl-"),
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": workload.rows // rows,
            "num_generations": workload.group,
            "max_completion_length": workload.tokens,
            "num_iterations": 1,
            "beta": BETA if reference else 0.0,
            "temperature": 1.0,
            "generation_kwargs": {"suppress_tokens": [eos] if isinstance(eos, int) else list(eos)},
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "max_steps": 1_000_000,
            "use_cpu": device == "cpu",
            "bf16": precision == "autocast",
            "fp16": False,
            "gradient_checkpointing": False,
            "disable_dropout": True,
            "shuffle_dataset": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "model_init_kwargs": {"dtype": "bfloat16" if precision == "bf16" else "float32"},
            "use_vllm": False,
        }
        peft = None
        if lora_rank is not None:
            from peft import LoraConfig

            peft = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trainer = kind(
                model=folder,
                reward_funcs=_reward,
                args=config(**settings),
                train_dataset=Dataset.from_list(
                    [{"prompt": text} for step in prompts(workload, PROMPT_STEPS) for text in step]
                ),
                processing_class=tokenizer,
                peft_config=peft,
            )
        self._wrap()

    def _wrap(self) -> None:
        trainer, clock = self._trainer, self._clock
        trainer._generate = clock.timed("rollout", trainer._generate)
        trainer._calculate_rewards = clock.timed("grading", trainer._calculate_rewards)
        # With gradients the same method is part of the update.
        trainer._get_per_token_logps_and_entropies = clock.timed(
            "logprobs", trainer._get_per_token_logps_and_entropies, only=lambda: not torch.is_grad_enabled()
        )
        trainer._prepare_inputs = clock.timed("prepare", trainer._prepare_inputs)

    def train(self, gate: Callable[[], bool], report: Callable[[dict[str, Any]], None]) -> None:
        self._trainer.add_callback(_Steps(self._trainer, self._clock, self._workload, gate, report))
        self._trainer.train()


class _Steps(TrainerCallback):
    def __init__(
        self,
        trainer: Any,
        clock: Clock,
        workload: Workload,
        gate: Callable[[], bool],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._trainer, self._clock, self._workload = trainer, clock, workload
        self._gate, self._report = gate, report

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._gate():
            os._exit(0)  # in the middle of a step there is no other way out of the trainer
        self._clock.reset()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        total = time.perf_counter() - self._started
        seconds = self._clock.seconds
        metrics = self._trainer._metrics["train"]
        lengths = [metrics[f"completions/{end}_length"][-1] for end in ("min", "max")]
        if lengths != [self._workload.tokens] * 2:
            raise RuntimeError(f"responses of {lengths} tokens instead of {self._workload.tokens}")
        metrics.clear()
        self._report(
            {
                "seconds": total,
                "rollout": seconds.get("rollout", 0.0),
                "grading": seconds.get("grading", 0.0),
                "logprobs": seconds.get("logprobs", 0.0),
                "update": total - seconds.get("prepare", 0.0),
                "tokens": self._workload.response_tokens,
            }
        )


def _reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [even_share(token_ids) for token_ids in completion_ids]
