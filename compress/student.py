"""The model being compressed, lazy: the teacher's tensors and, on disk, all that has become codes.

A block is committed whole: its shard is made durable, then the record that says it is there.
Nothing else holds state.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress import storage
from compress.anatomy import Anatomy, Linear
from compress.kernels.grid import Rounded
from compress.kernels.pack import pack, unpack
from compress.results import LinearResult
from compress.surgery.walk import Weights

HEAD = -1  # the unit that holds the head, which belongs to no block


class Student:
    """Weights that start as the teacher's and are replaced block by block."""

    def __init__(self, teacher: Weights, folder: Path) -> None:
        """Keep committed blocks in `folder`, which exists."""
        self._teacher, self._folder = teacher, folder
        self._records: dict[int, dict[str, Any]] = {}

    @property
    def config(self) -> Mapping[str, Any]:
        """The teacher's ``config.json``."""
        return self._teacher.config

    @property
    def anatomy(self) -> Anatomy:
        """The teacher's anatomy: rounding changes no shape."""
        return self._teacher.anatomy

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block as it now is, by stored names."""
        return self._teacher.block(index) | self._dense(index)

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors outside the blocks as they now are, by stored names."""
        return self._teacher.outside() | self._dense(HEAD)

    def commit(
        self, unit: int, rounded: Mapping[str, Rounded], results: Sequence[LinearResult]
    ) -> None:
        """Make what a stage did to one block (or to the head) final and durable.

        What earlier stages made of its other linears stays.

        Args:
            unit: block index, or HEAD.
            rounded: codes by linear name (for a tied head: by the embedding's name).
            results: one record for each linear that a stage was asked for, solved or not.
        """
        before = self._records.get(unit, {"linears": {}, "results": []})
        rounded = {name: self._read(unit, name) for name in before["linears"]} | dict(rounded)
        tensors: dict[str, Tensor] = {}
        for name, matrix in rounded.items():
            tensors[name + ".codes"] = pack(matrix.codes, matrix.bits)
            tensors[name + ".scale"], tensors[name + ".zero"] = matrix.scale, matrix.zero
        storage.write_file(self._shard(unit), tensors)
        record = {
            "linears": {
                name: {
                    "columns": m.codes.shape[1],
                    "bits": m.bits,
                    "group_size": m.group_size,
                    "sym": m.sym,
                }
                for name, m in rounded.items()
            },
            "results": before["results"] + [dataclasses.asdict(result) for result in results],
        }
        storage.write_text(self._shard(unit).with_suffix(".json"), json.dumps(record) + "\n")
        self._records[unit] = record

    def rounded(self, name: str) -> Rounded | None:
        """The codes of one linear (or of a tied embedding), if it has become codes."""
        unit = next((u for u, record in self._records.items() if name in record["linears"]), None)
        return None if unit is None else self._read(unit, name)

    def parts(self) -> Iterator[tuple[str, Tensor | Rounded]]:
        """Every stored tensor, outside first: plain ones by full name, codes by module name."""
        yield from self._parts(HEAD, self._teacher.outside())
        for block in self.anatomy.blocks:
            yield from self._parts(block.index, self._teacher.block(block.index))

    def _parts(
        self, unit: int, plain: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor | Rounded]]:
        quantized = self._records.get(unit, {"linears": {}})["linears"]
        for name, tensor in plain.items():
            module = name.removesuffix(".weight")
            yield (module, self._read(unit, module)) if module in quantized else (name, tensor)

    def _dense(self, unit: int) -> dict[str, Tensor]:
        names = self._records.get(unit, {"linears": {}})["linears"]
        turned = {linear.name for linear in self._linears(unit) if linear.transposed}
        dense = {name: self._read(unit, name).dequantize() for name in names}
        return {n + ".weight": m.T.contiguous() if n in turned else m for n, m in dense.items()}

    def _linears(self, unit: int) -> Sequence[Linear]:
        return () if unit == HEAD else self.anatomy.blocks[unit].linears

    def _read(self, unit: int, name: str) -> Rounded:
        scheme = self._records[unit]["linears"][name]
        names = [f"{name}.{part}" for part in ("codes", "scale", "zero")]
        words, scale, zero = storage.read_file(self._shard(unit), names).values()
        codes = unpack(words, scheme["bits"], scheme["columns"])
        return Rounded(codes, scale, zero, scheme["bits"], scheme["group_size"], scheme["sym"])

    def _shard(self, unit: int) -> Path:
        name = "head" if unit == HEAD else f"block-{unit:05d}"
        return self._folder / f"{name}.safetensors"
