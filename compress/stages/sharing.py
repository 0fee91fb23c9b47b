"""MLP channels shared out over the blocks, by what their loss costs once it is made up for.

Each block alone is cut to a few numbers of channels, down fitted to do without the rest, and what
the model then says is asked of other text: KL, so that blocks compare. All these models go through
the blocks side by side. Of all ways to share the channels out, the one of least summed cost is
taken, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from compress.anatomy import Linear
from compress.errors import SolveError
from compress.kernels.allocation import best
from compress.kernels.divergence import kl
from compress.kernels.hessian import mean
from compress.kernels.structure import damped_inverse, removed
from compress.machine import give_back_memory
from compress.recipe.restructure import Restructure
from compress.shape import STEP
from compress.stages.context import Context
from compress.stages.drift import Sinks, accumulate_windows
from compress.stages.stream import Stream
from compress.student import Student
from compress.surgery import inputs
from compress.surgery.walk import head_of, logits

WINDOWS = 32  # of calibration, to which down is fitted
ASKED_WINDOWS, ASKED_TOKENS = 8, 128  # others, of which models are asked
_EVERY = 2  # tokens of which one is asked what comes next
TRIED = 8  # numbers of channels that are tried in each block; between them roots are straight
_TIE = 1e-6  # of the largest cost, for all channels of a block: what costs nothing stays if it can


@dataclass(frozen=True)
class Shares:
    """What each of some blocks keeps."""

    channels: tuple[int, ...]
    kl: tuple[float, ...]  # that the loss of the others costs alone, nats a token


def share_out(
    student: Student, spec: Restructure, context: Context, blocks: Sequence[int], total: int
) -> Shares:
    """Say how many channels each block keeps; found once in a run.

    Args:
        student: read block by block, as it is before anything of it is cut.
        spec: how much attention sinks count.
        context: windows, device, journal.
        blocks: those that stay.
        total: channels that they keep together, `STEP` or more each.

    Raises:
        SolveError: what a block costs is no number.
    """
    unit = student.unit("channels")
    if (noted := context.noted(unit)) is not None:
        return Shares(tuple(noted["channels"]), tuple(noted["kl"]))
    each = student.anatomy.channels
    choices = [_choices(each[index]) for index in blocks]
    measured = _measured(student, spec, context, blocks)
    costs = [_along(measured[i], row) for i, row in zip(blocks, choices, strict=True)]
    channels, kl = shared(choices, costs, total)
    found = Shares(channels, kl)
    context.note(unit, asdict(found))
    return found


def shared(
    choices: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], total: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The choices of least summed cost that take up a total, and what each costs.

    Args:
        choices: numbers of channels, rising, for each block.
        costs: of each of them; what has more channels costs no more.
        total: of channels; at least the sum of the smallest choices.
    """
    most = max(max(row) for row in costs) or 1.0
    tied = [
        [cost + _TIE * most * (1 - n / row[-1]) for n, cost in zip(row, of, strict=True)]
        for row, of in zip(choices, costs, strict=True)
    ]
    places = best(tied, choices, total) or (0,) * len(choices)
    picked = [(row[p], of[p]) for row, of, p in zip(choices, costs, places, strict=True)]
    channels, kl = zip(*picked, strict=True)
    return channels, kl


def _choices(channels: int) -> list[int]:
    """How many channels a block may keep, rising; one that has fewer than a step keeps them."""
    return list(range(STEP, channels + 1, STEP)) or [channels]


def _tried(channels: int) -> list[int]:
    """Of these few, less than all, falling."""
    choices = [n for n in _choices(channels) if n < channels]
    count = min(TRIED, len(choices))
    places = {round(i * (len(choices) - 1) / max(1, count - 1)) for i in range(count)}
    return [choices[place] for place in sorted(places, reverse=True)]


def _along(measured: Mapping[int, float], choices: Sequence[int]) -> list[float]:
    """Costs of choices between what was measured; fewer channels cost no less.

    KL grows with the square of an error: its roots lie on straight lines.
    """
    points, highest = list[tuple[int, float]](), 0.0
    for channels in sorted(measured, reverse=True):
        highest = max(highest, measured[channels])
        points.insert(0, (channels, highest**0.5))
    found = []
    for n in choices:
        (low, more), (high, less) = next(
            ((a, b) for a, b in pairwise(points) if a[0] <= n <= b[0]), (points[0], points[-1])
        )
        share = (n - low) / (high - low) if high > low else 0.0
        found.append((more + share * (less - more)) ** 2)
    return found


