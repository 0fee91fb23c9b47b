"""Attention of one request's new tokens over its pages, for the query heads that share a key head.

Pages lie as matrices do: keys with the tokens side by side, values with the channels. So scores and
sums are inner products of `lanes.dot` over what is cached, read where it lies, once for all new
tokens and query heads; the softmax is summed up as pages come (Milakov and Gimelshein,
arXiv:1805.02867).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.native.lanes import (
    dot,
    exponentiate,
    floats,
    halves,
    numbers,
    octets,
    prefetch,
)
from compress.runtime.native.products import SPARE, kernel_for, passes, ready, row_bytes
from compress.runtime.native.vectors import from_half, normalize, rotate, to_half
from compress.runtime.packed import LANES

_BLOCKS = PAGE_TOKENS // LANES  # of the keys of a page
PART = 16  # tokens of a request that attend together
_NOTHING = np.float32(-1e30)  # below every score; its exponential counts as that of -87
_SMALLEST, _LARGEST = np.float32(2.0**-17), np.float32(65280.0)  # of a step: see `grid.storable`
_ONE = np.float32(1.0)


@njit(inline="always")
def parts(tokens):
    """In how many parts so many new tokens of a request attend."""
    return (tokens + PART - 1) // PART


def scratch_floats(group: int, width: int) -> int:
    """Floats that `attend` needs for so many query heads a key head."""
    return (PART * group + SPARE) * (3 * width + 2 * PAGE_TOKENS + 6)


@njit(nogil=True, fastmath=True)
def cache(s, block, row, head):
    """Turn a key head of one token, and put it and its value where they are kept.

    Args:
        s: the record of the step.
        block: the record of the block.
        row: the token.
        head: the key head.
    """
    width = s.head_dim
    key = carray(floats(s.k + 4 * (row * s.k_width + head * width)), (width,))
    value = carray(floats(s.v + 4 * (row * s.v_width + head * width)), (width,))
    _turn(s, block, row, block.heads + head, key)
    slot = carray(numbers(s.slots), (s.rows,))[row]
    place, token = slot // PAGE_TOKENS * block.kv_heads + head, slot % PAGE_TOKENS
    page_bytes = PAGE_TOKENS * width * s.cache_bits // 8
    keys, values = block.keys + place * page_bytes, block.values + place * page_bytes
    if s.cache_bits == 16:
        for i in range(width):
            carray(halves(keys), (1 << 30,))[_key_place(i, token, width, 2)] = to_half(key[i])
            carray(halves(values), (1 << 30,))[_value_place(i, token, 2)] = to_half(value[i])
        return
    key_step = _step(block.key_steps, place * PAGE_TOKENS + token, key)
    value_step = _step(block.value_steps, place * PAGE_TOKENS + token, value)
    key_scales = carray(floats(block.key_scales + 4 * head * width), (width,))
    value_scales = carray(floats(block.value_scales + 4 * head * width), (width,))
    for i in range(width):
        code = _code(key[i], key_step * key_scales[i])
        carray(octets(keys), (1 << 30,))[_key_place(i, token, width, 4)] = code
        code = _code(value[i], value_step * value_scales[i])
        carray(octets(values), (1 << 30,))[_value_place(i, token, 4)] = code


@njit(inline="always")
def _key_place(i, token, width, each):
    """Where channel i of a token lies in a page [2, D / each, 16, each] of keys."""
    words = width // each
    word = (token // LANES * words + i // each) * LANES + token % LANES
    return word * each + i % each


@njit(inline="always")
def _value_place(i, token, each):
    """Where channel i of a token lies in a page [D / 16, 32 / each, 16, each] of values."""
    words = PAGE_TOKENS // each
    word = (i // LANES * words + token // each) * LANES + i % LANES
    return word * each + token % each


@njit(nogil=True, fastmath=True)
def _step(address, place, vector):
    """The step of a token's vector, stored, where tokens have their own; else 1."""
    if address == 0:
        return _ONE
    largest = np.float32(0.0)
    for i in range(len(vector)):
        largest = max(largest, abs(vector[i]))
    bits = to_half(min(max(largest / np.float32(127.0), _SMALLEST), _LARGEST))
    carray(halves(address), (1 << 30,))[place] = bits
    return from_half(bits)


