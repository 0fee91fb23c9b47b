"""Low-rank corrections of a model's linears that learn in their place, and are merged at the end.

Source: Hu et al. 2021 (LoRA), arXiv:2106.09685; the corrections are `peft`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from compress.anatomy import Anatomy
from compress.recipe.distill import Lora
from compress.surgery.sharding import whole

_NAME = "default"  # what peft calls the first of several


def attach(model: torch.nn.Module, anatomy: Anatomy, spec: Lora, seed: int) -> None:
    """Let every linear of the blocks learn a correction, and nothing else learn.

    Args:
        model: whole, as transformers builds it; changed in place.
        anatomy: of it.
        spec: the correction's fields.
        seed: what the corrections begin with is drawn from it; together they begin at zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha,
        target_modules=[linear.name for linear in anatomy.linears],
        fan_in_fan_out=any(linear.transposed for linear in anatomy.linears),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


@torch.no_grad()
def merged(model: Any, anatomy: Anatomy) -> Iterator[tuple[str, Tensor]]:
    """The weights with their corrections, by full stored names: float32, on the CPU."""
    for linear in anatomy.linears:
        module = model.get_submodule(linear.name)
        weight = module.base_layer.weight + module.get_delta_weight(_NAME)
        yield f"{linear.name}.weight", whole(weight)
