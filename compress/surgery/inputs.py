"""Reach the linears inside a filled block: see their inputs, replace their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.surgery.walk import Walk


def module_of(module: nn.Module, block: Block, linear: Linear) -> nn.Module:
    """The torch module of one linear."""
    return module.get_submodule(linear.name.removeprefix(block.prefix + "."))


def replace(module: nn.Module, block: Block, linear: Linear, dense: Tensor) -> None:
    """Give one linear new weights [O, I]; the tensor it had, maybe a mapped file, is left alone."""
    target = module_of(module, block, linear)
    old = target.get_parameter("weight")
    stored = (dense.T if linear.transposed else dense).to(old.device, old.dtype).contiguous()
    target.weight = nn.Parameter(stored, requires_grad=False)


class Forwards:
    """Forwards of one block over many batches, paused together before one linear after another.

    What a paused forward has computed stays on its own stack, so a linear whose weights are
    replaced while all wait is run once, with the new weights: true-sequential order for the work
    of one forward.
    """

    def __init__(
        self, walk: Walk, block: Block, module: nn.Module, parts: Sequence[Tensor]
    ) -> None:
        """Prepare a forward for each batch [B, T, D]; nothing runs yet."""
        self._block, self._module, self._parts = block, module, parts
        self._running = [greenlet(partial(walk.run, block.index, module, part)) for part in parts]

    @torch.inference_mode()
    def to(self, linear: Linear, see: Callable[[Tensor], None]) -> None:
        """Run every forward up to a linear and show `see` its inputs as [N, I]."""

        def pause(_: nn.Module, args: tuple[Any, ...]) -> None:
            see(args[0].reshape(-1, args[0].shape[-1]))
            getcurrent().parent.switch()

        target = module_of(self._module, self._block, linear)
        handle = target.register_forward_pre_hook(pause)
        try:
            for forward in self._running:
                forward.switch()
        finally:
            handle.remove()

    @torch.inference_mode()
    def finish(self) -> None:
        """Run every forward to its end; outputs take the place of the batches they came from."""
        for part, forward in zip(self._parts, self._running, strict=True):
            part.copy_(forward.switch())
