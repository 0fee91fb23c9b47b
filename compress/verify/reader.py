"""Read an artifact by the bytes that docs/formats.md describes; shares no code with its writer.

safetensors is 8 bytes of little-endian length, a JSON header of that length, then the tensors' raw
bytes end to end. Layouts of other people's formats have a module each, in `OTHERS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compress.anatomy import Anatomy
from compress.errors import ArtifactError
from compress.verify import caching, floats, gguf, gptq, int8, rounding, sparse
from compress.verify.bits import unpack
from compress.verify.entry import NUMPY, Entry
from compress.verify.rounding import Rounding
from compress.verify.sparse import Masked

if TYPE_CHECKING:
    import torch

    from compress.kernels.activations import Rounds
    from compress.kernels.kv import KVScales

Expected = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]  # name → dtypes allowed, shape
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_MAX_TEXT_BYTES = 100 * 1024**2  # of a header, a config, a manifest


@dataclass(frozen=True)
class Matrix:
    """One quantized matrix [O, I] and the names of the tensors that hold it."""

    rows: int
    columns: int
    bits: int
    group_size: int
    turned: bool  # its family stores it as [I, O] when it is dense
    codes: str
    scales: str
    zeros: str | None  # None on a symmetric grid
    kind: str = "int"  # or fp8, nvfp4, mxfp4
    scale_rows: int = 1  # neighbouring rows that share a scale; 0: all
    inputs: Rounding | None = None  # how they are rounded before it multiplies


class Layout(Protocol):
    """What a module reads of one matrix that knows other numbers, or another people's format."""

    def expected(self, name: str, matrix: Matrix) -> Expected:
        """The tensors that hold it."""

    def scales(
        self, entries: Mapping[str, Entry], name: str, matrix: Matrix
    ) -> NDArray[np.float32]:
        """Its scales [O, G]."""

    def weights(
        self, entries: Mapping[str, Entry], name: str, matrix: Matrix
    ) -> NDArray[np.float32]:
        """Its weights [O, I]."""

    def problems(self, entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Iterator[str]:
        """What in its numbers no writer means."""


OTHERS: Mapping[str, Layout] = {"gptq": gptq, "gguf": gguf}


def layout_of(format: str, matrix: Matrix) -> Layout | None:
    """What reads a matrix that is not of words of integers, scales and zeros."""
    if matrix.kind == int8.KIND:
        return int8
    return OTHERS.get(format) or (floats if matrix.kind != "int" else None)


@dataclass(frozen=True, eq=False)
class Reading:
    """An artifact whose layout is as it should be; implements `surgery.walk.Weights`."""

    folder: Path
    format: str
    config: Mapping[str, Any]  # without its quantization_config
    entries: Mapping[str, Entry]
    matrices: Mapping[str, Matrix]
    anatomy: Anatomy
    cached: Literal["int8", "fp8_e4m3"] | None = None  # what cached keys and values are
    masked: Mapping[str, Masked] = field(default_factory=dict)  # weights stored with a mask

    def block(self, index: int) -> dict[str, torch.Tensor]:
        """Dense float32 tensors of one block by full name."""
        return {name: self.tensor(name) for name in self.anatomy.inside(index)}

    def outside(self) -> dict[str, torch.Tensor]:
        """Dense float32 tensors that belong to no block, by full name."""
        return {name: self.tensor(name) for name in self.anatomy.outside()}

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block that round their inputs, by name."""
        names = [linear.name for linear in self.anatomy.blocks[index].linears]
        known = {name: self.matrices[name] for name in names if name in self.matrices}
        found = {name: self._rounds(name, matrix) for name, matrix in known.items()}
        return {name: rounds for name, rounds in found.items() if rounds is not None}

    def _rounds(self, name: str, matrix: Matrix) -> Rounds | None:
        if int8.multiplies(matrix):
            weight, scale = self.dequantized(name), self.scales(name)
            return int8.product(self.entries, name, matrix, weight, scale)
        return rounding.read(self.entries, name, matrix)

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""
        from compress.kernels.kv import KVScales as Scales

        if self.cached is None:
            return None
        attention = self.anatomy.blocks[index].attention
        found = caching.scales(self.entries, attention)
        return Scales(self.cached, *found)

    def tensor(self, name: str) -> torch.Tensor:
        """One dense tensor by full name, float32, lying as its family stores it."""
        import torch

        module = name.removesuffix(".weight")
        if module in self.masked:
            weight, turned = sparse.weights(self.entries, module), self.masked[module].turned
        elif module in self.matrices:
            weight, turned = self.dequantized(module), self.matrices[module].turned
        else:
            return torch.from_numpy(self.entries[name].floats())
        return torch.from_numpy(np.ascontiguousarray(weight.T) if turned else weight)

    def dequantized(self, module: str) -> NDArray[np.float32]:
        """The weights [O, I] that a quantized matrix stands for: ``(code - zero) * scale``."""
        matrix = self.matrices[module]
        if layout := layout_of(self.format, matrix):
            return layout.weights(self.entries, module, matrix)
        scale, zero = self.scales(module)[..., None], self.zeros(module)[..., None]
        if sparse.has_codes(self.entries, module):
            zeros = np.repeat(zero[..., 0], matrix.group_size, axis=1)
            codes = sparse.codes(self.entries, module, matrix.bits, zeros)
        else:
            codes = unpack(self.entries[matrix.codes].array(), matrix.bits, matrix.columns)
        grouped = codes.reshape(matrix.rows, -1, matrix.group_size)
        weight = grouped.astype(np.float32)
        weight -= zero
        weight *= scale
        return weight.reshape(matrix.rows, matrix.columns)

    def scales(self, module: str) -> NDArray[np.float32]:
        """The scales [O, G] of a quantized matrix."""
        matrix = self.matrices[module]
        if layout := layout_of(self.format, matrix):
            return layout.scales(self.entries, module, matrix)
        return self.entries[matrix.scales].floats()

    def zeros(self, module: str) -> NDArray[np.uint8]:
        """The zeros [O, G] of a quantized matrix: packed along the rows, or all in the middle."""
        matrix = self.matrices[module]
        if matrix.zeros is None:
            shape = (matrix.rows, matrix.columns // matrix.group_size)
            return np.full(shape, 1 << (matrix.bits - 1), np.uint8)
        words = np.ascontiguousarray(self.entries[matrix.zeros].array().T)
        return unpack(words, matrix.bits, matrix.rows).T


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ArtifactError: the file is missing or too large, or holds something else, or a name twice.
    """
    try:
        with path.open("rb") as file:
            return _object(path, file.read(_MAX_TEXT_BYTES + 1))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error


def read_entries(folder: Path) -> dict[str, Entry]:
    """Every stored tensor of a folder by name, from the headers of its shards.

    Raises:
        ArtifactError: no weights, a shard that is missing or not whole, an index that says
            otherwise than the shards, or a tensor stored twice.
    """
    index = folder / _INDEX
    if not index.is_file():
        return _read_shard(folder / _SINGLE)
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not all(map(_is_shard_name, promised.values())):
        raise ArtifactError(f"{index}: weight_map does not name .safetensors files of its folder.")
    if (folder / _SINGLE).exists():
        raise ArtifactError(f"{folder}: holds both {_SINGLE} and an index of other shards.")
    found: dict[str, Entry] = {}
    for file in sorted(set(promised.values())):
        for name, entry in _read_shard(folder / file).items():
            if promised.get(name) != file:
                where = promised.get(name, "no file")
                raise ArtifactError(f"{index}: promises {name} in {where}, it lies in {file}.")
            found[name] = entry
    if lost := sorted(promised.keys() - found.keys()):
        raise ArtifactError(f"{index}: promises {lost[0]} in {promised[lost[0]]}, not found there.")
    return found


def _is_shard_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _read_shard(path: Path) -> dict[str, Entry]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            whole = length <= min(size - 8, _MAX_TEXT_BYTES)
            header = file.read(length) if whole else None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error
    if header is None:
        raise ArtifactError(f"{path}: truncated: {size:,} bytes, a header of {length:,} promised.")
    table = _object(path, header)
    table.pop("__metadata__", None)
    entries = {name: _entry(path, name, told, 8 + length) for name, told in table.items()}
    _check_tiled(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, told: Any, data: int) -> Entry:
    try:
        start, stop = (int(offset) for offset in told["data_offsets"])
        shape = tuple(int(extent) for extent in told["shape"])
        nbytes = np.dtype(NUMPY[told["dtype"]]).itemsize * math.prod(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{path}: the header's entry of {name} is malformed.") from error
    if min(shape, default=0) < 0 or stop - start != nbytes:
        raise ArtifactError(
            f"{path}: {name} is {told['dtype']} {list(shape)}, {nbytes:,} bytes, and spans "
            f"{stop - start:,}."
        )
    return Entry(path, str(told["dtype"]), shape, data + start, data + stop)


def _check_tiled(path: Path, entries: Mapping[str, Entry], end: int, size: int) -> None:
    """Check that tensors lie end to end from byte `end` on and fill the file."""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ArtifactError(f"{path}: {name} begins at byte {entry.start:,}, not at {end:,}.")
        end = entry.stop
    if end != size:
        word = "truncated" if end > size else "too long"
        raise ArtifactError(f"{path}: {word}: {size:,} bytes, its tensors end at {end:,}.")


def _object(path: Path, text: bytes) -> dict[str, Any]:
    if len(text) > _MAX_TEXT_BYTES:
        raise ArtifactError(f"{path}: more than {_MAX_TEXT_BYTES:,} bytes of JSON.")
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: holds no JSON object.")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found
