"""What hangs on each group of heads and on each channel of an MLP, by gradients.

Leaving out an input a of a linear moves the log-probability of a drawn token by -a ∂log p/∂a, to
first order. Summed over a window and squared, half the mean is the KL that leaving it out costs
before anything makes up for it; see `compress.kernels.fisher`. One walk there and back tells it of
all of them.

Source: Theis et al. 2018, arXiv:1801.05787; by heads and channels: Ma et al. 2023 (LLM-Pruner),
arXiv:2305.11627.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.kernels import fisher
from compress.shape import shape_of
from compress.stages.backward import Backward, Here
from compress.stages.context import Context
from compress.stages.repair import Scores
from compress.student import Student
from compress.surgery.gradients import Slopes

WINDOWS, TOKENS = 64, 128  # of calibration: with as many draws as `sensitivity` an error of 9 %
DRAWS = 4


def scores(student: Student, context: Context) -> Scores:
    """KL in nats a token, to second order, of leaving out each unit alone; found once in a run.

    Returns:
        By the linear that reads them: groups of heads of every o, channels of every down.
    """
    unit = student.unit("first_order")
    if (noted := context.noted(unit)) is not None:
        return noted
    shape = shape_of(student.config, student.anatomy)
    sizes = {"o": shape.group * shape.head_dim, "down": 1}
    ids, found = context.ids[:WINDOWS, :TOKENS], dict[str, list[float]]()
    for here in Backward(student, ids, context, DRAWS, "first order").blocks():
        reading = {linear: sizes[linear.role] for linear in here.block.linears
                   if linear.role in sizes}  # fmt: skip
        moves: dict[str, list[Tensor]] = {linear.name: [] for linear in reading}
        here.carry(partial(_look, here, reading, moves))
        for name, parts in moves.items():
            found[name] = fisher.divergences(torch.cat(parts, 1), ids.shape[1]).tolist()
    context.note(unit, found)
    return found


def _look(
    here: Here, reading: Mapping[Linear, int], moves: Mapping[str, list[Tensor]], slopes: Slopes
) -> None:
    """Take note of what units of inputs do in some windows, [S, B, U] by linear."""
    for linear, unit in reading.items():
        given, above = slopes.inputs[linear.name], slopes.outputs[linear.name]
        moves[linear.name].append(fisher.left_out(given, here.weight(linear), above, unit=unit))
