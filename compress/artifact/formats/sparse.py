"""A pruned matrix in `packed`: a bit for each weight and what stays, where that is smaller.

A matrix M [O, I] of which K weights stay is stored as

    M.mask        int32              [O, I/32]           bit i of a row: whether weight i stays
    M.kept        dtype of the model [K]                 the weights that stay, row after row
    M.kept_codes  int32              [ceil(K·bits/32)]   or their codes, where it is quantized

in the place of its weight, or of its codes; scales and zeros stay what they are. What does not stay
is zero: the code of it is the zero point. Rows are [O, I]'s also for a Conv1D linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.anatomy import Linear
from compress.artifact.formats.matrix import Specs
from compress.errors import ArtifactError
from compress.storage import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".mask", ".kept", ".kept_codes")
_WORD = 32
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Sparse:
    """A pruned matrix [rows, columns] = [O, I] of weights, known without reading them."""

    rows: int
    columns: int
    kept: int
    dtype: str  # as safetensors spells it


def weights_pay(rows: int, columns: int, kept: int, bits: int) -> bool:
    """Whether weights of so many bits each take fewer with a mask."""
    weights = rows * columns
    return columns % _WORD == 0 and weights + kept * bits < weights * bits


def codes_pay(rows: int, columns: int, kept: int, bits: int) -> bool:
    """Whether codes take fewer words with a mask."""
    masked = rows * mask_words(columns) + words(kept, bits)
    return columns % _WORD == 0 and masked < rows * words(columns, bits)


def words(count: int, bits: int) -> int:
    """Words that hold `count` codes, end to end."""
    return -(-count * bits // _WORD)


def mask_words(columns: int) -> int:
    """Words of a row of a mask."""
    return columns // _WORD


def stored(name: str, sparse: Sparse) -> Specs:
    """Names, dtypes and shapes of the tensors that hold a pruned matrix of weights."""
    return {
        f"{name}.mask": (("I32",), (sparse.rows, mask_words(sparse.columns))),
        f"{name}.kept": ((sparse.dtype,), (sparse.kept,)),
    }


def find(checkpoint: Checkpoint) -> dict[str, Sparse]:
    """The pruned matrices of weights of a folder by module name: those with `.kept`.

    Raises:
        ArtifactError: one has no mask, or what is kept fits no mask.
    """
    names = [name.removesuffix(".kept") for name in checkpoint.tensors if name.endswith(".kept")]
    return {name: _sparse(checkpoint, name) for name in names}


def _sparse(checkpoint: Checkpoint, name: str) -> Sparse:
    mask, kept = (checkpoint.tensors.get(f"{name}.{part}") for part in ("mask", "kept"))
    if mask is None or kept is None or len(mask.shape) != 2 or len(kept.shape) != 1:
        found = "missing" if mask is None else "not a matrix, or what it keeps is no row"
        raise ArtifactError(f"{name}.mask: {found}. Write the artifact again.")
    if kept.dtype not in _FLOATS:
        raise ArtifactError(
            f"{name}.kept: {kept.dtype}, no {' or '.join(_FLOATS)}. Write the artifact again."
        )
    return Sparse(mask.shape[0], mask.shape[1] * _WORD, kept.shape[0], kept.dtype)


def encode_where_it_pays(linear: Linear, weight: Tensor, kept: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of a linear's pruned weight, which lies as its family stores it."""
    rows, columns = linear.out_features, linear.in_features
    if not weights_pay(rows, columns, kept, 8 * weight.itemsize):
        yield f"{linear.name}.weight", weight
        return
    yield from encode(linear.name, linear.turned(weight), kept)


def encode(name: str, weight: Tensor, kept: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored tensors of a pruned weight [O, I], zero exactly where it is pruned.

    Raises:
        ArtifactError: it keeps another number of weights.
    """
    from compress.kernels.pack import pack_bits

    mask = weight != 0
    _check_count(name, mask, kept)
    yield f"{name}.mask", pack_bits(mask)
    yield f"{name}.kept", weight[mask]


def decode(name: str, sparse: Sparse, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight [O, I] that a mask and what it keeps stand for.

    Raises:
        ArtifactError: the mask keeps another number of weights than are there.
    """
    from compress.kernels.pack import unpack_bits

    kept = tensors[f"{name}.kept"]
    mask = unpack_bits(tensors[f"{name}.mask"])
    _check_count(name, mask, sparse.kept)
    return kept.new_zeros(mask.shape).masked_scatter_(mask, kept)


def encode_codes(
    name: str, codes: Tensor, zero: Tensor, bits: int, kept: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield mask and kept codes of pruned codes [O, I]; `zero` [O, I] is what pruned ones are.

    A weight that stays may have been rounded to zero: the first such places fill up to `kept`.

    Raises:
        ArtifactError: more codes are not zero.
    """
    from compress.kernels.pack import pack, pack_bits

    mask = codes != zero
    lacking = kept - int(mask.sum())
    mask.view(-1)[(~mask).flatten().nonzero().flatten()[: max(0, lacking)]] = True
    _check_count(name, mask, kept)
    yield f"{name}.mask", pack_bits(mask)
    yield f"{name}.kept_codes", pack(codes[mask][None], bits)[0]


def decode_codes(name: str, tensors: Mapping[str, Tensor], zero: Tensor, bits: int) -> Tensor:
    """The codes [O, I] that a mask and kept codes stand for; `zero` [O, I] is all others' code.

    Raises:
        ArtifactError: the mask keeps another number of codes than there are.
    """
    from compress.kernels.pack import unpack, unpack_bits

    packed = tensors[f"{name}.kept_codes"]
    mask = unpack_bits(tensors[f"{name}.mask"])
    kept = int(mask.sum())
    if words(kept, bits) != len(packed):
        raise ArtifactError(
            f"{name}.kept_codes: {len(packed)} words, its mask keeps {kept} codes of {bits} bits. "
            "Write the artifact again."
        )
    return zero.masked_scatter(mask, unpack(packed[None], bits, kept)[0])


def _check_count(name: str, mask: Tensor, kept: int) -> None:
    if (found := int(mask.sum())) != kept:
        raise ArtifactError(
            f"{name}: its mask keeps {found} weights, not {kept}. Write the artifact again."
        )
