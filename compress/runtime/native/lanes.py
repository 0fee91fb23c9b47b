"""Sixteen outputs at once: the inner product of the native kernels, written as LLVM vectors.

Numba compiles plain loops well, but cannot say "sixteen sums that stay in a register while the
inputs pass by". So the one loop that all the time goes into is emitted here: for each input, one
register of sixteen weights, one a row of the matrix, meets that input of up to four tokens.

A code becomes a float without being converted: its bits are put where a float just above a power of
two has its last ones. What that adds is taken away once a group, by the sum of the group's inputs,
together with the code that means zero. There are two ways:

    floats  inputs in float32; a code makes the first bits of 1 + code / 2^bits. Any processor.
    pairs   inputs in bfloat16, two at a time, summed in float32; a code of four bits makes the last
            bits of 128 + code; one of eight is two digits, the higher of which meets 16 times the
            input. With AVX512-BF16: half the work.

Both add up in an order that does not depend on how many tokens there are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import cfunc
from numba.core import cgutils, types
from numba.extending import intrinsic

from compress.runtime.native.caching import cached
from compress.runtime.packed import LANES, place, unit

BITS = (2, 4, 8, 16)  # of a stored code; 16: bfloat16 itself
ROWS = (1, 2, 4)  # tokens that one pass over the weights serves
PAIRS = bool(binding.get_host_cpu_features().get("avx512bf16"))
_CHAINS = 4  # sums that do not wait for each other
_AHEAD = 128  # cache lines: what keeps one thread near the bandwidth it has
_ONE = 0x3F800000  # 1.0 as bits of a float32
_ABOVE = 0x43004300  # 128.0 as bits of bfloat16, twice
_ADDED = {2: 128.0, 4: 128.0, 8: 128.0 * 17}  # what pairs add to a code

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)


class _Half(ir.types.Type):  # type: ignore[misc]
    """Bfloat16, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Half)

    def __hash__(self) -> int:
        return hash(_Half)


_PAIRED = ir.VectorType(_Half(), 2 * LANES)
_BYTES, _HALVES = ir.VectorType(_I8, LANES), ir.VectorType(ir.IntType(16), LANES)
_DOT = ir.FunctionType(ir.VoidType(), [_I64] * 11)

Builder = Any
Value = Any


@intrinsic(prefer_literal=True)
def _dot(
    typing, codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups, units,
    bits, rows, pairs,
):  # fmt: skip
    """The loop of `_Dot` for eleven int64, and numbers that are known now."""
    known = bits.literal_value, rows.literal_value, bool(pairs.literal_value)

    def emit(context, builder, signature, given):
        _Dot(builder, given[:11], *known).emit()
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11, bits, rows, pairs), emit


@cache
def kernel(bits: int, rows: int, pairs: int) -> Any:
    """A compiled function that multiplies sixteen rows of a packed matrix with `rows` tokens.

    Its arguments are int64; addresses are of contiguous memory:

        codes      of [groups · units · words, 16] int32, `words` of them making up a unit of inputs
        scales     of [groups, 16] bfloat16
        zeros      of [groups, 16] uint8, codes that mean zero
        zero_step  bytes from one group's zeros to the next one's; 0 where all share them
        x          of [rows, inputs] float32, or for pairs bfloat16; where codes of eight bits are
                   to meet pairs, behind each token's inputs 16 times the same
        x_step     bytes from one token's inputs to the next one's
        sums       of [rows, groups] float32, each group's inputs added up
        sums_step  floats from one token's sums to the next one's
        out        of [rows, 16] float32, written
        groups     how many
        units      of a group, see `packed.unit`
    """

    def multiply(codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups, units):
        _dot(
            codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups, units,
            bits, rows, pairs,
        )  # fmt: skip

    with cached():
        return cfunc(types.void(*[types.int64] * 11), cache=True)(multiply)


@cache
def kernels(bits: int, *, pairs: bool) -> Any:
    """Addresses of the kernels for matrices of so many bits, by the number of tokens; int64 [5]."""
    found = {rows: kernel(bits, rows, int(pairs)).address for rows in ROWS}
    return np.array([found.get(rows, 0) for rows in range(max(ROWS) + 1)])


