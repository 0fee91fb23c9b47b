"""Reach the linears inside a filled block: watch their inputs, read and replace their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.surgery.walk import Stop, Walk


def module_of(module: nn.Module, block: Block, linear: Linear) -> nn.Module:
    """The torch module of one linear."""
    return module.get_submodule(linear.name.removeprefix(block.prefix + "."))


def weight(module: nn.Module, block: Block, linear: Linear) -> Tensor:
    """The weight of one linear, always [O, I] float32, a copy."""
    stored = module_of(module, block, linear).get_parameter("weight")
    return (stored.T if linear.transposed else stored).float().contiguous()


def replace(module: nn.Module, block: Block, linear: Linear, dense: Tensor) -> None:
    """Give one linear new weights [O, I]; the tensor it had, maybe a mapped file, is left alone."""
    target = module_of(module, block, linear)
    old = target.get_parameter("weight")
    stored = (dense.T if linear.transposed else dense).to(old.device, old.dtype).contiguous()
    target.weight = nn.Parameter(stored, requires_grad=False)


@contextlib.contextmanager
def watched(
    module: nn.Module,
    block: Block,
    linears: Sequence[Linear],
    see: Callable[[Linear, Tensor], None],
) -> Iterator[None]:
    """Show `see` every input, as [N, I], that reaches each of `linears` (in the order data flows).

    The forward is cut short after the last of them has been seen: run it by `until_last`.
    """
    handles = []
    for linear in linears:

        def hook(_: nn.Module, args: tuple[Any, ...], linear: Linear = linear) -> None:
            see(linear, args[0].reshape(-1, args[0].shape[-1]))
            if linear is linears[-1]:
                raise Stop

        handles.append(module_of(module, block, linear).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def until_last(walk: Walk, block: Block, module: nn.Module, hidden: Tensor) -> None:
    """Run a watched block on [B, T, D] for what is seen on the way."""
    with contextlib.suppress(Stop):
        walk.call(block.index, module, hidden)
