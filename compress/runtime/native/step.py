"""One step of the whole model, walked by every thread at once.

A thread takes the next few rows of a matrix that nobody has taken, so a slow one holds nobody up;
where the next part needs all of this one, threads wait for each other. Nothing in between goes
through Python: at one token of a small model, that is where the time would go.

    x ─ norm ─▶ q k v ┊▶ cache ┊▶ attention ┊▶ x + o ┊ norm ─▶ silu(gate) · up ┊▶ x + down ┊
                      ┊ threads wait for each other
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types

from compress.runtime.native.attention import attend, cache
from compress.runtime.native.lanes import floats, look, numbers, take
from compress.runtime.native.layout import ARRIVED, ASLEEP, BASE, GO, LINE, OPERATIONS
from compress.runtime.native.products import SPARE, lanes_of, prepared, put, sixteen
from compress.runtime.native.vectors import exponential, normalize
from compress.runtime.packed import LANES

_CHUNK = 4  # blocks of sixteen rows that a thread takes at once
_PATIENCE = 4096  # looks at the others before a thread offers its processor to them
_ONE = np.float32(1.0)

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True, cache=True)
def begin(control, threads):
    """Tell all threads that a step is laid out; returns the sleeping ones as bits."""
    address = control.ctypes.data
    take(address + 8 * GO)
    asleep = 0
    for thread in range(1, threads):
        asleep |= look(address + 8 * (ASLEEP + LINE * thread)) << thread
    return asleep


@njit(nogil=True, cache=True)
def serve(thread, threads, state, matrices, blocks, control, patience):
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
            walk(thread, threads, state, matrices, blocks)
            control[walked] = go
            idle = 0
        elif control[asleep]:
            return True
        elif idle < patience:
            idle += 1
        else:
            take(address + 8 * asleep)  # and look once more: a step may have begun meanwhile


@njit(nogil=True, fastmath=True, cache=True)
def walk(thread, threads, state, matrices, blocks):
    """Walk one step: from embeddings in `x` to `logits`.

    Args:
        thread: which one this is.
        threads: how many walk.
        state: the one record of `layout.STATE`.
        matrices: records of `layout.MATRIX`.
        blocks: records of `layout.BLOCK`.
    """
    s = state[0]
    met = carray(numbers(s.control), (BASE + 1,))[BASE]
    normed = s.own + thread * s.own_bytes
    rest = normed + 4 * (s.rows + SPARE) * s.hidden
    for index in range(len(blocks)):
        block, operation = blocks[index], index * OPERATIONS
        _norm_rows(s, block.attention_norm, normed)
        _project(s, matrices, block, normed, rest, operation)
        met = _meet(s, threads, met)
        _cache_all(s, block, operation + 1)
        met = _meet(s, threads, met)
        _attend_all(s, block, rest, operation + 2)
        met = _meet(s, threads, met)
        _add_product(s, matrices[block.o], s.mixed, matrices[block.o].inputs, rest, operation + 3)
        met = _meet(s, threads, met)
        _norm_rows(s, block.mlp_norm, normed)
        _gated(s, matrices[block.gate], matrices[block.up], normed, rest, operation + 4)
        met = _meet(s, threads, met)
        _add_product(s, matrices[block.down], s.mlp, s.mlp_width, rest, operation + 5)
        met = _meet(s, threads, met)
    _head(s, matrices[s.head], normed, rest, len(blocks) * OPERATIONS)
    _meet(s, threads, met)


@njit(nogil=True)
def _meet(s, threads, met):
    """Wait until every thread has come here; returns the arrivals so far."""
    address = s.control + 8 * ARRIVED
    take(address)
    looks = 0
    while look(address) < met + threads:
        looks += 1
        if looks % _PATIENCE == 0:
            sched_yield()
    return met + threads


@njit(nogil=True)
def _next(s, operation):
    """What a thread may take next of an operation."""
    return take(s.counters + 8 * LINE * operation)


@njit(nogil=True, fastmath=True)
def _norm_rows(s, gain, out):
    width = s.hidden
    for row in range(s.rows):
        source = carray(floats(s.x + 4 * row * width), (width,))
        target = carray(floats(out + 4 * row * width), (width,))
        normalize(source, carray(floats(gain), (width,)), s.hidden_floor, target)


@njit(nogil=True, fastmath=True)
def _project(s, matrices, block, source, rest, operation):
    """Queries, keys and values, as one operation."""
    q, k, v = matrices[block.q], matrices[block.k], matrices[block.v]
    rows, width = s.rows, s.hidden
    for_q = prepared(q, source, width, rows, rest)
    for_k = prepared(k, source, width, rows, for_q[3])
    for_v = prepared(v, source, width, rows, for_k[3])
    out = for_v[3]
    total = q.blocks + k.blocks + v.blocks
    first = _next(s, operation) * _CHUNK
    while first < total:
        for at in range(first, min(first + _CHUNK, total)):
            if at < q.blocks:
                sixteen(q, at, for_q, rows, out)
                put(out, rows, s.q, s.q_width, at)
            elif at < q.blocks + k.blocks:
                sixteen(k, at - q.blocks, for_k, rows, out)
                put(out, rows, s.k, s.k_width, at - q.blocks)
            else:
                sixteen(v, at - q.blocks - k.blocks, for_v, rows, out)
                put(out, rows, s.v, s.v_width, at - q.blocks - k.blocks)
        first = _next(s, operation) * _CHUNK


@njit(nogil=True, fastmath=True)
def _cache_all(s, block, operation):
    """Keys and values of all tokens: a request may read what another one caches in this step."""
    task = _next(s, operation)
    while task < s.rows * block.kv_heads:
        cache(s, block, task // block.kv_heads, task % block.kv_heads)
        task = _next(s, operation)


@njit(nogil=True, fastmath=True)
def _attend_all(s, block, rest, operation):
    task = _next(s, operation)
    while task < s.requests * block.kv_heads:
        attend(s, block, task // block.kv_heads, task % block.kv_heads, rest)
        task = _next(s, operation)


@njit(nogil=True, fastmath=True)
def _add_product(s, matrix, source, step, rest, operation):
    """Add what a matrix makes of `source` to x."""
    rows, width = s.rows, s.hidden
    ready = prepared(matrix, source, step, rows, rest)
    out = ready[3]
    first = _next(s, operation) * _CHUNK
    while first < matrix.blocks:
        for at in range(first, min(first + _CHUNK, matrix.blocks)):
            sixteen(matrix, at, ready, rows, out)
            for row in range(rows):
                made, x = lanes_of(out, row, LANES, 0), lanes_of(s.x, row, width, at)
                for lane in range(LANES):
                    x[lane] += made[lane]
        first = _next(s, operation) * _CHUNK


@njit(nogil=True, fastmath=True)
def _gated(s, gate, up, source, rest, operation):
    """silu(gate) · up: whoever makes sixteen of one makes the same sixteen of the other."""
    rows, width = s.rows, s.hidden
    for_gate = prepared(gate, source, width, rows, rest)
    for_up = prepared(up, source, width, rows, for_gate[3])
    out = for_up[3]
    other = out + 4 * (rows + SPARE) * LANES
    first = _next(s, operation) * _CHUNK
    while first < gate.blocks:
        for at in range(first, min(first + _CHUNK, gate.blocks)):
            sixteen(gate, at, for_gate, rows, out)
            sixteen(up, at, for_up, rows, other)
            for row in range(rows):
                gates, ups = lanes_of(out, row, LANES, 0), lanes_of(other, row, LANES, 0)
                mlp = lanes_of(s.mlp, row, s.mlp_width, at)
                for lane in range(LANES):
                    turned = gates[lane] / (_ONE + exponential(-gates[lane]))
                    mlp[lane] = turned * ups[lane]
        first = _next(s, operation) * _CHUNK


@njit(nogil=True, fastmath=True)
def _head(s, matrix, source, rest, operation):
    """Logits of the wanted rows."""
    rows, width = s.wanted, s.hidden
    wanted = carray(numbers(s.wanted_rows), (rows,))
    gain = carray(floats(s.final_norm), (width,))
    for at in range(rows):
        x = carray(floats(s.x + 4 * wanted[at] * width), (width,))
        normalize(x, gain, s.hidden_floor, carray(floats(source + 4 * at * width), (width,)))
    ready = prepared(matrix, source, width, rows, rest)
    out = ready[3]
    first = _next(s, operation) * _CHUNK
    while rows > 0 and first < matrix.blocks:
        for at in range(first, min(first + _CHUNK, matrix.blocks)):
            sixteen(matrix, at, ready, rows, out)
            put(out, rows, s.logits, s.logits_width, at)
        first = _next(s, operation) * _CHUNK