@intrinsic
def dot(
    typing, address, codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups,
    units,
):  # fmt: skip
    """Call the kernel at an address with its eleven arguments."""

    def emit(context, builder, signature, given):
        builder.call(builder.inttoptr(given[0], _DOT.as_pointer()), given[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), emit


class _Dot:
    """Emits one inner product."""

    def __init__(
        self, builder: Builder, values: Sequence[Value], bits: int, rows: int, pairs: bool
    ) -> None:
        self.b, self.bits, self.rows, self.pairs = builder, bits, rows, pairs
        (self.codes, self.scales, self.zeros, self.zero_step, self.x, self.x_step, self.sums,
         self.sums_step, self.out, self.groups, self.units) = values  # fmt: skip
        zero = ir.Constant(_FLOATS, None)
        self.parts = [
            [cgutils.alloca_once(builder, _FLOATS) for _ in range(_CHAINS)] for _ in range(rows)
        ]
        self.totals = [cgutils.alloca_once_value(builder, zero) for _ in range(rows)]

    def emit(self) -> None:
        b = self.b
        with cgutils.for_range(b, self.groups) as groups:
            for part in (part for parts in self.parts for part in parts):
                b.store(ir.Constant(_FLOATS, None), part)
            with cgutils.for_range(b, self.units) as units:
                self._unit(b.add(b.mul(groups.index, self.units), units.index))
            self._scale(groups.index)
        back = 1.0 if self.bits == 16 or self.pairs else 2.0**self.bits
        for row, total in enumerate(self.totals):
            made = b.fmul(b.load(total), _each(back))
            b.store(made, self._at(self.out, _FLOATS, _I64(row)), align=4)

    def _unit(self, index: Value) -> None:
        """Multiply the inputs of one unit."""
        b, inputs, codes = self.b, unit(self.bits), 32 // self.bits
        words = inputs // codes
        first = b.mul(index, _I64(inputs))
        for word in range(words):
            which = b.add(b.mul(index, _I64(words)), _I64(word))
            self._prefetch(b.add(which, _I64(_AHEAD)))
            stored = b.load(self._at(self.codes, _INTS, which), align=4)
            if self.pairs:
                for pair in range(codes // 2):
                    number = word * codes // 2 + pair
                    self._pair(b.add(b.lshr(first, _I64(1)), _I64(number)), number, stored, pair)
            else:
                for digit in range(codes):
                    number = word * codes + digit
                    self._input(b.add(first, _I64(number)), number, self._weight(stored, digit))

    def _input(self, index: Value, number: int, weight: Value) -> None:
        """Add the products of one input of every token."""
        b = self.b
        for row, parts in enumerate(self.parts):
            x = b.add(self.x, b.mul(_I64(row), self.x_step))
            slot = parts[number % _CHAINS]
            value = _splat(b, b.load(self._at(x, _F32, index)))
            b.store(_fma(b, weight, value, b.load(slot)), slot)

    def _weight(self, stored: Value, digit: int) -> Value:
        """One code of each lane as a float: 1 + code / 2^bits, or the bfloat16 that it is."""
        b, top = self.b, 23 - self.bits
        if self.bits == 16:
            moved = b.and_(stored, _all(0xFFFF0000)) if digit else b.shl(stored, _all(16))
            return b.bitcast(moved, _FLOATS)
        moved = _shifted(b, stored, place(digit, self.bits) - top)
        digits = b.and_(moved, _all(_ones(self.bits) << top))
        return b.bitcast(b.or_(digits, _all(_ONE)), _FLOATS)

    def _pair(self, index: Value, number: int, stored: Value, pair: int) -> None:
        """Add the products of two inputs of every token."""
        if self.bits == 16:
            self._paired(self.x, index, number, stored)
        elif self.bits == 8:  # two digits; 16 times the inputs lie behind the inputs
            b = self.b
            behind = b.mul(b.mul(self.groups, self.units), _I64(2 * unit(8)))
            self._paired(self.x, index, number, self._two(stored, 8 * pair, 4))
            high = self._two(stored, 8 * pair + 4, 4)
            self._paired(b.add(self.x, behind), index, number + 1, high)
        else:
            self._paired(self.x, index, number, self._two(stored, self.bits * pair, self.bits))

    def _two(self, stored: Value, shift: int, bits: int) -> Value:
        """Two digits of each lane as bfloat16: 128 + digit."""
        b = self.b
        digits = b.and_(_shifted(b, stored, shift), _all(_ones(bits) * 0x10001))
        return b.or_(digits, _all(_ABOVE))

    def _paired(self, x: Value, index: Value, number: int, weights: Value) -> None:
        b = self.b
        kind = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRED, _PAIRED])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = cgutils.get_or_insert_function(b.module, kind, name)
        for row, parts in enumerate(self.parts):
            inputs = b.load(self._at(b.add(x, b.mul(_I64(row), self.x_step)), _I32, index))
            slot = parts[number % _CHAINS]
            both = [b.bitcast(one, _PAIRED) for one in (weights, _splat(b, inputs))]
            b.store(b.call(function, [b.load(slot), *both]), slot)

    def _scale(self, group: Value) -> None:
        """Take away what stands for zero, and add the group times its scales."""
        b = self.b
        halves = b.load(self._at(self.scales, _HALVES, group), align=2)
        scale = b.bitcast(b.shl(b.zext(halves, _INTS), _all(16)), _FLOATS)
        zero = self._zero(group) if self.bits < 16 else None
        for row, (parts, total) in enumerate(zip(self.parts, self.totals, strict=True)):
            found = _added(b, [b.load(part) for part in parts])
            if zero is not None:
                which = b.add(group, b.mul(_I64(row), self.sums_step))
                inputs = _splat(b, b.fneg(b.load(self._at(self.sums, _F32, which))))
                found = _fma(b, zero, inputs, found)
            b.store(_fma(b, scale, found, b.load(total)), total)

    def _zero(self, group: Value) -> Value:
        """What a code of zero has become."""
        b = self.b
        address = b.add(self.zeros, b.mul(group, self.zero_step))
        stored = b.zext(b.load(b.inttoptr(address, _BYTES.as_pointer()), align=1), _INTS)
        if self.pairs:
            return b.fadd(b.uitofp(stored, _FLOATS), _each(_ADDED[self.bits]))
        return self._weight(stored, 0)

    def _prefetch(self, place: Value) -> None:
        _prefetched(self.b, self._at(self.codes, _INTS, place))

    def _at(self, address: Value, kind: Any, index: Value) -> Value:
        return self.b.gep(self.b.inttoptr(address, kind.as_pointer()), [index])


