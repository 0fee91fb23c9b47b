"""What the linears of a block are fed: the extremes of every channel, its outliers, some rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.surgery.inputs import module_of
from compress.surgery.walk import Walk

_ROWS = 256  # of inputs that are kept, from all over the windows


@dataclass(frozen=True)
class Seen:
    """Inputs [N, I] that linears share, as far as they are remembered."""

    largest: Tensor  # [I] float32, the largest magnitude of each channel
    rows: Tensor  # [n, I] float32, some of them
    outlier_share: float = 0.0  # channels with an outlier in a batch, mean over batches

    def divided(self, by: Tensor) -> Seen:
        """The same, each channel [I] divided by a factor above zero."""
        return replace(self, largest=self.largest / by, rows=self.rows / by)


def watch_block(
    walk: Walk, block: Block, module: nn.Module, parts: Sequence[Tensor], threshold: float
) -> dict[str, Seen]:
    """Run a filled block once over batches [B, T, D], which stay as they are.

    Args:
        walk: that has filled the block.
        block: which.
        module: its module.
        parts: the activations that enter it.
        threshold: from which magnitude on an input is an outlier; 0: none is.

    Returns:
        What its linears were fed, by what they share; see `anatomy.Linear.shares`.
    """
    firsts: dict[str, Linear] = {}
    for linear in block.linears:
        firsts.setdefault(linear.shares, linear)
    tokens = sum(part.shape[0] * part.shape[1] for part in parts)
    logs = {shared: _Log(threshold, -(-tokens // _ROWS)) for shared in firsts}
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
    return {shared: log.seen() for shared, log in logs.items()}


@dataclass
class _Log:
    """The batches of inputs that one linear was given."""

    threshold: float
    every: int  # of so many rows one is kept
    largest: list[Tensor] = field(default_factory=list)  # of each batch, [I]
    rows: list[Tensor] = field(default_factory=list)

    def seen(self) -> Seen:
        by_batch = torch.stack(self.largest)
        share = float((by_batch >= self.threshold).float().mean()) if self.threshold else 0.0
        return Seen(by_batch.amax(0), torch.cat(self.rows), share)


def _note(log: _Log, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    x = args[0].reshape(-1, args[0].shape[-1])
    log.largest.append(x.abs().amax(0).float())
    log.rows.append(x[:: log.every].float())
