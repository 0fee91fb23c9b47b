"""Scales of floating matrices as formats store them, and codes by the byte.

             codes                scales                                      and
    fp8      a byte each          two or four bytes, [U, G], U units of rows
    nvfp4    two to a byte        e4m3, [O, G], times the global scale        global scale, float32
    mxfp4    two to a byte        a byte, [O, G]: 127 more than the exponent

Of two codes in a byte the first is in the lower half: the bytes are those of `kernels.pack`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from compress.artifact.formats.matrix import Matrix, Scheme
from compress.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.kernels.grid import Rounded

Kind = Literal["fp8", "nvfp4", "mxfp4"]
_KINDS: dict[tuple[str, int], Kind] = {("fp4_e2m1", 16): "nvfp4", ("fp4_e2m1", 32): "mxfp4"}
_BIAS = 127  # of an exponent in e8m0; 255 is no number


def kind_of(scheme: Scheme) -> Kind | None:
    """Which floating format a scheme is; None for integers, and for none that there is."""
    if scheme.numbers == "fp8_e4m3":
        return "fp8"
    return _KINDS.get((scheme.numbers, scheme.group_size))


def sound(scheme: Scheme) -> bool:
    """Whether a scheme of floating numbers is one that there is."""
    kind, bits = kind_of(scheme), 8 if scheme.numbers == "fp8_e4m3" else 4
    units = scheme.scale_rows >= 0 if kind == "fp8" else scheme.scale_rows == 1
    return kind is not None and units and scheme.sym and scheme.bits == bits


def stored_scales(name: str, rounded: Rounded) -> tuple[Tensor, Tensor | None]:
    """The scales as they are stored, those of fp8 in float32, and the global scale.

    Raises:
        ArtifactError: a scale that its bytes cannot hold.
    """
    import torch

    from compress.artifact.formats.matrix import scheme_of
    from compress.kernels.grid import storable
    from compress.kernels.numbers import decode, encode

    kind, scale, over = kind_of(scheme_of(rounded)), rounded.scale, None
    if kind == "fp8":
        found = scale[:: rounded.scale_rows or len(scale)]
        exact = storable(found).repeat_interleave(rounded.scale_rows or len(scale), 0)[: len(scale)]
    elif kind == "nvfp4":
        over = torch.tensor([rounded.global_scale or 1.0])
        codes = encode(scale * over, "fp8_e4m3")
        exact, found = decode(codes, "fp8_e4m3") / over, codes.view(torch.float8_e4m3fn)
    else:
        exponent = torch.frexp(scale).exponent - 1
        exact, found = torch.ldexp(torch.ones_like(scale), exponent), (exponent + _BIAS).byte()
    if not torch.equal(exact, scale):
        raise ArtifactError(
            f"{name}: some of its scales are not exact as {kind} stores them; stored, they would "
            "mean other weights. Choose scales with kernels.floats.fit before rounding."
        )
    return found.contiguous(), over


def read_scales(name: str, matrix: Matrix, scales: Tensor, over: Tensor | None) -> Tensor:
    """The scales [O, G] float32 of stored ones.

    Raises:
        ArtifactError: a scale that is zero, negative, infinite or no number.
    """
    import torch

    kind, every = kind_of(matrix.scheme), matrix.scheme.scale_rows or matrix.rows
    if kind == "mxfp4":
        known = torch.where(scales == 255, torch.nan, 1.0)
        scale = torch.ldexp(known, scales.int() - _BIAS)
    else:
        scale = scales.float().view(matrix.scale_rows, matrix.groups)
        scale = scale if over is None else scale / over
    wrong = ~(scale > 0) | ~scale.isfinite()
    if bool(wrong.any()):
        row, group = wrong.nonzero()[0].tolist()
        raise ArtifactError(
            f"{name}: {int(wrong.sum()):,} of its scales are not finite, or not above zero; that "
            f"of row {row}, group {group} is {float(scale[row, group])}. Write the artifact again."
        )
    return scale.repeat_interleave(every, 0)[: matrix.rows].contiguous()


def rebuilt(
    name: str, matrix: Matrix, codes: Tensor, scales: Tensor, over: Tensor | None
) -> Rounded:
    """The matrix of codes [O, I] uint8 and stored scales.

    Raises:
        ArtifactError: a code that is no number, or a scale that cannot be.
    """
    import torch

    from compress.kernels.grid import Rounded

    scheme = matrix.scheme
    if scheme.bits == 8 and (lost := int(((codes & 127) == 127).sum())):
        raise ArtifactError(f"{name}: {lost:,} of its codes are no number. Write it again.")
    scale = read_scales(name, matrix, scales, over)
    return Rounded(
        codes, scale, torch.zeros_like(scale, dtype=torch.uint8), scheme.bits, scheme.group_size,
        sym=True, numbers=scheme.numbers, scale_rows=scheme.scale_rows,  # type: ignore[arg-type]
        global_scale=_global(name, over),
    )  # fmt: skip


def _global(name: str, over: Tensor | None) -> float | None:
    value = None if over is None else float(over)
    if value is not None and not 0 < value < math.inf:
        raise ArtifactError(f"{name}: its global scale is {value}. Write the artifact again.")
    return value
