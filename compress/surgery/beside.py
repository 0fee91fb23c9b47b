"""A teacher that reads beside its student, for what no cache holds: states behind its blocks."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import torch
from torch import Tensor

from compress.surgery.walk import Walk, Weights


class Beside:
    """The first blocks of a teacher, filled once and for all.

    Weights that are stored as they are computed with stay mapped from their files; others are held.
    """

    def __init__(self, teacher: Weights, blocks: int, *, device: str, dtype: torch.dtype) -> None:
        """Fill so many blocks of a teacher, from the first on."""
        self._walk = Walk(teacher, device=device, dtype=dtype)
        self._filled = ExitStack()
        self._modules = [
            self._filled.enter_context(self._walk.filled(index)) for index in range(blocks)
        ]

    @torch.no_grad()
    def read(self, ids: Tensor, wanted: Collection[int] = ()) -> tuple[dict[int, Tensor], Tensor]:
        """Read windows.

        Args:
            ids: [B, T] token ids.
            wanted: blocks behind which states are asked for.

        Returns:
            The states behind each of those, and those behind the last block that there is; each
            [B, T, D].
        """
        hidden = self._walk.embed(ids).clone()  # what inference mode made takes part in no gradient
        found = dict[int, Tensor]()
        for index, module in enumerate(self._modules):
            hidden = self._walk.run(index, module, hidden)
            if index in wanted:
                found[index] = hidden
        return found, hidden

    def finish(self, hidden: Tensor) -> Tensor:
        """Final hidden states of those behind the last block, [B, T, D]."""
        return self._walk.finish(hidden).clone()
