"""Choose what is left of the residual stream, which all blocks read and write.

Its principal directions, when each token is divided by its length as norms do: the stream is turned
to them first, which changes nothing that the model says, and the last ones go. By gradients, those
go instead that what the model says hangs on least. Or its channels as they are, those stay that are
driven most.

Source: Ashkboos et al. 2024 (SliceGPT), arXiv:2401.15024, with one basis for all blocks, so that
nothing has to turn the stream between them; Muralidharan et al. 2024 (Minitron), arXiv:2407.14679.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from compress import storage
from compress.anatomy import Linear
from compress.kernels.hessian import accumulate, mean
from compress.kernels.structure import Moments, magnitudes, principal, refit
from compress.recipe.restructure import Restructure
from compress.results import LinearResult
from compress.stages import first_order
from compress.stages.backward import Backward
from compress.stages.context import Context
from compress.stages.drift import Sinks, mean_of_pairs
from compress.stages.repair import DAMPINGS
from compress.stages.stream import Stream
from compress.student import Student
from compress.surgery.rotate import Rotated

_ALIKE = 0.1  # of errors that no gradient tells of, against the mean of those that it does
WINDOWS = 32  # of calibration, read between all blocks


@dataclass(frozen=True)
class Width:
    """What is left of the stream of a student."""

    channels: tuple[int, ...]  # ascending; of the turned stream where it was turned
    share: float  # of its squares, tokens having been divided by their length


def narrow(student: Student, spec: Restructure, context: Context, keep: int) -> Width | None:
    """Choose which channels of the stream stay, and turn a student so that they say most.

    Args:
        student: goes on turned, where the recipe says so.
        spec: how to choose.
        context: windows, of which few are read; device, journal.
        keep: channels that stay; where that is all, there is nothing to choose.
    """
    if keep == student.anatomy.hidden_size:
        return None
    unit = student.unit("width")
    basis = context.scratch / f"{unit.replace('/', '-')}.safetensors"
    if (noted := context.noted(unit)) is None:
        second, driven = _seen(student, context)
        if spec.turns:
            by_gradients = spec.importance == "first_order"
            directions = principal(second, _missed(student, context) if by_gradients else None)
            storage.write_file(basis, {"basis": directions.cpu()})
            energy, left = (directions * (second @ directions)).sum(0), list(range(keep))
        else:
            energy = second.diagonal()
            left = sorted(driven.topk(keep).indices.tolist())
        noted = {"channels": left, "share": float(energy[left].sum() / energy.sum())}
        context.note(unit, noted, [basis] if spec.turns else [])
    if spec.turns:
        turn = partial(Rotated, residual=storage.read_file(basis)["basis"])
        student.become(turn)
    return Width(tuple(noted["channels"]), noted["share"])


def _seen(student: Student, context: Context) -> tuple[Tensor, Tensor]:
    """Second moments [D, D] of the normed stream, and how strongly its channels are driven [D]."""
    width, device = student.anatomy.hidden_size, context.device
    total, driven = torch.zeros(width, width, device=device), torch.zeros(width, device=device)
    tokens, stream = 0, Stream(student, replace(context, ids=context.ids[:WINDOWS]))
    for index in range(len(student.anatomy.blocks) + 1):
        for part in stream.before(index):
            normed = rms_norm(part.float(), [width])
            accumulate(total, normed.flatten(0, 1))
            driven += magnitudes(normed).square()
            tokens += part.shape[0] * part.shape[1]
    return mean(total, tokens), driven


def _missed(student: Student, context: Context) -> Tensor:
    """How much what the model says moves with an error of the normed stream, [D, D].

    Second moments of gradients by what enters each block, and a share of the same for all.
    """
    width = student.anatomy.hidden_size
    total = torch.zeros(width, width, device=context.device)
    ids = context.ids[: first_order.WINDOWS, : first_order.TOKENS]
    for here in Backward(student, ids, context, first_order.DRAWS, "width").blocks():
        lengths = torch.cat(list(here.parts)).float().square().mean(-1, keepdim=True).sqrt()
        accumulate(total, (here.carry().float() * lengths).flatten(0, 2))
    found = mean(total, float(total.diagonal().mean()))
    return found + _ALIKE * torch.eye(len(found), device=found.device)


def fit_head(
    head: Linear,
    weight: Tensor,
    ours: Tensor,
    theirs: Tensor,
    channels: Sequence[int],
    spec: Restructure,
) -> tuple[Tensor, LinearResult]:
    """Fit a head of its own to make of what is left of the stream what it made of all of it.

    What is fitted is what it reads, as the teacher's would be: that is the best head whatever its
    weight is, and there are D rows to solve for and not V.

    Args:
        head: its record is of it.
        weight: of the head, [V, D] any float.
        ours: final hidden states [B, T, D] of the student, any float.
        theirs: of the teacher.
        channels: of the stream, that are left.
        spec: how far to trust what was seen.

    Returns:
        [V, D] float32, zero where nothing is left, and what became of it.
    """
    width, kept = weight.shape[1], torch.tensor(channels, device=ours.device)
    halves = [slice(0, None, 2), slice(1, None, 2)] if len(ours) > 1 else [slice(None)]
    moments = []
    for half in halves:
        x, y = ours[half].flatten(0, 1), theirs[half].flatten(0, 1)
        pairs = partial(mean_of_pairs, seq_len=ours.shape[1], sinks=Sinks(0, 0.0))
        hessian = pairs([x], [x])
        wish = pairs([y], [x]) - hessian
        moments.append(Moments(float(len(x)), hessian, torch.zeros_like(wish), wish))
    damps = (spec.damp_percent,) if spec.damp_percent else DAMPINGS
    identity, dense = torch.eye(width, device=ours.device), weight.to(ours.device).float()
    found = refit(identity, moments, kept, damp_percents=damps, most=spec.error_correction)
    fitted = torch.zeros_like(dense)
    fitted[:, kept] = dense @ found.weight
    metric, lost = dense.T @ dense, theirs.float() - ours.float()[..., kept] @ found.weight.T
    error, energy = (float(((x @ metric) * x).sum()) for x in (lost, theirs.float()))
    return fitted, LinearResult(
        head.name, None, head.role, "restructure", "solved", None, None,
        relative_error=error / energy if energy else 0.0, damp_percent=found.damp_percent,
    )  # fmt: skip
