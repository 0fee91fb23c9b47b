"""Hidden states of a student held against its teacher's, behind blocks that are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.anatomy import Anatomy
from compress.kernels.states import Measure, apart


@dataclass(frozen=True)
class Matched:
    """What is asked of a student's hidden states."""

    pairs: tuple[tuple[int, int], ...]  # blocks of the student and of the teacher
    measure: Measure
    weight: float  # of it in the loss
    seed: int  # what projections begin with is drawn from it


class Matching(nn.Module):
    """Keeps what leaves blocks of a student as it runs, and holds it against the teacher's.

    Where the teacher is wider or narrower, a matrix for each pair learns to carry the student's
    states over: columns that are orthogonal at first. It is no part of the student.
    """

    def __init__(
        self, model: nn.Module, student: Anatomy, teacher: Anatomy, asked: Matched
    ) -> None:
        """Listen to the blocks of `model` that are asked about."""
        super().__init__()
        self.asked = asked
        self._seen: dict[int, Tensor] = {}
        widths = student.hidden_size, teacher.hidden_size
        self.projections = _projections(*widths, len(asked.pairs), asked.seed)
        for block, _ in asked.pairs:
            module = model.get_submodule(student.blocks[block].prefix)
            module.register_forward_hook(partial(self._keep, block))

    def forward(self, theirs: Sequence[Tensor], shares: Tensor) -> Tensor:
        """What it adds to the loss of the windows that the student has just read.

        Args:
            theirs: for each pair the teacher's states, [B, T, D_t].
            shares: [B · T], of each token in the mean.
        """
        total = torch.zeros((), device=shares.device)
        for place, (block, _) in enumerate(self.asked.pairs):
            own = self._seen[block].flatten(0, 1).float()
            if self.projections:
                own = own @ self.projections[place].T
            said = theirs[place].flatten(0, 1)
            total = total + apart(own, said, self.asked.measure, shares)
        self._seen.clear()
        return total * (self.asked.weight / len(self.asked.pairs))

    def _keep(self, block: int, _module: nn.Module, _given: Any, out: Any) -> None:
        if torch.is_grad_enabled():
            self._seen[block] = out[0] if isinstance(out, tuple) else out


def _projections(student: int, teacher: int, count: int, seed: int) -> nn.ParameterList:
    """[D_t, D] for each pair; none where both are as wide."""
    if student == teacher:
        return nn.ParameterList()
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.empty(teacher, student) for _ in range(count)]
    for matrix in drawn:
        nn.init.orthogonal_(matrix, generator=generator)
    return nn.ParameterList(map(nn.Parameter, drawn))
