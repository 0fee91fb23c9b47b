"""How far a student has drifted from its teacher, and what its linears are asked for to come back.

A linear rounded to repeat what its weight W makes of x, which comes from rounded blocks, keeps the
errors of those blocks. It can undo a part of them: where the teacher's linear is given x_t, and the
stream that the output is added to lacks r of the teacher's, the weight that comes nearest is

    W + E[(W_t x_t + r - W x) xᵀ] H⁻¹,    H = E[x xᵀ]

Only a share of that is asked for: the expectations are those of the calibration text.

Source: Li et al. 2025 (GPTAQ), arXiv:2504.02692; Arai and Ichikawa 2025 (QEP), arXiv:2504.09629.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.anatomy import Block, Linear, adds_plainly
from compress.kernels.hessian import accumulate, accumulate_pairs, outputs
from compress.stages.context import Context
from compress.stages.stream import Stream
from compress.stages.team import ALONE, Team
from compress.student import Student
from compress.surgery.inputs import Forwards


@dataclass(frozen=True)
class Sinks:
    """The first tokens of a window, to which all later ones attend; their errors reach all of them.

    Each counts `weight` times more than another token. Xiao et al. 2023, arXiv:2309.17453.
    """

    tokens: int
    weight: float

    def counted(self, windows: int, seq_len: int) -> float:
        """How many tokens windows of one length count for."""
        return windows * (seq_len + min(self.tokens, seq_len) * self.weight)


class Teacher:
    """The teacher's activations, on their way beside the student's."""

    def __init__(self, student: Student, context: Context, share: float, sinks: Sinks) -> None:
        """Ask for a `share` of the correction, from 0 to 1."""
        self._weights, self._context = student.base, context
        self._stream = Stream(student.base, context)
        self._share, self._sinks = share, sinks

    @contextlib.contextmanager
    def beside(self, block: Block, parts: Sequence[Tensor]) -> Iterator[Drift]:
        """The drift in one block; `parts` [B, T, D] are what enters the student's."""
        ours = self._stream.before(block.index)
        stored = self._weights.block(block.index)
        walk, room = self._stream.walk, self._context.room
        with walk.filled(block.index, stored) as module:
            forwards = Forwards(walk, block, module, ours, room)
            yield Drift(
                stored, forwards, self._share, self._sinks, parts[0].shape[1],
                shortfall(ours, parts, room) if adds_plainly(self._weights.config) else None,
                self._context.team,
            )  # fmt: skip
            forwards.finish()
        self._stream.passed(block.index)

    def behind(self, block: Block) -> Sequence[Tensor]:
        """The teacher's activations [B, T, D] behind a block that it has passed."""
        return self._stream.before(block.index + 1)


