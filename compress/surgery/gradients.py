"""Walk a model backwards, one block at a time: gradients by the outputs of its linears.

Nothing is kept of the forward but the activations that enter each block; what a block computes is
computed again when its gradients are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.anatomy import Block
from compress.surgery.inputs import module_of
from compress.surgery.walk import Walk


@dataclass(frozen=True)
class Slopes:
    """Gradients of S functions of a block's outputs, and what its linears were given."""

    inputs: dict[str, Tensor]  # linear → [B, T, I]
    outputs: dict[str, Tensor]  # linear → [S, B, T, O], by its outputs
    hidden: Tensor  # [S, B, T, D], by what enters the block


@torch.no_grad()
def prepare(walk: Walk, seq_len: int) -> None:
    """Make what the model hands its blocks beside hidden states, before anything is embedded.

    `Walk.embed` would make it in inference mode, and such tensors take part in no gradient.
    """
    walk._arguments(seq_len)


def through_block(
    walk: Walk, block: Block, module: nn.Module, hidden: Tensor, above: Tensor
) -> Slopes:
    """Carry gradients from the outputs of a filled block to its linears and its inputs.

    Args:
        walk: of the model, prepared for windows of this length.
        block: which block.
        module: the block, filled.
        hidden: [B, T, D], what enters it.
        above: [S, B, T, D], gradients by its outputs.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        inputs[name], outputs[name] = args[0].detach(), out

    with torch.enable_grad(), ExitStack() as hooks:
        for linear in block.linears:
            target = module_of(module, block, linear)
            hooks.enter_context(target.register_forward_hook(partial(see, linear.name)))
        entering = hidden.detach().clone().requires_grad_()
        out = walk.run(block.index, module, entering)
        of = [entering, *outputs.values()]
        columns = _gradients(out, of, above)
    windows = hidden.shape[:2]  # some families flatten them on the way
    by_output = {
        name: column.view(len(above), *windows, -1)
        for name, column in zip(outputs, columns[1:], strict=True)
    }
    return Slopes({n: x.reshape(*windows, -1) for n, x in inputs.items()}, by_output, columns[0])


def through_norm(walk: Walk, hidden: Tensor, above: Tensor) -> Tensor:
    """Carry gradients [S, B, T, D] from behind the final norm to [B, T, D] before it."""
    norm = walk._model.get_submodule(walk.anatomy.final_norm)
    with torch.enable_grad():
        entering = hidden.detach().clone().requires_grad_()
        return _gradients(norm(entering), [entering], above)[0]


@torch.no_grad()
def moved_embedding(walk: Walk, ids: Tensor, weight: Tensor) -> Tensor:
    """How what enters block 0 [B, T, D] changes when the embedding's weight becomes another.

    Args:
        walk: of the model, its embedding not forgotten.
        ids: [B, T].
        weight: [V, D], any float.
    """
    module = walk._model.get_submodule(walk.anatomy.embedding)
    own, before = module.weight, walk.embed(ids)
    module.weight = nn.Parameter(weight.to(own), requires_grad=False)
    try:
        return walk.embed(ids).float() - before.float()
    finally:
        module.weight = own


def _gradients(out: Tensor, of: Sequence[Tensor], above: Tensor) -> list[Tensor]:
    """For each tensor of `of`, its gradients [S, …] of `out` weighted by each of `above`."""
    rows = [
        torch.autograd.grad(out, of, one.to(out), retain_graph=number + 1 < len(above))
        for number, one in enumerate(above)
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]
