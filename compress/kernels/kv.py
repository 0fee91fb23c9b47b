"""How keys and values are rounded when they are cached: eight bits a number, scales known before.

A cached number is ``code * scale``. Scales are calibrated once and belong to a whole tensor or to
one head; they are exact in bfloat16 and float16, as those of weights are. Keys are rounded as they
are cached, behind the rotation of their positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.grid import storable

Numbers = Literal["int8", "fp8_e4m3"]
Granularity = Literal["tensor", "head"]
Search = Literal["none", "mse"]
LARGEST = {"int8": 127.0, "fp8_e4m3": 448.0}
DTYPES = {"int8": torch.int8, "fp8_e4m3": torch.float8_e4m3fn}
_SHRINKS = torch.linspace(1.0, 0.3, 29).tolist()  # of the range that clips nothing
_TRIED_TOKENS = 8192  # on which a search tries its candidates


@dataclass(frozen=True)
class KVScales:
    """How one block caches its keys and values."""

    numbers: Numbers
    keys: Tensor  # [1], or [KV] with one scale a head; float32, exact in bfloat16 and float16
    values: Tensor  # like keys

    def round(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What keys and values [B, KV, T, D] are once they have been cached, in their dtype."""
        return (
            dequantize(encode(keys, self.keys, self.numbers), self.keys).to(keys.dtype),
            dequantize(encode(values, self.values, self.numbers), self.values).to(values.dtype),
        )

    def on(self, device: str) -> KVScales:
        """The same, on a device."""
        return KVScales(self.numbers, self.keys.to(device), self.values.to(device))


def encode(states: Tensor, scale: Tensor, numbers: Numbers) -> Tensor:
    """Codes of keys or values: int8 from -128 to 127, or float8 e4m3; what is beyond is clipped.

    Args:
        states: [..., KV, T, D], any float.
        scale: [1] or [KV].
        numbers: what a code is.
    """
    steps = states.float() / _by_head(scale)
    if numbers == "int8":
        return steps.round_().clamp_(-128, 127).to(torch.int8)  # halves go to even
    limit = LARGEST[numbers]
    return steps.clamp_(-limit, limit).to(torch.float8_e4m3fn)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """What codes [..., KV, T, D] stand for, float32."""
    return codes.float().mul_(_by_head(scale))


def fit(states: Tensor, numbers: Numbers, granularity: Granularity, search: Search) -> Tensor:
    """Choose the scales of keys or values that calibration has shown.

    Args:
        states: [N, KV, D] of N tokens.
        numbers: what a code is.
        granularity: one scale for all heads, or one for each.
        search: none takes the range that clips nothing; mse tries shrunken ranges on at most 8,192
            tokens, evenly spaced, and keeps the one of least squared error.

    Returns:
        [1] or [KV] float32, exact in bfloat16 and float16.
    """
    largest = _reduced(states.abs(), granularity).float()
    if search == "none":
        return storable(largest / LARGEST[numbers])
    tokens = states[:: -(-len(states) // _TRIED_TOKENS)].float()
    best, found = torch.full_like(largest, torch.inf), torch.ones_like(largest)
    for scale in _candidates(largest, numbers):
        error = _error(tokens, scale, numbers, granularity)
        found = torch.where(error < best, scale, found)
        best = torch.minimum(error, best)
    return found


def relative_error(states: Tensor, scale: Tensor, numbers: Numbers) -> float:
    """Squared error of rounding keys or values [N, KV, D], over their squares."""
    missed = squares = 0.0
    for part in states.split(_TRIED_TOKENS):
        exact = part.float().transpose(0, 1)
        rounded = dequantize(encode(exact, scale, numbers), scale)
        missed += float((rounded - exact).double().square().sum())
        squares += float(exact.double().square().sum())
    return missed / squares if squares else 0.0


def _candidates(largest: Tensor, numbers: Numbers) -> Iterator[Tensor]:
    yield from (storable(largest * (shrink / LARGEST[numbers])) for shrink in _SHRINKS)


def _error(tokens: Tensor, scale: Tensor, numbers: Numbers, granularity: Granularity) -> Tensor:
    heads = tokens.transpose(0, 1)
    missed = dequantize(encode(heads, scale, numbers), scale).sub_(heads).double().square_()
    by_head = missed.sum((1, 2))
    return by_head if granularity == "head" else by_head.sum(0, keepdim=True)


def _reduced(magnitudes: Tensor, granularity: Granularity) -> Tensor:
    """The largest of each head [KV], or of all [1]."""
    by_head = magnitudes.amax((0, 2))
    return by_head if granularity == "head" else by_head.amax(0, keepdim=True)


def _by_head(scale: Tensor) -> Tensor:
    """Scales, shaped to meet states [..., KV, T, D]."""
    return scale.view(-1, 1, 1)
