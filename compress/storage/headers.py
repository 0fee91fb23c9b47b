"""Safetensors headers, read and checked without a library.

Format: https://huggingface.co/docs/safetensors: an 8-byte length, a JSON header, raw bytes. The
checks are those of the format's own library, and some on sizes, so that a header can be believed
before any tensor is mapped: the tensors fill the data without a gap and without sharing a byte.
"""

from __future__ import annotations

import math
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import ModelError, shown
from compress.storage.text import parse_json

ITEM_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
# A tensor takes some 120 bytes of header: room for 140,000 of them. The format allows 100 MiB,
# which as JSON of empty lists would take 2 GB to read.
MAX_HEADER_BYTES = 16 * 1024**2
_MAX_RANK = 8
_MAX_EXTENT = 2**48
_AGAIN = "Fetch the file again."


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is, from a header alone."""

    file: Path
    dtype: str  # as safetensors spells it: F32, BF16, I32, …
    shape: tuple[int, ...]
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Raises:
        ModelError: the file is missing, truncated, or its header contradicts its size.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: not an ordinary file. Give the file itself.")
        with path.open("rb") as file:
            length = _length(path, file.read(8), status.st_size)
            header = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_header(path, header, status.st_size - 8 - length)


def parse_header(path: Path, header: bytes, data_bytes: int) -> dict[str, TensorInfo]:
    """Check the JSON header of a safetensors file against the size of what follows it.

    Args:
        path: where the tensors lie; messages name it.
        header: the JSON, without the 8 bytes before it.
        data_bytes: how much follows it.

    Raises:
        ModelError: it is not a header, or contradicts `data_bytes` or itself.
    """
    try:
        entries = parse_json(header)
    except ValueError as error:
        raise ModelError(
            f"{path}: its safetensors header is not JSON ({error}). {_AGAIN}"
        ) from error
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: its safetensors header is not a JSON object. {_AGAIN}")
    found: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        if name != "__metadata__":
            found[name], span = _tensor(path, name, entry)
            spans.append((*span, name))
    _check_spans(path, sorted(spans), data_bytes)
    return found


def _length(path: Path, head: bytes, size: int) -> int:
    """The length of the header that the first 8 bytes of a file promise."""
    length = int(struct.unpack("<Q", head)[0]) if len(head) == 8 else size
    if length > size - 8:
        raise ModelError(
            f"{path}: not a whole safetensors file ({size:,} bytes; its first 8 bytes promise a "
            f"header of {length:,}). Fetch it again."
        )
    if length > MAX_HEADER_BYTES:
        raise ModelError(
            f"{path}: its header takes {length:,} bytes; {MAX_HEADER_BYTES:,} are read at most, "
            "enough for 140,000 tensors. Save it in several shards."
        )
    return length


def _tensor(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """One entry of a header, and the bytes it spans."""
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        malformed = type(dtype) is not str or type(shape) is not list or len(shape) > _MAX_RANK
    except (KeyError, TypeError, ValueError):
        malformed = True
    if malformed or not all(
        type(number) is int and 0 <= number <= _MAX_EXTENT for number in (*shape, start, stop)
    ):
        raise ModelError(f"{path}: header entry {shown(name)!r} is malformed. {_AGAIN}")
    if dtype not in ITEM_BITS or stop - start != math.prod(shape) * ITEM_BITS[dtype] // 8:
        raise ModelError(
            f"{path}: {shown(name)} says {shown(dtype)} {shape} but spans {stop - start:,} bytes. "
            f"{_AGAIN}"
        )
    return TensorInfo(path, dtype, tuple(shape), stop - start), (start, stop)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Tensors in order of their bytes must follow one another from the first byte to the last."""
    end = 0
    for start, stop, name in spans:
        if stop > data_bytes:
            raise ModelError(
                f"{path}: truncated: {shown(name)} ends at byte {stop:,} of {data_bytes:,} data "
                f"bytes. {_AGAIN}"
            )
        if start != end:
            what = "shares bytes with another tensor" if start < end else "leaves a gap before it"
            raise ModelError(
                f"{path}: {shown(name)} begins at byte {start:,}, the tensor before it ends at "
                f"{end:,}: it {what}. {_AGAIN}"
            )
        end = stop
    if end != data_bytes:
        raise ModelError(f"{path}: {data_bytes - end:,} bytes belong to no tensor. {_AGAIN}")