@njit(inline="always")
def _code(value, step):
    exact = np.rint(value / step)
    return np.uint8(np.int32(max(min(exact, np.float32(127.0)), np.float32(-128.0))) + 128)


@njit(nogil=True, fastmath=True)
def _turn(s, block, row, head, vector):
    """Norm a head where the model does so, and turn it to its position."""
    width = s.head_dim
    if block.qk_norm != 0:
        gain = carray(floats(block.qk_norm + 4 * head * width), (width,))
        normalize(vector, gain, s.head_floor, vector)
    half = width // 2
    cosine = carray(floats(s.cosine + 4 * row * half), (half,))
    rotate(vector, cosine, carray(floats(s.sine + 4 * row * half), (half,)))


@njit(nogil=True, fastmath=True)
def attend(s, block, request, part, head, scratch):
    """Let the query heads of one key head read what has been cached.

    Args:
        s: the record of the step.
        block: the record of the block.
        request: its number in the step.
        part: which `PART` of its new tokens.
        head: the key head.
        scratch: address of `scratch_floats` floats of this thread.
    """
    starts = carray(numbers(s.starts), (s.requests + 1,))
    length = carray(numbers(s.lengths), (s.requests,))[request]
    table = carray(numbers(s.tables + 8 * request * s.table_width), (s.table_width,))
    first = starts[request] + part * PART
    stop = min(first + PART, starts[request + 1])
    total = length - (starts[request + 1] - stop)  # tokens that the last of these may see
    seen = total - (stop - first)
    width, group = s.head_dim, block.heads // block.kv_heads
    many = (stop - first) * group
    space = many + SPARE

    sums = carray(floats(scratch), (space, width))
    added = scratch + 4 * space * width  # what one page adds to sums, [D / 16, many, 16]
    queries = added + 4 * space * width  # as kernels read them, and their sums
    scores = queries + 4 * space * (width + 2)  # [2, many, 16], and room for one query's
    weights = scores + 4 * space * PAGE_TOKENS  # as kernels read them, and their sums
    # the highest score so far, and the total
    notes = carray(floats(weights + 4 * space * (PAGE_TOKENS + 2)), (2, space))
    for at in range(many):
        out = sums[at]  # not in use yet
        _query(s, block, first + at // group, head, head * group + at % group, out)
        ready(s.cache_reads, s.cache_kernels, out.ctypes.data, width, 1, queries, at, many)
        out[:] = 0
        notes[0, at], notes[1, at] = _NOTHING, 0

    back = block.window if block.window > 0 else total
    number = max(0, seen + 1 - back) // PAGE_TOKENS
    while number * PAGE_TOKENS < total:
        place, start = table[number] * block.kv_heads + head, number * PAGE_TOKENS
        if start + PAGE_TOKENS < total:
            _bring(s, block, table[number + 1] * block.kv_heads + head)
        _score(s, block, place, queries, many, scores)
        for at in range(many):
            last = seen + at // group - start  # of the page, what this token may see
            begin, end = max(0, last + 1 - back), min(PAGE_TOKENS, last + 1)
            _share(s, block, place, at, begin, end, many, scores, weights, notes, sums)
        _sum(s, block, place, weights, many, added, sums)
        number += 1

    for at in range(many):
        row, one = first + at // group, head * group + at % group
        out = carray(floats(s.mixed + 4 * (row * block.heads + one) * width), (width,))
        scales = carray(floats(block.value_scales + 4 * head * width), (width,))
        for i in range(width):
            out[i] = sums[at, i] / notes[1, at] * scales[i]


@njit(nogil=True)
def _bring(s, block, place):
    """Have the next page brought near while this one is read: pages lie in no order."""
    page_bytes = PAGE_TOKENS * s.head_dim * s.cache_bits // 8
    for line in range(0, page_bytes, 64):
        prefetch(block.keys + place * page_bytes + line)
        prefetch(block.values + place * page_bytes + line)


@njit(nogil=True, fastmath=True)
def _query(s, block, row, head, one, out):
    """A query head, turned, and scaled by 1/√D and by what codes of its keys are worth."""
    width = s.head_dim
    stored = carray(floats(s.q + 4 * (row * s.q_width + one * width)), (width,))
    out[:] = stored
    _turn(s, block, row, one, out)
    scales = carray(floats(block.key_scales + 4 * head * width), (width,))
    back = _ONE / np.sqrt(np.float32(width))
    for i in range(width):
        out[i] *= back * scales[i]


@njit(nogil=True, fastmath=True)
def _score(s, block, place, queries, many, scores):
    """Scores of all queries for a page, [2, many, 16]."""
    width, each = s.head_dim, row_bytes(s.cache_reads, s.head_dim)
    bytes_of = LANES * width * s.cache_bits // 8
    for half in range(_BLOCKS):
        steps = s.ones
        if block.key_steps != 0:
            steps = block.key_steps + 2 * (place * PAGE_TOKENS + half * LANES)
        at = 0
        while at < many:
            rows = passes(s.cache_kernels, many - at)
            dot(
                kernel_for(s.cache_kernels, rows),
                block.keys + (place * _BLOCKS + half) * bytes_of, steps, s.middle, np.int64(0),
                queries + at * each, each,
                queries + each * (many + SPARE) + 8 * at, np.int64(2),
                scores + 4 * (half * many + at) * LANES,
                np.int64(1), np.int64(1), width // 8,
            )  # fmt: skip
            at += rows


@njit(nogil=True, fastmath=True)
def _share(s, block, place, at, begin, end, many, scores, weights, notes, sums):
    """Turn a query's scores for a page into weights, relative to its highest score so far."""
    place_of = scores + 4 * _BLOCKS * many * LANES
    weight = carray(floats(place_of), (PAGE_TOKENS + LANES,))
    top = notes[0, at]
    for half in range(_BLOCKS):
        found = carray(floats(scores + 4 * (half * many + at) * LANES), (LANES,))
        for lane in range(LANES):
            token = half * LANES + lane
            weight[token] = found[lane] if begin <= token and token < end else _NOTHING
            top = max(top, weight[token])
    for token in range(PAGE_TOKENS):
        weight[token] -= top
    for token in range(PAGE_TOKENS, PAGE_TOKENS + LANES):
        weight[token] = notes[0, at] - top
    for half in range(_BLOCKS + 1):
        exponentiate(place_of + 4 * half * LANES)
    kept, total = weight[PAGE_TOKENS], np.float32(0.0)
    for token in range(PAGE_TOKENS):
        total += weight[token]
    notes[0, at], notes[1, at] = top, notes[1, at] * kept + total
    for i in range(s.head_dim):
        sums[at, i] *= kept
    if block.value_steps != 0:
        steps = carray(halves(block.value_steps + 2 * place * PAGE_TOKENS), (PAGE_TOKENS,))
        for token in range(PAGE_TOKENS):
            weight[token] *= from_half(steps[token])
    ready(s.cache_reads, s.cache_kernels, weight.ctypes.data, PAGE_TOKENS, 1, weights, at, many)


@njit(nogil=True, fastmath=True)
def _sum(s, block, place, weights, many, part, sums):
    """Add the values of a page by their weights."""
    width, each = s.head_dim, row_bytes(s.cache_reads, PAGE_TOKENS)
    blocks, bytes_of = width // LANES, LANES * PAGE_TOKENS * s.cache_bits // 8
    for one in range(blocks):
        at = 0
        while at < many:
            rows = passes(s.cache_kernels, many - at)
            dot(
                kernel_for(s.cache_kernels, rows),
                block.values + (place * blocks + one) * bytes_of, s.ones, s.middle, np.int64(0),
                weights + at * each, each,
                weights + each * (many + SPARE) + 8 * at, np.int64(2),
                part + 4 * (one * many + at) * LANES,
                np.int64(1), np.int64(1), np.int64(PAGE_TOKENS // 8),
            )  # fmt: skip
            at += rows
    for one in range(blocks):
        for at in range(many):
            added = carray(floats(part + 4 * (one * many + at) * LANES), (LANES,))
            total = carray(floats(sums.ctypes.data + 4 * (at * width + one * LANES)), (LANES,))
            for lane in range(LANES):
                total[lane] += added[lane]
