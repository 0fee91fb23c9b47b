"""Linears that round their inputs: what engines do that multiply in eight bits.

Such a product is exact up to the last bits of a float32. So these linears compute in float32,
whatever the rest of the model computes in, and only what comes out of them becomes that.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

PRODUCTS = torch.float32  # in which linears compute that round their inputs
_STATE = "_compress_rounding"


class Rounds(Protocol):
    """How the inputs of one linear are rounded; see `compress.kernels.activations.Inputs`."""

    def round(self, x: Tensor) -> Tensor:
        """What inputs [..., I] are for the product, in float32."""


def attach(linear: nn.Module, rounds: Rounds, dtype: torch.dtype) -> None:
    """Let a linear, whose parameters are float32, round its inputs; what comes out is `dtype`."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (rounds.round(args[0]),)

    def after(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.to(dtype)

    handles = [linear.register_forward_pre_hook(before), linear.register_forward_hook(after)]
    vars(linear)[_STATE] = rounds, dtype, handles


def attached(linear: nn.Module) -> Rounds | None:
    """How a linear rounds its inputs; None where it does not."""
    found: tuple[Rounds, Any, Any] | None = vars(linear).get(_STATE)
    return None if found is None else found[0]


def results_in(linear: nn.Module) -> torch.dtype:
    """What comes out of a linear."""
    _, dtype, _ = vars(linear).get(_STATE, (None, linear.get_parameter("weight").dtype, ()))
    return dtype  # type: ignore[no-any-return]


def detach(module: nn.Module) -> None:
    """No linear of a module rounds its inputs any more."""
    for linear in module.modules():
        *_, handles = vars(linear).pop(_STATE, ((),))
        for handle in handles:
            handle.remove()