def _all(value: int) -> Value:
    return ir.Constant(_INTS, [value] * LANES)


def _each(value: float) -> Value:
    return ir.Constant(_FLOATS, [value] * LANES)


def _ones(bits: int) -> int:
    return (1 << bits) - 1


def _shifted(b: Builder, value: Value, down: int) -> Value:
    return b.lshr(value, _all(down)) if down >= 0 else b.shl(value, _all(-down))


def _splat(b: Builder, scalar: Value) -> Value:
    nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    return b.shuffle_vector(b.insert_element(nothing, scalar, _I32(0)), nothing, _all(0))


def _fma(b: Builder, left: Value, right: Value, plus: Value) -> Value:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.fmuladd.v16f32")
    return b.call(function, [left, right, plus])


def _prefetched(b: Builder, pointer: Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [b.bitcast(pointer, _I8.as_pointer()), _I32(0), _I32(3), _I32(1)])


def _added(b: Builder, parts: list[Value]) -> Value:
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [b.fadd(one, other) for one, other in pairs]
    return parts[0]


def _on_memory(emit: Callable[[Builder, Value], Value]) -> Any:
    """An intrinsic on the address of an int64 that several threads see."""

    def typed(typing, address):
        def code(context, builder, signature, values):
            return emit(builder, builder.inttoptr(values[0], _I64.as_pointer()))

        return types.int64(types.int64), code

    return intrinsic(typed)


def _add_one(builder: Builder, pointer: Value) -> Value:
    return builder.atomic_rmw("add", pointer, _I64(1), "seq_cst")


def _read(builder: Builder, pointer: Value) -> Value:
    value = builder.load_atomic(pointer, "seq_cst", 8)
    if platform.machine().lower() in {"x86_64", "amd64"}:  # what a waiting loop is to say
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), []
        )
    return value


def _settled(builder: Builder, pointer: Value) -> Value:
    return builder.atomic_rmw("add", pointer, _I64(0), "seq_cst")


take = _on_memory(_add_one)  # the value before; no two threads get the same
settled = _on_memory(_settled)  # the value, once all that was read before it has been read
look = _on_memory(_read)  # the value now, once what was written before it can be seen


@intrinsic
def prefetch(typing, address):
    """Have the cache line at an address brought near."""

    def emit(context, builder, signature, given):
        _prefetched(builder, builder.inttoptr(given[0], _I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def change(typing, address, old, new):
    """Set what several threads see to `new` where it is still `old`; returns whether it was."""

    def emit(context, builder, signature, given):
        pointer = builder.inttoptr(given[0], _I64.as_pointer())
        found = builder.cmpxchg(pointer, given[1], given[2], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


def _pointer_to(kind: Any) -> Any:
    """An intrinsic that makes an address (int64) a pointer, for `numba.carray`."""

    def typed(typing, address):
        def code(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), code

    return intrinsic(typed)


floats = _pointer_to(types.float32)
halves = _pointer_to(types.uint16)
octets = _pointer_to(types.uint8)
numbers = _pointer_to(types.int64)
