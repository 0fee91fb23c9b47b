"""GGUF headers, read with bounds, and the bytes of single tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: little-endian counts, metadata by
key, then name, shape, type and offset of every tensor, then their bytes. The library's own reader
makes an object of each element of each array it is told of; here arrays are walked over.
"""

from __future__ import annotations

import math
import mmap
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError, shown

if TYPE_CHECKING:
    import torch

MAX_FIELDS = 4_096
MAX_TENSORS = 65_536
MAX_ELEMENTS = 8_000_000  # of all arrays: vocabularies, merges, scores
MAX_TEXT_BYTES = 4 * 1024**2  # one string: chat templates take thousands
_MAX_RANK = 4  # ggml's own
_MAX_EXTENT = 2**40
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies, and what it is made of."""

    kind: str  # as ggml spells it: F32, BF16, Q4_0, …
    shape: tuple[int, ...]  # outermost extent first, as torch writes it
    start: int  # first byte in the file
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says before its bytes begin."""

    fields: dict[str, Any]  # metadata that is a number, a text or a truth value; arrays left out
    shapes: dict[str, tuple[int, ...]]  # of tensors, innermost extent first, as GGUF writes them
    tensors: dict[str, GgufTensor] = field(default_factory=dict)


def read_gguf(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file: every tensor lies inside it, none shares a byte.

    Raises:
        ModelError: the file is missing, truncated, not GGUF, or its header is beyond the bounds.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{path}: not an ordinary file. Give the file itself.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(data)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file.") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    except struct.error:
        raise ModelError(
            f"{path}: not a whole GGUF file: it ends inside its header. Fetch the file again."
        ) from None
    except (ValueError, KeyError) as error:  # also: an empty file cannot be mapped
        raise ModelError(
            f"{path}: not a whole GGUF file ({error}). Fetch the file again."
        ) from error


def read_gguf_bytes(path: Path, tensor: GgufTensor) -> torch.Tensor:
    """The bytes of one tensor, as uint8 [nbytes]; `tensor` is one of the file's own header.

    Raises:
        ModelError: the file cannot be read.
    """
    import torch

    try:
        with path.open("rb") as file:
            file.seek(tensor.start)
            raw = bytearray(file.read(tensor.nbytes))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(raw) != tensor.nbytes:
        raise ModelError(f"{path}: truncated since its header was read. Fetch the file again.")
    return torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


def gguf_fields(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the metadata of a GGUF file that is no array; raises as `read_gguf` does."""
    yield from read_gguf(path).fields.items()


def check_gguf(path: Path) -> None:
    """Check the header of a GGUF file; raises as `read_gguf` does."""
    read_gguf(path)


class _Reader:
    """A place in the file; what is read moves it on. Past the end is a `struct.error`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at, self._elements = data, 0, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return value

    def count(self, most: int, what: str) -> int:
        """A 64-bit count."""
        value = int(self.number("<Q"))
        if value > most:
            raise ValueError(f"it promises {value:,} {what}; {most:,} are read at most")
        return value

    def text(self) -> str:
        length = self.count(MAX_TEXT_BYTES, "bytes of one text")
        (raw,) = struct.unpack_from(f"{length}s", self._data, self.at)
        self.at += length
        return str(raw, "utf-8")

    def value(self) -> Any:
        """One metadata value of the type that stands before it; None for an array."""
        kind = self.number("<I")
        if kind != _ARRAY:
            return self.text() if kind == _STRING else self.number(_scalar(kind))
        kind = self.number("<I")
        count = self.count(MAX_ELEMENTS - self._elements, "array elements")
        self._elements += count
        if kind != _STRING:
            self.at += count * struct.calcsize(_scalar(kind))
        else:
            for _ in range(count):
                length = self.count(MAX_TEXT_BYTES, "bytes of one text")
                self.at += length
        return None


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"metadata of type {kind} is not read")
    return _SCALARS[kind]


def _header(data: mmap.mmap) -> GgufHeader:
    reader = _Reader(data)
    if data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    reader.at = 4
    if (version := reader.number("<I")) not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are read, little-endian")
    tensors, fields = reader.count(MAX_TENSORS, "tensors"), reader.count(MAX_FIELDS, "fields")
    found: dict[str, Any] = {}
    for _ in range(fields):
        name = reader.text()
        if name in found:
            raise ValueError(f"{shown(name)} is there twice")
        found[name] = reader.value()
    shapes, kinds, spans = _tensors(reader, tensors)
    begin = _data_start(reader.at, found)
    _check_spans(spans, begin, len(data))
    return GgufHeader(
        {name: value for name, value in found.items() if value is not None},
        shapes,
        {
            name: GgufTensor(kinds[name], shapes[name][::-1], begin + start, stop - start)
            for start, stop, name in spans
        },
    )


def _tensors(
    reader: _Reader, count: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, str], list[tuple[int, int, str]]]:
    """Shapes and types by name, and the bytes of each tensor from the start of the data."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str] = {}
    spans = []
    for _ in range(count):
        name, rank = reader.text(), reader.number("<I")
        if name in shapes or not 1 <= rank <= _MAX_RANK:
            raise ValueError(
                f"{shown(name)} is there twice" if name in shapes else f"{shown(name)}: rank {rank}"
            )
        shapes[name] = tuple(reader.count(_MAX_EXTENT, "columns") for _ in range(rank))
        kind = GGMLQuantizationType(reader.number("<I"))
        kinds[name], (block, nbytes) = kind.name, GGML_QUANT_SIZES[kind]
        if shapes[name][0] % block:
            raise ValueError(f"{shown(name)}: {shapes[name][0]:,} columns, its type packs {block}")
        start = reader.number("<Q")
        spans.append((start, start + math.prod(shapes[name]) // block * nbytes, name))
    return shapes, kinds, spans


def _data_start(header_end: int, fields: dict[str, Any]) -> int:
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {shown(alignment)} is no power of two")
    return -(-header_end // alignment) * alignment


def _check_spans(spans: list[tuple[int, int, str]], data_start: int, size: int) -> None:
    end = 0
    for start, stop, name in sorted(spans):
        if start < end:
            raise ValueError(f"{shown(name)} shares bytes with another tensor")
        if data_start + stop > size:
            raise ValueError(f"truncated: {shown(name)} ends past the file's {size:,} bytes")
        end = stop
