"""Linears that round their inputs before they multiply, as engines do that multiply in 8 bits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from compress.kernels.activations import Rounds

_STATE = "_compress_rounding"


def attach(linear: nn.Module, rounds: Rounds, *, transposed: bool) -> None:
    """Let a linear round its inputs; `transposed` as in `anatomy.Linear`.

    A call that waits before the linear (see `inputs.Forwards`) rounds them, too.
    """
    through: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        weight, bias = linear.get_parameter("weight"), getattr(linear, "bias", None)
        y = rounds.multiply(x, weight.T if transposed else weight)
        through[:] = [(y if bias is None else y.add_(bias)).to(x.dtype)]
        return through[0]

    def after(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> Tensor:
        # torch chooses what a call runs before it can wait: then that was not `forward`
        found = through[0] if through else forward(*args)
        through.clear()
        return found

    linear.forward = forward
    vars(linear)[_STATE] = linear.register_forward_hook(after)


def attached(linear: nn.Module) -> bool:
    """Whether a linear rounds its inputs."""
    return _STATE in vars(linear)


def detach(linear: nn.Module) -> None:
    """Let a linear multiply what it is given."""
    if attached(linear):
        del linear.forward
        vars(linear).pop(_STATE).remove()