@dataclass
class Drift:
    """The teacher's forwards of one block, paused where the student's are."""

    stored: Mapping[str, Tensor]
    forwards: Forwards
    share: float
    sinks: Sinks
    seq_len: int
    behind: list[Tensor] | None  # [N, D] each: what the stream lacks; None where nobody knows
    team: Team = ALONE  # whose windows add up

    def lacks(
        self,
        group: Sequence[Linear],
        given: Sequence[Tensor],
        weights: Mapping[str, Tensor],
        hessian: Tensor,
    ) -> dict[str, Tensor]:
        """What linears that share an input lack: the share of E[(W_t x_t + r - W x) xᵀ].

        Args:
            group: the linears; the teacher's forwards go on to them.
            given: what they are given in the student, [N, I] each.
            weights: theirs in the student, [O, I].
            hessian: E[x xᵀ], [I, I].

        Returns:
            [O, I] float32 by name.
        """
        self._given: list[Tensor] = []
        self.forwards.to(group[0], self._given.append)
        both = self._mean(self._given, given)
        found = {}
        for linear in group:
            lack = self._weight(linear) @ both
            lack -= weights[linear.name].float() @ hessian
            if linear.role in ("o", "down") and self.behind is not None:
                lack += self._mean(self.behind, given)
            found[linear.name] = lack.mul_(self.share)
        return found

    def passed(self, linear: Linear, given: Sequence[Tensor], dense: Tensor) -> None:
        """Take note of what a linear that writes to the stream has become, [O, I]."""
        if self.behind is None or linear.role != "o":
            return
        catch_up(self.behind, self._given, self._weight(linear), given, dense)

    def skipped(self) -> None:
        """Take note that a linear which writes to the stream is not solved: nobody sees it."""
        self.behind = None

    def _weight(self, linear: Linear) -> Tensor:
        stored = self.stored[linear.name + ".weight"].to(self._given[0].device).float()
        return linear.turned(stored)

    def _mean(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        return mean_of_pairs(left, right, self.seq_len, self.sinks, self.team)


def mean_of_pairs(
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    seq_len: int,
    sinks: Sinks,
    team: Team = ALONE,
) -> Tensor:
    """E[l rᵀ] over tokens [N, L] and [N, R] of windows: [L, R] float32; sinks count many times.

    Of several processes each gives its own windows, and all get the mean over all of them.
    """
    total = torch.zeros(left[0].shape[1], right[0].shape[1], device=right[0].device)
    for one, other in zip(left, right, strict=True):
        accumulate_pairs(total, one, other)
        first, second = (
            x.view(-1, seq_len, x.shape[1])[:, : sinks.tokens].flatten(0, 1) for x in (one, other)
        )
        accumulate_pairs(total, first, second, sinks.weight)
    windows = torch.tensor(sum(len(part) for part in right) // seq_len, device=total.device)
    team.add_up(total)
    return total.div_(sinks.counted(int(team.add_up(windows)), seq_len))


def accumulate_windows(total: Tensor, x: Tensor, seq_len: int, sinks: Sinks) -> None:
    """Sum inputs [N, I] of windows into a Hessian [I, I], those of sinks many times."""
    accumulate(total, x)
    first = x.view(-1, seq_len, x.shape[1])[:, : sinks.tokens].flatten(0, 1)
    accumulate(total, first, sinks.weight)


def energies(x: Tensor, seq_len: int, sinks: Sinks) -> Tensor:
    """Sums of squares of inputs [N, I] of windows, [I] float32, those of sinks many times."""
    windows = x.view(-1, seq_len, x.shape[1])
    first = windows[:, : sinks.tokens].float().square().sum((0, 1))
    return windows.float().square().sum((0, 1)) + first * sinks.weight


def catch_up(
    behind: Sequence[Tensor],
    theirs: Sequence[Tensor],
    wanted: Tensor,
    x: Sequence[Tensor],
    dense: Tensor,
) -> None:
    """Add to what the stream lacks, [N, O] each, what a linear that writes to it still lacks.

    Args:
        behind: what the stream lacked before it; written.
        theirs: what the teacher's linear is given, [N, I] each.
        wanted: its weight, [O, I].
        x: what the student's is given.
        dense: what its weight has become.
    """
    for gap, given, ours in zip(behind, theirs, x, strict=True):
        gap += outputs(given, wanted.to(given.dtype)).sub_(outputs(ours, dense.to(ours.dtype)))


def shortfall(
    ours: Sequence[Tensor], parts: Sequence[Tensor], room: Callable[..., Tensor]
) -> list[Tensor]:
    """What the student's activations [B, T, D] lack of the teacher's: [N, D]."""
    width = parts[0].shape[-1]
    rows = [part.numel() // width for part in parts]
    whole = room((sum(rows), width), dtype=parts[0].dtype, device=parts[0].device)
    for place, theirs, x in zip(whole.split(rows), ours, parts, strict=True):
        torch.sub(theirs.reshape(-1, width), x.reshape(-1, width), out=place)
    return list(whole.split(rows))
