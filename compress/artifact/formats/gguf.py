"""`gguf`: the blocks of 32 weights that llama.cpp computes with, holding our integers.

A quantized matrix M [O, I] is rows of I/32 blocks, each block a scale and its codes:

    Q4_0   18 bytes   float16 d                16 bytes of codes    (code - 8) d
    Q4_1   20 bytes   float16 d, float16 m     16 bytes of codes    code · d + m
    Q8_0   34 bytes   float16 d                32 signed bytes      code · d

Byte j of the 16 holds code j below and code j + 16 above. A group of more than 32 columns is
several blocks with one scale. Symmetric grids fit as they are, narrower ones with their codes moved
up to the middle of Q4_0. An asymmetric grid gets m = -zero · d rounded to float16, which has 11
bits where the product has up to 12: its weights are off by up to 2^-12 of m, and an export says by
how much.

Here a tensor of blocks goes by ``M.Q4_0`` (``M.Q4_1``, ``M.Q8_0``), uint8 [O, bytes of a row];
names inside the file, and the order of rows there, are a matter of `artifact.gguf_file`.

Source: ggml, ggml-common.h (block_q4_0, block_q4_1, block_q8_0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import refusing
from compress.artifact.formats.matrix import Matrix, Scheme, Specs, disassemble
from compress.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded, Shifted
    from compress.storage import Checkpoint

METHOD = "gguf"
VERSION = 1
FILE = "model.gguf"
BLOCK = 32  # weights
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
SUFFIXES: tuple[str, ...] = tuple(f".{kind}" for kind in BLOCK_BYTES)
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def refusals(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> list[str]:
    """Say what this format cannot hold of the planned (or finished) schemes, one line a reason."""
    reasons = chain(
        refusing.uneven(anatomy),
        _unknown(anatomy),
        refusing.beyond_integers(schemes),
        _odd_groups(anatomy, schemes),
        _wide_asymmetric(schemes),
    )
    return refusing.messages(METHOD, reasons)


def _unknown(anatomy: Anatomy) -> Iterator[str]:
    if anatomy.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        yield f"{anatomy.model_type}: written are {known}; others have names of their own"


def _odd_groups(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    columns = {x.name: x.in_features for x in (*anatomy.linears, anatomy.head)}
    columns[anatomy.embedding] = anatomy.hidden_size
    odd = [n for n, s in schemes.items() if s.group_size % BLOCK or columns.get(n, BLOCK) % BLOCK]
    if odd:
        size = schemes[odd[0]].group_size
        yield f"{odd[0]}{refusing.more(odd)}: groups of {size}; its blocks are {BLOCK} columns"


def _wide_asymmetric(schemes: Mapping[str, Scheme]) -> Iterator[str]:
    if odd := [name for name, s in schemes.items() if s.bits == 8 and not s.sym]:
        yield f"{odd[0]}{refusing.more(odd)}: 8 bits on an asymmetric grid; Q8_0 has no minimum"


def kind_of(scheme: Scheme) -> str:
    """The type of block that holds a scheme."""
    if scheme.bits == 8:
        return "Q8_0"
    return "Q4_0" if scheme.sym else "Q4_1"


def encode(
    name: str, rounded: Rounded, linear: Linear | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield the blocks of the matrix `name`.

    Raises:
        ArtifactError: a minimum beyond float16, or scales that two bytes cannot hold.
    """
    import torch

    disassemble(name, rounded)  # checks scales and zeros
    if rounded.group_size % BLOCK or (rounded.bits == 8 and not rounded.sym):
        raise ArtifactError(f"{name}: no block of llama.cpp holds its scheme. Use packed.")
    rows, columns = rounded.codes.shape
    blocks = rounded.codes.view(rows, columns // BLOCK, BLOCK)
    repeated = rounded.group_size // BLOCK
    parts = [_bytes(rounded.scale.repeat_interleave(repeated, 1).half())]
    if rounded.bits == 8:
        kind = "Q8_0"
        parts.append(blocks ^ 128)  # code - 128 as a signed byte
    elif rounded.sym:
        kind = "Q4_0"
        parts.append(_halves(blocks + (8 - (1 << (rounded.bits - 1)))))
    else:
        kind = "Q4_1"
        minimum = shifted(rounded).minimum
        if minimum is None or not bool(minimum.isfinite().all()):
            raise ArtifactError(
                f"{name}: a minimum beyond ±65504, the largest that Q4_1 holds. Use "
                "artifact.format: packed."
            )
        parts += [_bytes(minimum.repeat_interleave(repeated, 1).half()), _halves(blocks)]
    yield f"{name}.{kind}", torch.cat(parts, -1).view(rows, -1)


def shifted(rounded: Rounded) -> Shifted:
    """A matrix on an asymmetric grid as Q4_1 holds it: each minimum rounded to float16."""
    from compress.kernels.grid import Shifted

    minimum = (-rounded.zero.float() * rounded.scale).half().float()
    return Shifted(
        rounded.codes, rounded.scale, rounded.zero, rounded.bits, rounded.group_size, False,
        minimum=minimum,
    )  # fmt: skip


def _bytes(values: Tensor) -> Tensor:
    """float16 [O, B] as bytes [O, B, 2]."""
    import torch

    return values.contiguous().view(torch.uint8).view(*values.shape, 2)


def _halves(blocks: Tensor) -> Tensor:
    """Codes [O, B, 32] below 16 as bytes [O, B, 16]: the first half below, the second above."""
    return blocks[..., :16] | blocks[..., 16:] << 4


def config(anatomy: Anatomy, schemes: Mapping[str, Scheme]) -> dict[str, Any]:
    """The `quantization_config`: where the model lies; the file itself says the rest."""
    return {"quant_method": METHOD, "version": VERSION, "file": FILE}


def matrices(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Matrix]:
    """Find the quantized matrices: the names of the tensors say all.

    Raises:
        ArtifactError: another version, or blocks that are no rows.
    """
    told = {key: quantization.get(key) for key in ("version", "file")}
    if told != {"version": VERSION, "file": FILE}:
        raise ArtifactError(
            f"config.json: gguf {told}; this program reads version {VERSION} in {FILE}. Use the "
            "program that wrote the artifact, or a newer one."
        )
    found = {}
    for stored_name, info in checkpoint.tensors.items():
        name, _, kind = stored_name.rpartition(".")
        if kind in BLOCK_BYTES:
            rows, row_bytes = info.shape
            scheme = Scheme(8 if kind == "Q8_0" else 4, BLOCK, kind != "Q4_1")
            found[name] = Matrix(scheme, rows, row_bytes // BLOCK_BYTES[kind] * BLOCK)
    return found


def stored(name: str, matrix: Matrix) -> Specs:
    """Name, dtype and shape of the tensor that holds a matrix."""
    kind = kind_of(matrix.scheme)
    row_bytes = matrix.columns // BLOCK * BLOCK_BYTES[kind]
    return {f"{name}.{kind}": (("U8",), (matrix.rows, row_bytes))}


def decode(name: str, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Rounded:
    """Rebuild the matrix `name`, in groups of 32.

    Raises:
        ArtifactError: a scale that no grid has, or a minimum that is no step of it.
    """
    from compress.kernels.grid import Rounded

    kind, bits = kind_of(matrix.scheme), matrix.scheme.bits
    blocks = tensors[f"{name}.{kind}"].view(matrix.rows, -1, BLOCK_BYTES[kind])
    scale = _floats(blocks[..., :2])
    if bool((~scale.isfinite() | (scale == 0)).any()):
        raise ArtifactError(f"{name}: scales that are zero or not finite. Write it again.")
    if kind == "Q8_0":
        codes, zero = blocks[..., 2:] ^ 128, scale.new_full(scale.shape, 128)
    else:
        halves = blocks[..., -16:]
        codes = _whole(halves)
        zero = scale.new_full(scale.shape, 8)
    codes = codes.reshape(matrix.rows, matrix.columns)
    if kind != "Q4_1":
        return Rounded(codes, scale, zero.byte(), bits, BLOCK, True)
    minimum = _floats(blocks[..., 2:4])
    return _with_minimum(name, codes, scale, minimum)


def _floats(raw: Tensor) -> Tensor:
    """float16 from bytes [O, B, 2], as float32 [O, B]."""
    import torch

    return raw.contiguous().view(torch.float16)[..., 0].float()


def _whole(halves: Tensor) -> Tensor:
    """Undo `_halves`."""
    import torch

    return torch.cat([halves & 15, halves >> 4], -1)


def _with_minimum(name: str, codes: Tensor, scale: Tensor, minimum: Tensor) -> Rounded:
    """A matrix of weights ``code · scale + minimum``, and the zeros that it was rounded with."""
    from compress.kernels.grid import Shifted

    zero = (-minimum / scale).round()
    near = ((-zero * scale).half().float() == minimum) & (zero >= 0) & (zero <= 15)
    if not bool(near.all()):
        raise ArtifactError(
            f"{name}: {int((~near).sum()):,} minima that are no whole number of steps, as no grid "
            "has them. Write the artifact again."
        )
    return Shifted(codes, scale, zero.byte(), 4, BLOCK, False, minimum=minimum)
