"""Pruned matrices of `packed` as docs/formats.md lays them out: a mask, and what it keeps.

Every row of a mask is I / 32 words; bit i of it, from the lowest bit of the first word on, says
whether weight i stays. What stays lies end to end, row after row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ArtifactError
from compress.verify.bits import spare_bits, unpack
from compress.verify.entry import Entry

Expected = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # name → dtypes allowed, shape
_FLOATS = ("F32", "F16", "BF16")
_WORD = 32


@dataclass(frozen=True)
class Masked:
    """A pruned matrix [O, I] of weights that stay floats; `turned`: stored [I, O] when dense."""

    rows: int
    columns: int
    turned: bool


def has_weights(entries: Mapping[str, Entry], name: str) -> bool:
    """Whether the matrix `name` is stored as a mask and weights."""
    return f"{name}.kept" in entries


def has_codes(entries: Mapping[str, Entry], name: str) -> bool:
    """Whether the matrix `name` is stored as a mask and codes."""
    return f"{name}.kept_codes" in entries


def expected(name: str, masked: Masked, entries: Mapping[str, Entry]) -> Expected:
    """The tensors that hold weights with a mask; how many stay, the file says."""
    kept = math.prod(entries[f"{name}.kept"].shape)
    return {f"{name}.kept": (_FLOATS, (kept,)), **_mask(name, masked.rows, masked.columns)}


def expected_codes(name: str, rows: int, columns: int, entries: Mapping[str, Entry]) -> Expected:
    """The tensors that hold codes with a mask, scales and zeros left out."""
    words = math.prod(entries[f"{name}.kept_codes"].shape)
    return {f"{name}.kept_codes": (("I32",), (words,)), **_mask(name, rows, columns)}


def _mask(name: str, rows: int, columns: int) -> Expected:
    if columns % _WORD:
        raise ArtifactError(f"{name}.mask: rows of {columns} weights do not end on words.")
    return {f"{name}.mask": (("I32",), (rows, columns // _WORD))}


def weights(entries: Mapping[str, Entry], name: str) -> NDArray[np.float32]:
    """The weights [O, I] of a mask and what it keeps."""
    mask = _bits(entries, name)
    found = np.zeros(mask.shape, np.float32)
    found[mask] = np.resize(entries[f"{name}.kept"].floats(), int(mask.sum()))
    return found


def codes(
    entries: Mapping[str, Entry], name: str, bits: int, zeros: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The codes [O, I] of a mask and what it keeps; all others are their zero [O, I]."""
    mask, words, found = _bits(entries, name), _words(entries, name), zeros.copy()
    kept = unpack(words, bits, words.shape[1] * _WORD // bits)
    found[mask] = np.resize(kept, int(mask.sum()))
    return found


def problems(entries: Mapping[str, Entry], name: str, bits: int | None) -> Iterator[str]:
    """A mask that keeps another number, weights that stay and are zero, bits behind the last code.

    bits: of the codes; None for weights.
    """
    counted = int(_bits(entries, name).sum())
    if bits is None:
        kept = entries[f"{name}.kept"].floats()
        if len(kept) != counted:
            yield f"{name}.mask: keeps {counted} weights, {len(kept)} are stored"
        if zeros := int((kept == 0).sum()):
            yield f"{name}.kept: {zeros} weights that stay are zero"
        return
    words, needed = _words(entries, name), -(-counted * bits // _WORD)
    if words.shape[1] != needed:
        yield f"{name}.mask: keeps {counted} codes, which fill {needed} words, not {words.shape[1]}"
    elif spare_bits(words, bits, counted):
        yield f"{name}.kept_codes: bits are set behind the last code"


def _words(entries: Mapping[str, Entry], name: str) -> NDArray[Any]:
    """Kept codes as one row of words."""
    return np.asarray(entries[f"{name}.kept_codes"].array()).reshape(1, -1)


def _bits(entries: Mapping[str, Entry], name: str) -> NDArray[Any]:
    """A mask [O, I], read bit by bit."""
    words = np.ascontiguousarray(entries[f"{name}.mask"].array())
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)
