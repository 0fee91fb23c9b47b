"""The model being compressed, lazy: the teacher's tensors and, on disk, all that has become codes.

A block is committed whole: its shard is made durable, then the journal's line that says it is
there. Nothing else holds state, so a killed run finds its student again.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from compress import storage
from compress.anatomy import Anatomy, Block, Linear
from compress.kernels.activations import Inputs, Rounds
from compress.kernels.grid import Rounded
from compress.kernels.int8 import product
from compress.kernels.kv import KVScales
from compress.kernels.pack import pack, unpack
from compress.results import KVBlock, LinearResult, from_json
from compress.surgery.walk import Weights

_UNTOUCHED: Mapping[str, Any] = {"linears": {}, "plain": []}
_SCHEME = ("bits", "group_size", "sym", "numbers", "scale_rows", "global_scale")  # of a Rounded
HEAD = -1  # the unit that holds the head, which belongs to no block


class Ledger(Protocol):
    """Where finished units are recorded; see `compress.journal.Journal`."""

    def get(self, unit: str) -> Mapping[str, Any] | None:
        """The record of a finished unit; None where it has yet to be done."""

    def add(self, unit: str, record: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Make a unit final."""


class Student:
    """Weights that start as the teacher's and are replaced block by block."""

    def __init__(
        self, teacher: Weights, folder: Path, ledger: Ledger, *, firsts: Sequence[int] = (),
        origin: Weights | None = None,
    ) -> None:  # fmt: skip
        """Keep committed blocks in `folder`, which exists, and record them in `ledger`.

        A student that missed a gate is made again, with more bits: `firsts` holds, for each time
        that this happened, the first block that changed. Those before it are taken over. One that
        begins as another model than its teacher has that as its `origin`.
        """
        self._teacher, self._folder, self._ledger = teacher, folder, ledger
        self._base = teacher if origin is None else origin
        self._dtype: torch.dtype | None = None  # of what is dense; None: as stages work on it
        self._firsts = tuple(firsts)
        self._stage, self._again = 0, True
        self._records: dict[int, Mapping[str, Any]] = {}

    def enter(self, stage: int, *, again: bool = True) -> None:
        """Begin a stage, by its place in the recipe; those before it have been gone through.

        One that more bits do not change is not gone through `again` by later attempts.
        """
        self._stage, self._again = stage, again

    def unit(self, name: str) -> str:
        """What a journal calls something that belongs to the stage at work."""
        return f"stage-{self._stage}/{name}"

    def become(self, change: Callable[[Weights], Weights]) -> None:
        """Go on from other weights than the teacher's: in another shape, or turned.

        What was committed until now is part of them, and they are what later stages hold their
        work against; only evaluation asks the teacher itself.

        Args:
            change: makes them from the student as it now is.
        """
        past = copy.copy(self)
        self._base, self._records = change(past), {}

    def settle(self) -> None:
        """Take note that no stage follows: what is dense is from now on as it will be stored.

        Stages may work on wider numbers than the teacher's; artifacts hold its dtype.
        """
        embedding = self._teacher.anatomy.embedding + ".weight"
        self._dtype = self._teacher.outside()[embedding].dtype

    def finished(self, unit: int) -> list[LinearResult] | None:
        """What an earlier run of this stage made of a block or the head, taken up again.

        None where that is yet to be done.
        """
        record = self._recorded(unit)
        if record is None:
            return None
        self._records[unit] = record
        return _results(record)

    def _recorded(self, unit: int) -> Mapping[str, Any] | None:
        """The record of the newest attempt that made a unit as it has to be now."""
        for attempt in range(self._attempt, -1, -1):
            if (record := self._ledger.get(self._key(unit, attempt))) is not None:
                return record
            if attempt and (unit == HEAD or unit >= self._firsts[attempt - 1]):
                return None
        return None

    def results(self) -> list[LinearResult]:
        """What has become of the linears of all units that are finished by now."""
        return [result for record in self._records.values() for result in _results(record)]

    @property
    def teacher(self) -> Weights:
        """What it began as."""
        return self._teacher

    @property
    def base(self) -> Weights:
        """What the stage at work began from: the teacher, or what `become` made of it."""
        return self._base

    @property
    def config(self) -> Mapping[str, Any]:
        """Its ``config.json``: the teacher's, as long as no stage gave it another shape."""
        return self._base.config

    @property
    def anatomy(self) -> Anatomy:
        """Its anatomy: rounding changes no shape, `become` may."""
        return self._base.anatomy

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block as it now is, by stored names."""
        return self._begun(index) | self._dense(index)

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors outside the blocks as they now are, by stored names."""
        return self._begun(HEAD) | self._dense(HEAD)

    def inputs(self, index: int) -> dict[str, Rounds]:
        """How linears of one block round their inputs, by name; none where none does."""
        linears = self._records.get(index, _UNTOUCHED)["linears"]
        names = [name for name, scheme in linears.items() if scheme.get("inputs")]
        found = {name: product(self._read(index, name)) for name in names}
        return {name: rounds for name, rounds in found.items() if rounds is not None}

    def cached(self, index: int) -> KVBlock | None:
        """What has become of the keys and values of one block; None where nothing has."""
        told = self._records.get(index, _UNTOUCHED).get("kv")
        return None if told is None else from_json(KVBlock, json.dumps(told))

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""
        found, names = self.cached(index), _scale_names(self.anatomy.blocks[index])
        if found is None:
            return None
        if found.granularity == "token":
            return KVScales(found.numbers, None, None)
        keys, values = storage.read_file(
            self._folder / self._records[index]["shard"], names
        ).values()
        return KVScales(found.numbers, keys, values)

    def commit(
        self,
        unit: int,
        rounded: Mapping[str, Rounded],
        results: Sequence[LinearResult],
        plain: Mapping[str, Tensor] | None = None,
        kv: tuple[KVBlock, KVScales] | None = None,
    ) -> None:
        """Make what a stage did to one block (or to the head) final and durable.

        What earlier stages made of its other linears stays.

        Args:
            unit: block index, or HEAD.
            rounded: codes by linear name (for a tied head: by the embedding's name).
            results: one record for each linear that a stage was asked for, solved or not.
            plain: tensors that stay as they are stored but got other values (a norm that a scaling
                was folded into), by full name; of the shape and dtype that they had.
            kv: what became of the keys and values of a block, and their scales; by the last stage.
        """
        before = self._records.get(unit, _UNTOUCHED)
        rounded = {name: self._read(unit, name) for name in before["linears"]} | dict(rounded)
        tensors: dict[str, Tensor] = self._plain(unit) | dict(plain or {})
        tensors = {n: t for n, t in tensors.items() if n.removesuffix(".weight") not in rounded}
        changed = sorted(tensors)
        for name, matrix in rounded.items():
            tensors[name + ".codes"] = pack(matrix.codes, matrix.bits)
            tensors[name + ".scale"], tensors[name + ".zero"] = matrix.scale, matrix.zero
            if matrix.inputs is not None and matrix.inputs.columns is not None:
                tensors[name + ".columns"] = matrix.inputs.columns
        if kv:
            names = _scale_names(self.anatomy.blocks[unit])
            pairs = zip(names, (kv[1].keys, kv[1].values), strict=True)
            tensors |= {name: scale for name, scale in pairs if scale is not None}
        shard = self._folder / f"{self._key(unit).replace('/', '-')}.safetensors"
        storage.write_file(shard, tensors)
        record = {
            "shard": shard.name,
            "linears": {
                name: {
                    "columns": m.codes.shape[1],
                    **{field: getattr(m, field) for field in _SCHEME},
                    "inputs": _told(m.inputs),
                }
                for name, m in rounded.items()
            },
            "plain": changed,
            "results": [dataclasses.asdict(result) for result in results],
            "kv": dataclasses.asdict(kv[0]) if kv else None,
            "kept": before.get("kept", {})
            | {result.name: n for result in results if (n := result.kept_weights) is not None},
        }
        self._ledger.add(self._key(unit), record, [shard])
        self._records[unit] = record

    @property
    def kept(self) -> dict[str, int]:
        """How many weights stay of every linear that was pruned, by name."""
        before = self._base.kept if isinstance(self._base, Student) else {}
        found = (record.get("kept", {}) for record in self._records.values())
        return before | {name: count for linears in found for name, count in linears.items()}

    def coded(self, unit: int) -> frozenset[str]:
        """Names of what has become codes in a block."""
        return frozenset(self._records.get(unit, _UNTOUCHED)["linears"])

    def rounded(self, name: str) -> Rounded | None:
        """The codes of one linear (or of a tied embedding), if it has become codes."""
        unit = next((u for u, record in self._records.items() if name in record["linears"]), None)
        return None if unit is None else self._read(unit, name)

    def parts(self) -> Iterator[tuple[str, Tensor | Rounded | KVScales]]:
        """Every stored tensor, outside first: plain ones by full name, codes by module name.

        Scales of keys and values go by the name of the module that attends, behind its block.
        """
        yield from self._parts(HEAD)
        for block in self.anatomy.blocks:
            yield from self._parts(block.index)
            if (scales := self.kv(block.index)) is not None:
                yield block.attention, scales

    def _parts(self, unit: int) -> Iterator[tuple[str, Tensor | Rounded]]:
        quantized = self._records.get(unit, _UNTOUCHED)["linears"]
        for name, tensor in self._begun(unit).items():
            module = name.removesuffix(".weight")
            yield (module, self._read(unit, module)) if module in quantized else (name, tensor)

    def _begun(self, unit: int) -> dict[str, Tensor]:
        """What a unit began as, with the tensors that were changed and are still plain."""
        base = self._base.outside() if unit == HEAD else self._base.block(unit)
        found = base | self._plain(unit)
        if self._dtype is None:
            return found
        return {n: t.to(self._dtype) if t.is_floating_point() else t for n, t in found.items()}

    def _dense(self, unit: int) -> dict[str, Tensor]:
        names = self._records.get(unit, _UNTOUCHED)["linears"]
        turned = {linear.name for linear in self._linears(unit) if linear.transposed}
        dense = {name: self._read(unit, name).dequantize() for name in names}
        return {n + ".weight": m.T.contiguous() if n in turned else m for n, m in dense.items()}

    def _plain(self, unit: int) -> dict[str, Tensor]:
        """The tensors of a unit that were changed and are still plain, by full name."""
        record = self._records.get(unit, _UNTOUCHED)
        if not record["plain"]:
            return {}
        return storage.read_file(self._folder / record["shard"], record["plain"])

    def _linears(self, unit: int) -> Sequence[Linear]:
        return () if unit == HEAD else self.anatomy.blocks[unit].linears

    def _read(self, unit: int, name: str) -> Rounded:
        scheme = self._records[unit]["linears"][name]
        names = [f"{name}.{part}" for part in ("codes", "scale", "zero")]
        words, scale, zero = storage.read_file(
            self._folder / self._records[unit]["shard"], names
        ).values()
        codes = unpack(words, scheme["bits"], scheme["columns"])
        fields = {field: scheme[field] for field in _SCHEME if field in scheme}
        return Rounded(codes, scale, zero, inputs=self._inputs(unit, name), **fields)

    def _inputs(self, unit: int, name: str) -> Inputs | None:
        record = self._records[unit]
        told = record["linears"][name].get("inputs")
        if told is None:
            return None
        inputs = Inputs(
            told["numbers"], told["threshold"],
            scale=told["scale"], group_size=told.get("group_size", 0),
        )  # fmt: skip
        if not told["columns"]:
            return inputs
        stored = storage.read_file(self._folder / record["shard"], [name + ".columns"])
        return dataclasses.replace(inputs, columns=stored[name + ".columns"])

    def _key(self, unit: int, attempt: int | None = None) -> str:
        number = self._attempt if attempt is None else attempt
        again = f"attempt-{number}/" if number else ""
        return again + self.unit("head" if unit == HEAD else f"block-{unit:05d}")

    @property
    def _attempt(self) -> int:
        """Which attempt the stage at work belongs to."""
        return len(self._firsts) if self._again else 0


def _told(inputs: Inputs | None) -> dict[str, Any] | None:
    """What a record says of the inputs of a linear; columns lie in the shard."""
    if inputs is None:
        return None
    return {
        "numbers": inputs.numbers,
        "threshold": inputs.threshold,
        "columns": inputs.columns is not None,
        "scale": inputs.scale,
        "group_size": inputs.group_size,
    }


def _scale_names(block: Block) -> list[str]:
    """What the scales of keys and values are called in the shard of a block."""
    return [f"{block.attention}.k_scale", f"{block.attention}.v_scale"]


def _results(record: Mapping[str, Any]) -> list[LinearResult]:
    return [from_json(LinearResult, json.dumps(fields)) for fields in record["results"]]
