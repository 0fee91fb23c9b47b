"""Sixteen outputs at once: the inner product of the native kernels, written as LLVM vectors.

Numba compiles plain loops well, but cannot say "sixteen sums that stay in a register while the
inputs pass by". So the one loop that all the time goes into is emitted here: for each input, one
register of sixteen weights, one a row of the matrix, meets that input of up to four tokens.

There are three ways:

    floats  inputs in float32. A code becomes one without being converted: its bits are the first
            ones of 1 + code / 2^bits. Any processor.
    pairs   of bfloat16, inputs as well as numbers that are stored as such, summed in float32.
            With AVX512-BF16.
    digits  inputs as whole steps of their group, each 256 times a digit and another one, four at a
            time against codes, summed in int32: exact. With AVX512-VNNI.

What a code means beside itself, the one that stands for zero, is taken away once a group, by the
sum of the group's inputs. Floats add up in an order that does not depend on how many tokens there
are; whole numbers need none.
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
FLOATS, PAIRS, DIGITS = range(3)  # how inputs are read
ROWS = {FLOATS: (1, 2, 4), PAIRS: (1, 2, 4), DIGITS: (1, 2, 4, 8)}  # tokens that one pass serves
MOST_ROWS = 8
STEPS = 14  # bits of the steps that digits count
_HOST = binding.get_host_cpu_features()
_CHAINS = 4  # sums that do not wait for each other
_AHEAD = 128  # cache lines: what keeps one thread near the bandwidth it has
_ONE, _NAN = 0x3F800000, 0x7FC00000  # as bits of a float32
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # few bits: a multiple of the first is exact
_POLYNOMIAL = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1, 1.0, 1.0,
)  # fmt: skip
_WHOLE, _WHOLE_BITS = 1.5 * 2**23, 0x4B400000  # plus a whole number: its last bits are that

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_EIGHT, _EIGHT_FLOATS = ir.VectorType(_I32, 8), ir.VectorType(_F32, 8)


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
_DOT = ir.FunctionType(ir.VoidType(), [_I64] * 12)

Builder = Any
Value = Any


def reading(bits: int, *, plain: bool = False) -> int:
    """How kernels for so many bits read their inputs here; `plain`: as they do anywhere."""
    if plain or not _HOST.get("avx512bf16" if bits == 16 else "avx512vnni"):
        return FLOATS
    return PAIRS if bits == 16 else DIGITS


@intrinsic(prefer_literal=True)
def _dot(
    typing, codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups, share, units,
    bits, rows, reads,
):  # fmt: skip
    """The loop of `_Dot` for twelve int64, and numbers that are known now."""
    known = bits.literal_value, rows.literal_value, reads.literal_value

    def emit(context, builder, signature, given):
        _Dot(builder, given[:12], *known).emit()
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12, bits, rows, reads), emit


@cache
def kernel(bits: int, rows: int, reads: int) -> Any:
    """A compiled function that multiplies sixteen rows of a packed matrix with `rows` tokens.

    Its arguments are int64; addresses are of contiguous memory:

        codes      of [groups · share · units · words, 16] int32, `words` of them making up a unit
                   of inputs
        scales     of [groups, 16] bfloat16
        zeros      of [groups, 16] uint8, codes that mean zero
        zero_step  bytes from one group's zeros to the next one's; 0 where all share them
        x          of [rows, inputs] float32 or bfloat16; or, digits, of [inputs / 4, rows, 2, 4]
                   int8: of four inputs the higher digits, then the lower ones
        x_step     bytes from one token's inputs to the next one's, where they do not lie as digits
        sums       of [rows, groups · share]: the inputs of each part of a group added up, in
                   float32; or in int32 steps, behind which lies what a step is worth, in float32
        sums_step  numbers from one token's sums to the next one's
        out        of [rows, 16] float32, written
        groups     of inputs that have a scale
        share      parts of a group that are added up for themselves
        units      of a part, see `packed.unit`
    """

    def multiply(
        codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups, share, units
    ):
        _dot(
            codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups, share, units,
            bits, rows, reads,
        )  # fmt: skip

    with cached():
        return cfunc(types.void(*[types.int64] * 12), cache=True)(multiply)


@cache
def kernels(bits: int, reads: int) -> Any:
    """Addresses of kernels by the number of tokens, int64 [MOST_ROWS + 1]; first, the most."""
    found = {rows: kernel(bits, rows, reads).address for rows in ROWS[reads]}
    return np.array([max(found), *(found.get(rows, 0) for rows in range(1, MOST_ROWS + 1))])


@intrinsic
def dot(
    typing, address, codes, scales, zeros, zero_step, x, x_step, sums, sums_step, out, groups,
    share, units,
):  # fmt: skip
    """Call the kernel at an address with its twelve arguments."""

    def emit(context, builder, signature, given):
        builder.call(builder.inttoptr(given[0], _DOT.as_pointer()), given[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 13), emit


class _Dot:
    """Emits one inner product."""

    def __init__(
        self, builder: Builder, values: Sequence[Value], bits: int, rows: int, reads: int
    ) -> None:
        self.b, self.bits, self.rows, self.reads = builder, bits, rows, reads
        (self.codes, self.scales, self.zeros, self.zero_step, self.x, self.x_step, self.sums,
         self.sums_step, self.out, self.groups, self.share, self.units) = values  # fmt: skip
        kind = _INTS if reads == DIGITS else _FLOATS
        self.nothing = ir.Constant(kind, None)
        # Of each token, or of each of its digits: sixteen registers hold them all.
        self.chains = min(_CHAINS, 8 // rows) if reads == DIGITS else _CHAINS
        many = 2 * self.chains if reads == DIGITS else self.chains
        self.parts = [
            [cgutils.alloca_once(builder, kind) for _ in range(many)] for _ in range(rows)
        ]
        zero = ir.Constant(_FLOATS, None)
        self.totals = [cgutils.alloca_once_value(builder, zero) for _ in range(rows)]

    def emit(self) -> None:
        b = self.b
        with (
            cgutils.for_range(b, self.groups) as groups,
            cgutils.for_range(b, self.share) as share,
        ):
            index = b.add(b.mul(groups.index, self.share), share.index)
            for part in (part for parts in self.parts for part in parts):
                b.store(self.nothing, part)
            with cgutils.for_range(b, self.units) as units:
                self._unit(b.add(b.mul(index, self.units), units.index))
            self._scale(groups.index, index)
        back = 2.0**self.bits if self.reads == FLOATS and self.bits < 16 else 1.0
        for row, total in enumerate(self.totals):
            made = b.fmul(b.load(total), _each(back))
            b.store(made, self._at(self.out, _FLOATS, _I64(row)), align=4)

    def _unit(self, index: Value) -> None:
        """Multiply the inputs of one unit."""
        b, inputs, codes = self.b, unit(self.bits), 32 // self.bits
        words, met = inputs // codes, (1, 2, 4)[self.reads]
        first = b.mul(index, _I64(inputs // met))
        for word in range(words):
            which = b.add(b.mul(index, _I64(words)), _I64(word))
            self._prefetch(b.add(which, _I64(_AHEAD)))
            stored = b.load(self._at(self.codes, _INTS, which), align=4)
            for part in range(codes // met):
                number = word * codes // met + part
                self._met(b.add(first, _I64(number)), number, self._weights(stored, part))

    def _weights(self, stored: Value, part: int) -> Value:
        """What the next inputs meet, of a word of each lane."""
        if self.reads == PAIRS:
            return stored
        if self.reads == FLOATS:
            return self._weight(stored, part)
        digits = _shifted(self.b, stored, self.bits * part)
        return digits if self.bits == 8 else self.b.and_(digits, _all(_ones(self.bits) * 0x1010101))

    def _met(self, index: Value, number: int, weights: Value) -> None:
        """Add the products of the next inputs of every token."""
        b, chain = self.b, number % self.chains
        for row, parts in enumerate(self.parts):
            if self.reads == DIGITS:  # one address for all rows: there are no more registers
                first = b.mul(index, _I64(2 * self.rows))
                for digit, slot in enumerate(parts[chain :: self.chains]):
                    at = self._at(self.x, _I32, b.add(first, _I64(2 * row + digit)))
                    b.store(self._fours(b.load(slot), weights, _splat(b, b.load(at))), slot)
                continue
            x, slot = b.add(self.x, b.mul(_I64(row), self.x_step)), parts[chain]
            kind, meet = (_F32, self._floats) if self.reads == FLOATS else (_I32, self._pairs)
            value = _splat(b, b.load(self._at(x, kind, index)))
            b.store(meet(b.load(slot), weights, value), slot)

    def _floats(self, slot: Value, weights: Value, value: Value) -> Value:
        return _fma(self.b, weights, value, slot)

    def _pairs(self, slot: Value, weights: Value, value: Value) -> Value:
        b, name = self.b, "llvm.x86.avx512bf16.dpbf16ps.512"
        kind = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRED, _PAIRED])
        function = cgutils.get_or_insert_function(b.module, kind, name)
        return b.call(function, [slot, b.bitcast(weights, _PAIRED), b.bitcast(value, _PAIRED)])

    def _fours(self, slot: Value, weights: Value, value: Value) -> Value:
        b, name = self.b, "llvm.x86.avx512.vpdpbusd.512"
        kind = ir.FunctionType(_INTS, [_INTS] * 3)
        return b.call(cgutils.get_or_insert_function(b.module, kind, name), [slot, weights, value])

    def _weight(self, stored: Value, digit: int) -> Value:
        """One code of each lane as a float: 1 + code / 2^bits, or the bfloat16 that it is."""
        b, top = self.b, 23 - self.bits
        if self.bits == 16:
            moved = b.and_(stored, _all(0xFFFF0000)) if digit else b.shl(stored, _all(16))
            return b.bitcast(moved, _FLOATS)
        moved = _shifted(b, stored, place(digit, self.bits) - top)
        digits = b.and_(moved, _all(_ones(self.bits) << top))
        return b.bitcast(b.or_(digits, _all(_ONE)), _FLOATS)

    def _scale(self, group: Value, index: Value) -> None:
        """Take away what stands for zero, and add the part times its group's scales."""
        b = self.b
        halves = b.load(self._at(self.scales, _HALVES, group), align=2)
        scale = b.bitcast(b.shl(b.zext(halves, _INTS), _all(16)), _FLOATS)
        zero = self._zero(group) if self.bits < 16 else None
        for row, (parts, total) in enumerate(zip(self.parts, self.totals, strict=True)):
            which = b.add(index, b.mul(_I64(row), self.sums_step))
            found = [b.load(part) for part in parts]
            if self.reads == DIGITS:
                step = b.load(self._at(self._behind(), _F32, which))
                made = b.sitofp(self._whole(found, zero, which), _FLOATS)
                b.store(_fma(b, b.fmul(scale, _splat(b, step)), made, b.load(total)), total)
                continue
            made = _added(b.fadd, found)
            if zero is not None:
                inputs = _splat(b, b.fneg(b.load(self._at(self.sums, _F32, which))))
                made = _fma(b, zero, inputs, made)
            b.store(_fma(b, scale, made, b.load(total)), total)

    def _whole(self, found: Sequence[Value], zero: Value, which: Value) -> Value:
        """What both digits make together, as many steps."""
        b, chains = self.b, self.chains
        high, low = _added(b.add, found[:chains]), _added(b.add, found[chains:])
        steps = _splat(b, b.load(self._at(self.sums, _I32, which)))
        return b.sub(b.add(b.shl(high, _all(8)), low), b.mul(zero, steps))

    def _behind(self) -> Value:
        """Where the steps of the first token begin."""
        b = self.b
        return b.add(self.sums, b.mul(b.mul(self.groups, self.share), _I64(4)))

    def _zero(self, group: Value) -> Value:
        """What a code of zero has become."""
        b = self.b
        address = b.add(self.zeros, b.mul(group, self.zero_step))
        stored = b.zext(b.load(b.inttoptr(address, _BYTES.as_pointer()), align=1), _INTS)
        if self.reads == DIGITS:
            return stored
        return b.bitcast(
            b.or_(b.shl(stored, _all(23 - self.bits)), _all(_ONE)), _FLOATS
        )  # 1 + zero / 2^bits

    def _prefetch(self, place: Value) -> None:
        _prefetched(self.b, self._at(self.codes, _INTS, place))

    def _at(self, address: Value, kind: Any, index: Value) -> Value:
        return self.b.gep(self.b.inttoptr(address, kind.as_pointer()), [index])


