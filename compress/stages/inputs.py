"""What the linears of a block are fed: the extremes of every channel, its outliers, some rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.kernels.hessian import accumulate, mean
from compress.surgery.inputs import module_of
from compress.surgery.walk import Walk

_ROWS = 256  # of inputs that are kept, from all over the windows


@dataclass(frozen=True)
class Seen:
    """Inputs [N, I] that linears share, as far as they are remembered."""

    largest: Tensor  # [I] float32, the largest magnitude of each channel
    rows: Tensor  # [n, I] float32, some of them
    outlier_share: float = 0.0  # channels with an outlier in a batch, mean over batches
    hessian: Tensor | None = None  # [I, I] float32, mean of x xᵀ, where it was asked for

    def divided(self, by: Tensor) -> Seen:
        """The same, each channel [I] divided by a factor above zero."""
        hessian = self.hessian
        if hessian is not None:
            hessian = hessian / by / by[:, None]
        return replace(self, largest=self.largest / by, rows=self.rows / by, hessian=hessian)


def watch_block(
    walk: Walk,
    block: Block,
    module: nn.Module,
    parts: Sequence[Tensor],
    threshold: float,
    *,
    hessians: bool = False,
) -> dict[str, Seen]:
    """Run a filled block once over batches [B, T, D], which stay as they are.

    Args:
        walk: that has filled the block.
        block: which.
        module: its module.
        parts: the activations that enter it.
        threshold: from which magnitude on an input is an outlier; 0: none is.
        hessians: sum them, too.

    Returns:
        What its linears were fed, by what they share; see `anatomy.Linear.shares`.
    """
    firsts: dict[str, Linear] = {}
    for linear in block.linears:
        firsts.setdefault(linear.shares, linear)
    tokens = sum(part.shape[0] * part.shape[1] for part in parts)
    every = -(-tokens // _ROWS)
    logs = {
        shared: _Log(threshold, every, _total(linear, parts[0]) if hessians else None)
        for shared, linear in firsts.items()
    }
    handles = [
        module_of(module, block, linear).register_forward_pre_hook(partial(_note, logs[shared]))
        for shared, linear in firsts.items()
    ]
    try:
        for part in parts:
            walk.call(block.index, module, part)
    finally:
        for handle in handles:
            handle.remove()
    return {shared: log.seen(tokens) for shared, log in logs.items()}


def _total(linear: Linear, like: Tensor) -> Tensor:
    return torch.zeros(linear.in_features, linear.in_features, device=like.device)


@dataclass
class _Log:
    """The batches of inputs that one linear was given."""

    threshold: float
    every: int  # of so many rows one is kept
    total: Tensor | None  # [I, I], the sum of x xᵀ
    largest: list[Tensor] = field(default_factory=list)  # of each batch, [I]
    rows: list[Tensor] = field(default_factory=list)

    def seen(self, tokens: int) -> Seen:
        by_batch = torch.stack(self.largest)
        share = float((by_batch >= self.threshold).float().mean()) if self.threshold else 0.0
        hessian = None if self.total is None else mean(self.total, tokens)
        return Seen(by_batch.amax(0), torch.cat(self.rows), share, hessian)


def _note(log: _Log, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    x = args[0].reshape(-1, args[0].shape[-1])
    log.largest.append(x.abs().amax(0).float())
    log.rows.append(x[:: log.every].float())
    if log.total is not None:
        accumulate(log.total, x)
