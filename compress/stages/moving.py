"""What moves a learner: the optimizer, its learning rates by step, and who knows the devices."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from compress.errors import RunError
from compress.recipe.distill import Distill
from compress.stages.context import Context
from compress.surgery.learning import Learner

_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # of accelerate's own
_BETAS = (0.9, 0.95)  # of AdamW, as language models are trained


def accelerator(context: Context) -> Any:
    """What knows the device of this process, and steps optimizer and schedule.

    Raises:
        RunError: other processes were launched beside this one than share the run.
    """
    from accelerate import Accelerator

    found = Accelerator(
        cpu=context.device == "cpu",
        mixed_precision="no",  # the learner casts: a recipe's dtype is not a launcher's to change
        step_scheduler_with_optimizer=False,
    )
    if (kind := found.distributed_type) in _SHARDING:
        raise RunError(
            f"distill: launched with {kind.value}, whose shards are not those of a student. Launch "
            "without it, and give compress apply --shard."
        )
    if found.num_processes != context.team.size:
        raise RunError(
            f"distill: launched as {found.num_processes} processes, and {context.team.size} share "
            "the run. Launch the command compress itself, or a program that runs alone."
        )
    return found


def adamw(learner: Learner, spec: Distill) -> torch.optim.Optimizer:
    """AdamW over all that learns; each kind of weights at its own peak, matrices alone decay.

    First comes what `learning_rate` is of, for reports to show.
    """
    latent, matrices, carrying = learner.latent(), learner.matrices(), learner.projections()
    apart = {id(parameter) for parameter in (*latent, *matrices, *carrying)}
    others = [p for p in learner.learning().values() if id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": latent, "weight_decay": 0.0},
        {
            "params": others,
            "weight_decay": 0.0,
            "lr": spec.scale_learning_rate or spec.learning_rate,
        },
        {
            "params": matrices,
            "weight_decay": spec.weight_decay,
            "lr": spec.embedding_learning_rate or spec.learning_rate,
        },
        {
            "params": carrying,
            "weight_decay": 0.0,
            "lr": spec.loss.hidden.learning_rate if spec.loss.hidden else spec.learning_rate,
        },
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=spec.learning_rate, betas=_BETAS, fused=True,
    )  # fmt: skip


def schedule(optimizer: torch.optim.Optimizer, spec: Distill, steps: int) -> LRScheduler:
    """Up in a line, down by a cosine; every group of weights from its own peak."""
    rising = round(spec.warmup * steps)
    falling = max(1, steps - rising)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        turned = math.pi * min(1.0, (step - rising) / falling)
        return spec.final_rate + (1 - spec.final_rate) * (1 + math.cos(turned)) / 2

    return LambdaLR(optimizer, share)