@intrinsic
def round_part(typing, x, eights, out, stride, sums, steps):
    """Round a part of some inputs to whole steps, the largest to 2^13 of them or more.

    A step is a power of two: whole numbers stay what they are. A part that holds what is infinite,
    or no number, has steps that are no number.

    Args:
        typing: numba's.
        x: address of [8 · eights] float32.
        eights: how many.
        out: where the digits of the first four inputs go, see `kernel`.
        stride: bytes from there to those of the next four.
        sums: where all steps, added up, go.
        steps: where it goes what one is worth.
    """

    def emit(context, builder, signature, given):
        _Steps(builder, *given).emit()
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), emit


class _Steps:
    """Emits the rounding of one part."""

    def __init__(
        self, builder: Builder, x: Value, eights: Value, out: Value, stride: Value, *told: Value
    ) -> None:
        self.b, self.x, self.eights, self.out, self.stride = builder, x, eights, out, stride
        self.sums, self.steps = told

    def emit(self) -> None:
        b, nothing = self.b, ir.Constant(_EIGHT, None)
        largest, total = (cgutils.alloca_once_value(b, nothing) for _ in range(2))
        with cgutils.for_range(b, self.eights) as loop:
            size = b.and_(self._read(loop.index, _EIGHT), _times(0x7FFFFFFF))
            b.store(self._call("smax.v8i32", _EIGHT, size, b.load(largest)), largest)
        top = b.lshr(self._call("vector.reduce.smax.v8i32", _I32, b.load(largest)), _I32(23))
        power = self._call("smax.i32", _I32, top, _I32(STEPS))  # of two, 127 above what it is
        back = b.bitcast(b.shl(b.sub(_I32(253 + STEPS), power), _I32(23)), _F32)
        with cgutils.for_range(b, self.eights) as loop:
            exact = b.fmul(self._read(loop.index, _EIGHT_FLOATS), _splat(b, back, 8))
            moved = b.fadd(exact, ir.Constant(_EIGHT_FLOATS, [_WHOLE] * 8))  # nothing behind a one
            whole = b.sub(b.bitcast(moved, _EIGHT), _times(_WHOLE_BITS))
            b.store(b.add(whole, b.load(total)), total)
            self._write(loop.index, whole)
        self._tell(self.sums, self._call("vector.reduce.add.v8i32", _I32, b.load(total)))
        worth = b.shl(b.sub(power, _I32(STEPS - 1)), _I32(23))
        self._tell(self.steps, b.select(b.icmp_signed("<", power, _I32(255)), worth, _I32(_NAN)))

    def _write(self, index: Value, whole: Value) -> None:
        """Eight whole numbers as digits: 256 · high + low, each from -128 to 127."""
        b, kind = self.b, ir.VectorType(_I8, 8)
        low = b.trunc(whole, kind)
        high = b.trunc(b.ashr(b.add(whole, _times(128)), _times(8)), kind)
        order = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]
        mixed = b.shuffle_vector(high, low, ir.Constant(ir.VectorType(_I32, 16), order))
        fours = b.bitcast(mixed, ir.VectorType(_I64, 2))
        for half in range(2):
            place = b.add(b.mul(index, _I64(2)), _I64(half))
            address = b.add(self.out, b.mul(place, self.stride))
            pointer = b.inttoptr(address, _I64.as_pointer())
            b.store(b.extract_element(fours, _I32(half)), pointer, align=1)

    def _read(self, index: Value, kind: Any) -> Value:
        pointer = self.b.gep(self.b.inttoptr(self.x, kind.as_pointer()), [index])
        return self.b.load(pointer, align=4)

    def _tell(self, address: Value, value: Value) -> None:
        self.b.store(value, self.b.inttoptr(address, _I32.as_pointer()), align=4)

    def _call(self, name: str, kind: Any, *given: Value) -> Value:
        signature = ir.FunctionType(kind, [one.type for one in given])
        function = cgutils.get_or_insert_function(self.b.module, signature, f"llvm.{name}")
        return self.b.call(function, given)


