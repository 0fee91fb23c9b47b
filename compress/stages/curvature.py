"""How much each output of a linear matters to what the teacher says, and which hang together.

The Kronecker factor of a linear's Fisher information on the side of its outputs: E[g gᵀ], g the
gradient of the log-probability of drawn tokens; see `compress.kernels.two_sided`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.kernels.hessian import accumulate, mean
from compress.stages.backward import Backward
from compress.stages.context import Context
from compress.surgery.gradients import Slopes
from compress.surgery.walk import Weights

WINDOWS = 32  # of calibration: a gradient for every token of 16 thousand, where windows have 512


def output_curvature(
    weights: Weights, linears: Sequence[Linear], context: Context, *, skipped: int
) -> dict[str, Tensor]:
    """The second moments of gradients by the outputs of linears.

    Args:
        weights: of the model that is to be repeated, read block by block.
        linears: whose outputs are looked at.
        context: windows, device, scratch.
        skipped: first tokens of a window that are left out. Attention sinks are read by all later
            tokens, so their gradients are hundreds of times larger, and there are few of them.

    Returns:
        [O, O] bfloat16 by name, symmetric, mapped from a file.
    """
    kept = _rooms(linears, context)
    ids = context.ids[:WINDOWS]
    for here in Backward(weights, ids, context, 1, "curvature").blocks():
        names = [linear.name for linear in here.block.linears if linear.name in kept]
        totals = {name: torch.zeros(kept[name].shape, device=ids.device) for name in names}
        here.carry(partial(_add, totals, skipped))
        tokens = ids.numel() - ids.shape[0] * skipped
        for name in names:
            kept[name].copy_(mean(totals.pop(name), tokens))
    return kept


def _add(totals: Mapping[str, Tensor], skipped: int, slopes: Slopes) -> None:
    """Sum the gradients of some windows."""
    for name, total in totals.items():
        accumulate(total, slopes.outputs[name][:, :, skipped:].flatten(0, 2))


def _rooms(linears: Sequence[Linear], context: Context) -> dict[str, Tensor]:
    """An empty matrix for each linear, all in one place."""
    sizes = [linear.out_features**2 for linear in linears]
    whole = context.room((sum(sizes),), dtype=torch.bfloat16, device=context.device, resident=False)
    return {
        linear.name: part.view(linear.out_features, -1)
        for linear, part in zip(linears, whole.split(sizes), strict=True)
    }
