"""Weights that are no numbers, named before anything long is made of them."""

from __future__ import annotations

import math

from torch import Tensor

from compress.errors import ModelError
from compress.teacher.folder import Teacher

_ELEMENTS = 16 * 1024**2  # looked at at once
_LISTED = 5


def check(teacher: Teacher) -> None:
    """Read every weight once: one block resident at a time, at the speed of the disk.

    Raises:
        ModelError: some are NaN or infinite; the message names their tensors.
    """
    broken = _broken(teacher.outside())
    for block in teacher.anatomy.blocks:
        broken += _broken(teacher.block(block.index))
    if broken:
        more = f" and {len(broken) - _LISTED} more tensors" if len(broken) > _LISTED else ""
        raise ModelError(
            f"{teacher.name}: {', '.join(broken[:_LISTED])}{more} hold NaN or infinite values. No "
            "student can be made of them. Fetch the checkpoint again, or choose another."
        )


def _broken(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if not _finite(tensor)]


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite: NaN spreads to both ends of the range."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    pieces = tensor.reshape(-1).split(_ELEMENTS)
    return all(math.isfinite(end) for piece in pieces for end in map(float, piece.aminmax()))