def _all(value: int) -> Value:
    return ir.Constant(_INTS, [value] * LANES)


@intrinsic
def exponentiate(typing, place):
    """Put e^x for sixteen float32 at an address, to 1e-7 of it; beyond -87 and 88 as there.

    A power of two times a polynomial (Cephes' expf).
    """

    def emit(context, builder, signature, given):
        pointer = builder.inttoptr(given[0], _FLOATS.as_pointer())
        builder.store(_exponential(builder, builder.load(pointer, align=4)), pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def silu(typing, gates, ups, out):
    """Gate sixteen float32: put silu of one, times the other, to a third address."""

    def emit(context, builder, signature, given):
        places = [builder.inttoptr(one, _FLOATS.as_pointer()) for one in given]
        gates, ups = (builder.load(place, align=4) for place in places[:2])
        rest = _exponential(builder, builder.fneg(gates))
        made = builder.fdiv(builder.fmul(gates, ups), builder.fadd(rest, _each(1.0)))
        builder.store(made, places[2], align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


def _exponential(b: Builder, x: Value) -> Value:
    for sign, end in (("<", -87.0), (">", 88.0)):  # what is no number stays none
        x = b.select(b.fcmp_ordered(sign, x, _each(end)), _each(end), x)
    moved = _fma(b, x, _each(_LOG2_E), _each(_WHOLE))
    whole = b.fsub(moved, _each(_WHOLE))
    rest = _fma(b, whole, _each(-_LN2_HIGH), x)
    rest = _fma(b, whole, _each(-_LN2_LOW), rest)
    made = _each(_POLYNOMIAL[0])
    for factor in _POLYNOMIAL[1:]:
        made = _fma(b, made, rest, _each(factor))
    power = b.add(b.shl(b.bitcast(moved, _INTS), _all(23)), _all(_ONE))
    return b.fmul(made, b.bitcast(power, _FLOATS))


def _times(value: int) -> Value:
    return ir.Constant(_EIGHT, [value] * 8)


def _each(value: float) -> Value:
    return ir.Constant(_FLOATS, [value] * LANES)


def _ones(bits: int) -> int:
    return (1 << bits) - 1


def _shifted(b: Builder, value: Value, down: int) -> Value:
    return b.lshr(value, _all(down)) if down >= 0 else b.shl(value, _all(-down))


def _splat(b: Builder, scalar: Value, lanes: int = LANES) -> Value:
    nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = ir.Constant(ir.VectorType(_I32, lanes), None)
    return b.shuffle_vector(b.insert_element(nothing, scalar, _I32(0)), nothing, first)


def _fma(b: Builder, left: Value, right: Value, plus: Value) -> Value:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.fmuladd.v16f32")
    return b.call(function, [left, right, plus])


def _prefetched(b: Builder, pointer: Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [b.bitcast(pointer, _I8.as_pointer()), _I32(0), _I32(3), _I32(1)])


def _added(add: Callable[[Value, Value], Value], parts: Sequence[Value]) -> Value:
    while len(parts) > 1:
        parts = [add(one, other) for one, other in zip(parts[::2], parts[1::2], strict=True)]
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
