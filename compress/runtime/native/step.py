"""One step of the whole model, walked by every thread at once.

A thread takes the next few rows of a matrix that nobody has taken; where the next part needs all of
this one, it waits until all is made, whoever made it. So a thread that the machine has put aside
holds nobody up unless it was in the middle of something: it finds all taken, and catches up.
Nothing in between goes through Python: at one token of a small model, that is where the time would
go.

    x ─ norm ─▶ q k v ┊▶ cache ┊▶ attention ┊▶ x + o ┊ norm ─▶ silu(gate) · up ┊▶ x + down ┊
                      ┊ all of it has to be made before anything behind it is begun

What is taken and what is made is counted in the lower 24 bits of a count, with the number of the
step above them, so that counts of an older step are never mistaken for those of this one.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types

from compress.runtime.native.attention import attend, cache, parts
from compress.runtime.native.lanes import (
    change,
    floats,
    look,
    numbers,
    settled,
    silu,
    take,
)
from compress.runtime.native.layout import ASLEEP, GO, LINE, OPERATIONS, OVER
from compress.runtime.native.products import (
    SPARE,
    lanes_of,
    prepared,
    put,
    ready_for,
    sixteen,
    tile,
)
from compress.runtime.native.vectors import normalize
from compress.runtime.packed import LANES

_CHUNK = 3  # blocks of sixteen rows that a thread takes at once
_PATIENCE = 4096  # looks at the others before a thread offers its processor to them
STEP = 24  # the bit of a count at which the number of the step begins
_LOW = np.int64((1 << STEP) - 1)

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True, cache=True)
def begin(control, threads):
    """Tell all threads that a step is laid out; returns as bits who sleeps."""
    address = control.ctypes.data
    take(address + 8 * GO)
    asleep = 0
    for thread in range(1, threads):
        asleep |= look(address + 8 * (ASLEEP + LINE * thread)) << thread
    return asleep


@njit(nogil=True, fastmath=True, cache=True)
def serve(thread, state, matrices, blocks, control, patience):
    """Walk every step that is begun, until none was for `patience` looks.

    Returns:
        Whether there may be more; False once the team has ended.
    """
    address = control.ctypes.data
    asleep, walked = ASLEEP + LINE * thread, ASLEEP + LINE * thread + 1
    control[asleep] = 0
    idle = 0
    while True:
        go = look(address + 8 * GO)
        if go < 0:
            return False
        if go != control[walked]:
            walk(thread, go, state, matrices, blocks, control)
            control[walked] = go
            idle = 0
        elif control[asleep]:
            return True
        elif idle < patience:
            idle += 1
        else:
            take(address + 8 * asleep)  # and look once more: a step may have begun meanwhile


@njit(inline="always")  # else it would be compiled twice, alone and for `serve`
def walk(thread, step, state, matrices, blocks, control):
    """Walk one step: from embeddings in `x` to `logits`.

    Args:
        thread: which one this is.
        step: the number of the step.
        state: records of `layout.STATE`: that of the step, then a copy for each thread.
        matrices: records of `layout.MATRIX`.
        blocks: records of `layout.BLOCK`.
        control: see `begin`.
    """
    state[thread + 1] = state[0]
    s = state[thread + 1]
    if settled(control.ctypes.data + 8 * OVER) >= step:
        return  # whoever comes so late may have copied half of the next one
    normed = s.own + thread * s.own_bytes
    rest = normed + 4 * (s.rows + SPARE) * s.hidden
    for index in range(len(blocks)):
        block, first = blocks[index], s.counters + 16 * LINE * OPERATIONS * index
        o, down = matrices[block.o], matrices[block.down]
        _norm_rows(s, block.attention_norm, normed)
        _project(s, matrices, block, normed, rest, step, first)
        _cache_all(s, block, step, first + 16 * LINE)
        _attend_all(s, block, rest, step, first + 32 * LINE)
        _add_product(s, o, s.mixed, o.inputs, rest, step, first + 48 * LINE)
        _norm_rows(s, block.mlp_norm, normed)
        gate, up = matrices[block.gate], matrices[block.up]
        _gated(s, gate, up, normed, rest, step, first + 64 * LINE)
        _add_product(s, down, s.mlp, s.mlp_width, rest, step, first + 80 * LINE)
    last = s.counters + 16 * LINE * OPERATIONS * len(blocks)
    _head(s, matrices[s.head], normed, rest, step, last)
    if thread == 0:
        take(control.ctypes.data + 8 * OVER)


@njit(inline="always")
def _chunks(blocks):
    """How often threads take some of so many blocks of sixteen rows."""
    return (blocks + _CHUNK - 1) // _CHUNK


@njit(nogil=True)
def _take(counts, step, total):
    """What to do next of `total` things; -1: nothing is left, or the step is over."""
    while True:
        seen = look(counts)
        if seen >> STEP > step or (seen >> STEP == step and seen & _LOW >= total) or total == 0:
            return np.int64(-1)
        new = seen + 1 if seen >> STEP == step else (step << STEP) + 1
        if change(counts, seen, new):
            return (new & _LOW) - 1


@njit(nogil=True)
def _made(counts, step):
    """Count one thing as made."""
    while True:
        seen = look(counts + 8 * LINE)
        new = seen + 1 if seen >> STEP == step else (step << STEP) + 1
        if change(counts + 8 * LINE, seen, new):
            return


@njit(nogil=True)
def _await(counts, step, total):
    """Wait until all of an operation is made."""
    looks = 0
    while total > 0:
        seen = look(counts + 8 * LINE)
        if seen >> STEP > step or (seen >> STEP == step and seen & _LOW == total):
            return
        looks += 1
        if looks % _PATIENCE == 0:
            sched_yield()


@njit(nogil=True, fastmath=True)
def _norm_rows(s, gain, out):
    width = s.hidden
    for row in range(s.rows):
        source = carray(floats(s.x + 4 * row * width), (width,))
        target = carray(floats(out + 4 * row * width), (width,))
        normalize(source, carray(floats(gain), (width,)), s.hidden_floor, target)


@njit(nogil=True, fastmath=True)
def _project(s, matrices, block, source, rest, step, counts):
    """Queries, keys and values, as one operation."""
    q, k, v = matrices[block.q], matrices[block.k], matrices[block.v]
    rows, width = s.rows, s.hidden
    for_q = prepared(q, source, width, rows, rest)
    for_k = ready_for(k, q, for_q, source, width, rows)
    for_v = ready_for(v, k, for_k, source, width, rows)
    out = for_v[4]
    total = q.blocks + k.blocks + v.blocks
    chunks = _chunks(total)
    chunk = _take(counts, step, chunks)
    while chunk >= 0:
        for first in range(0, rows, tile(for_q)):
            many = min(tile(for_q), rows - first)
            for at in range(chunk * _CHUNK, min(chunk * _CHUNK + _CHUNK, total)):
                matrix, ready, column = q, for_q, at
                target, wide = s.q, s.q_width
                if at >= q.blocks + k.blocks:
                    matrix, ready, column = v, for_v, at - q.blocks - k.blocks
                    target, wide = s.v, s.v_width
                elif at >= q.blocks:
                    matrix, ready, column = k, for_k, at - q.blocks
                    target, wide = s.k, s.k_width
                sixteen(matrix, column, ready, first, many, out)
                put(out, many, target + 4 * first * wide, wide, column)
        _made(counts, step)
        chunk = _take(counts, step, chunks)
    _await(counts, step, chunks)


@njit(nogil=True, fastmath=True)
def _cache_all(s, block, step, counts):
    """Keys and values of all tokens: a request may read what another one caches in this step."""
    tasks = s.rows * block.kv_heads
    task = _take(counts, step, tasks)
    while task >= 0:
        cache(s, block, task // block.kv_heads, task % block.kv_heads)
        _made(counts, step)
        task = _take(counts, step, tasks)
    _await(counts, step, tasks)


@njit(nogil=True, fastmath=True)
def _attend_all(s, block, rest, step, counts):
    tasks = s.parts * block.kv_heads
    task = _take(counts, step, tasks)
    while task >= 0:
        starts = carray(numbers(s.starts), (s.requests + 1,))
        request, part = 0, task // block.kv_heads
        while part >= parts(starts[request + 1] - starts[request]):
            part -= parts(starts[request + 1] - starts[request])
            request += 1
        attend(s, block, request, part, task % block.kv_heads, rest)
        _made(counts, step)
        task = _take(counts, step, tasks)
    _await(counts, step, tasks)


@njit(nogil=True, fastmath=True)
def _add_product(s, matrix, source, wide, rest, step, counts):
    """Add what a matrix makes of `source` to x."""
    rows, width = s.rows, s.hidden
    ready = prepared(matrix, source, wide, rows, rest)
    out = ready[4]
    chunks = _chunks(matrix.blocks)
    chunk = _take(counts, step, chunks)
    while chunk >= 0:
        for first in range(0, rows, tile(ready)):
            many = min(tile(ready), rows - first)
            for at in range(chunk * _CHUNK, min(chunk * _CHUNK + _CHUNK, matrix.blocks)):
                sixteen(matrix, at, ready, first, many, out)
                for row in range(many):
                    made, x = lanes_of(out, row, LANES, 0), lanes_of(s.x, first + row, width, at)
                    for lane in range(LANES):
                        x[lane] += made[lane]
        _made(counts, step)
        chunk = _take(counts, step, chunks)
    _await(counts, step, chunks)


@njit(nogil=True, fastmath=True)
def _gated(s, gate, up, source, rest, step, counts):
    """silu(gate) · up: whoever makes sixteen of one makes the same sixteen of the other."""
    rows, width = s.rows, s.hidden
    for_gate = prepared(gate, source, width, rows, rest)
    for_up = ready_for(up, gate, for_gate, source, width, rows)
    out = for_up[4]
    other = out + 4 * (rows + SPARE) * LANES
    chunks = _chunks(gate.blocks)
    chunk = _take(counts, step, chunks)
    while chunk >= 0:
        for first in range(0, rows, tile(for_gate)):
            many = min(tile(for_gate), rows - first)
            for at in range(chunk * _CHUNK, min(chunk * _CHUNK + _CHUNK, gate.blocks)):
                sixteen(gate, at, for_gate, first, many, out)
                sixteen(up, at, for_up, first, many, other)
                for row in range(many):
                    place = s.mlp + 4 * ((first + row) * s.mlp_width + at * LANES)
                    silu(out + 4 * row * LANES, other + 4 * row * LANES, place)
        _made(counts, step)
        chunk = _take(counts, step, chunks)
    _await(counts, step, chunks)


@njit(nogil=True, fastmath=True)
def _head(s, matrix, source, rest, step, counts):
    """Logits of the wanted rows."""
    rows, width = s.wanted, s.hidden
    wanted = carray(numbers(s.wanted_rows), (rows,))
    gain = carray(floats(s.final_norm), (width,))
    for at in range(rows):
        x = carray(floats(s.x + 4 * wanted[at] * width), (width,))
        normalize(x, gain, s.hidden_floor, carray(floats(source + 4 * at * width), (width,)))
    ready = prepared(matrix, source, width, rows, rest)
    out = ready[4]
    chunks = _chunks(matrix.blocks) if rows > 0 else 0
    chunk = _take(counts, step, chunks)
    while chunk >= 0:
        for first in range(0, rows, tile(ready)):
            many = min(tile(ready), rows - first)
            for at in range(chunk * _CHUNK, min(chunk * _CHUNK + _CHUNK, matrix.blocks)):
                sixteen(matrix, at, ready, first, many, out)
                put(out, many, s.logits + 4 * first * s.logits_width, s.logits_width, at)
        _made(counts, step)
        chunk = _take(counts, step, chunks)
    _await(counts, step, chunks)