def _measured(
    student: Student, spec: Restructure, context: Context, blocks: Sequence[int]
) -> dict[int, dict[int, float]]:
    """KL of each number of channels that is tried, by block; all of its channels cost nothing."""
    asking = _Asking(student, spec, context)
    each, tried = student.anatomy.channels, list[tuple[int, int]]()
    for index, channels in enumerate(each):
        keeps = _tried(channels) if index in blocks else []
        asking.through(index, keeps)
        tried += [(index, keep) for keep in keeps]
        context.tell("share channels", index + 1, len(each))
    found = {index: {each[index]: 0.0} for index in blocks}
    for (index, keep), cost in zip(tried, asking.divergences(), strict=True):
        found[index][keep] = cost
    return found


class _Asking:
    """A model, and beside it others of which one block each has fewer channels."""

    def __init__(self, student: Student, spec: Restructure, context: Context) -> None:
        ids = context.ids
        asked = max(1, min(ASKED_WINDOWS, len(ids) // 2))
        fit = ids[asked:][:WINDOWS] if len(ids) > asked else ids  # a single window is asked itself
        self._student, self._seq_len = student, ids.shape[1]
        self._sinks = Sinks(spec.sink_tokens, spec.sink_weight)
        self._stream = Stream(student, replace(context, ids=fit))
        embedded = self._stream.walk.embed(ids[:asked, :ASKED_TOKENS])
        self._models = [embedded]  # what enters the next block, [B, T, D] each; the whole one first

    def through(self, index: int, keeps: Sequence[int]) -> None:
        """Take all models through a block, and begin one for each number of channels, falling."""
        block, walk = self._student.anatomy.blocks[index], self._stream.walk
        down = next(linear for linear in block.linears if linear.role == "down")
        with walk.filled(index) as module:
            passed = [walk.call(index, module, one) for one in self._models]
            for fitted in self._fitted(index, module, down, keeps):
                inputs.replace(module, block, down, fitted)
                passed.append(walk.call(index, module, self._models[0]))
        self._models = passed
        give_back_memory()

    def divergences(self) -> Iterator[float]:
        """What each model has come to lack of what the whole one says, in nats a token.

        Raises:
            SolveError: it is no number.
        """
        weight, bias = head_of(self._student)
        head = weight.to(self._models[0]), bias
        said = self._said(self._models[0], head)
        for model in self._models[1:]:
            found = float(kl(said, self._said(model, head)).mean())
            if not math.isfinite(found):
                raise SolveError(
                    "channels: what a block is worth is NaN or infinite. Check the teacher's "
                    "weights, or run in float32 (teacher.dtype: float32)."
                )
            yield max(found, 0.0)

    def _said(self, leaving: Tensor, head: tuple[Tensor, Tensor | None]) -> Tensor:
        """Logits [n, V] float32 of some tokens."""
        final = self._stream.walk.finish(leaving).flatten(0, 1)[_EVERY - 1 :: _EVERY]
        return logits(self._student, final, head=head)

    def _fitted(
        self, index: int, module: nn.Module, down: Linear, keeps: Sequence[int]
    ) -> Iterator[Tensor]:
        """Weights [O, I] float32 that make up for the channels that go, for each number of them."""
        block = self._student.anatomy.blocks[index]
        weight = inputs.weight_of(module, block, down)
        hessian, tokens = self._hessian(index, module, down)
        if keeps:
            inverse = damped_inverse(hessian, min(len(hessian) / tokens, 1.0))
            yield from (now for _, now in removed(weight, inverse, keeps))

    def _hessian(self, index: int, module: nn.Module, down: Linear) -> tuple[Tensor, int]:
        """Of what down is given, and of how many tokens; takes the windows through the block."""
        block, parts = self._student.anatomy.blocks[index], self._stream.before(index)
        total = torch.zeros(down.in_features, down.in_features, device=parts[0].device)
        for part in parts:
            forward = inputs.Forwards(self._stream.walk, block, module, [part])
            forward.to(down, lambda x: accumulate_windows(total, x, self._seq_len, self._sinks))
            forward.finish()
        self._stream.passed(index)
        windows = sum(map(len, parts))
        hessian = mean(total, self._sinks.counted(windows, self._seq_len))
        return hessian, windows * self._seq_len
