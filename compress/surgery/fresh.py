"""A model that knows nothing yet: numbers drawn as its family draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress.anatomy import Anatomy
from compress.surgery.walk import described_fields


def draw(config: Mapping[str, Any], anatomy: Anatomy, seed: int) -> dict[str, Tensor]:
    """Every tensor of a model by its stored name, float32, on the CPU.

    Args:
        config: its ``config.json``; its blocks are alike.
        anatomy: of it.
        seed: decides every number.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**described_fields(config)), dtype=torch.float32,
            trust_remote_code=False,
        )  # fmt: skip
    state: dict[str, Tensor] = model.state_dict()
    head = anatomy.head.name + "."  # transformers calls every head lm_head
    stored = {name: name.replace(head, "lm_head.") for name in anatomy.tensors}
    found = {name: here if here in state else name for name, here in stored.items()}
    return {name: state[here].detach() for name, here in found.items()}
