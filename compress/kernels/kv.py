"""How keys and values are rounded when they are cached: eight bits a number.

A cached number is ``code * step``. Steps are calibrated once and belong to a whole tensor, to a
head or to a channel; or each token's head gets its own when it is cached. All are exact in bfloat16
and float16, as scales of weights are. Keys are rounded as they are cached, behind the rotation of
their positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.grid import storable

Numbers = Literal["int8", "fp8_e4m3"]
Granularity = Literal["tensor", "head", "channel", "token"]
Search = Literal["none", "mse"]
LARGEST = {"int8": 127.0, "fp8_e4m3": 448.0}
DTYPES = {"int8": torch.int8, "fp8_e4m3": torch.float8_e4m3fn}
TRIED = tuple(1.0 - step / 40 for step in range(29))  # shares of the range that clips nothing
TRIED_TOKENS = 8192  # on which a search tries them


@dataclass(frozen=True)
class KVScales:
    """How one block caches its keys and values.

    A scale is [1], [KV, 1] with one for each head, or [KV, D] with one for each channel of a head;
    float32, exact in bfloat16 and float16. None: each token's head gets its own.
    """

    numbers: Numbers
    keys: Tensor | None
    values: Tensor | None

    @property
    def granularity(self) -> Granularity:
        """What shares a scale."""
        if self.keys is None:
            return "token"
        if self.keys.dim() == 1:
            return "tensor"
        return "head" if self.keys.shape[1] == 1 else "channel"

    def round(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What keys and values [B, KV, T, D] are once they have been cached, in their dtype."""
        return (
            rounded(keys, self.keys, self.numbers).to(keys.dtype),
            rounded(values, self.values, self.numbers).to(values.dtype),
        )

    def on(self, device: str) -> KVScales:
        """The same, on a device."""
        if self.keys is None or self.values is None:
            return self
        return KVScales(self.numbers, self.keys.to(device), self.values.to(device))


def steps(states: Tensor, scale: Tensor | None, numbers: Numbers) -> Tensor:
    """What one code is worth in keys or values [..., KV, T, D], in a shape that meets them.

    Args:
        states: any float.
        scale: as in `KVScales`; None makes one for the head of each token, that clips nothing.
        numbers: what a code is.
    """
    if scale is None:
        return storable(states.abs().amax(-1, keepdim=True).float() / LARGEST[numbers])
    return scale.view(1, 1, 1) if scale.dim() == 1 else scale[:, None, :]


def encode(states: Tensor, step: Tensor, numbers: Numbers) -> Tensor:
    """Codes: int8 from -128 to 127, or float8 e4m3, as near to states / step as there are."""
    exact = states.float() / step
    if numbers == "int8":
        return exact.round_().clamp_(-128, 127).to(torch.int8)  # halves go to even
    limit = LARGEST[numbers]
    return exact.clamp_(-limit, limit).to(torch.float8_e4m3fn)


def decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes as numbers of another dtype, exactly; a new tensor."""
    if codes.dtype is torch.int8 or codes.device.type != "cpu":
        return codes.to(dtype)
    # torch converts e4m3 one by one on a CPU. Its bits lie where bfloat16 has them, four further
    # down, and its exponents count from 120 less: a third of the time.
    bits = codes.view(torch.int8).to(torch.int16)
    sign = (bits << 8).bitwise_and_(-0x8000)
    return (
        (bits << 4)
        .bitwise_and_(0x07F0)
        .bitwise_or_(sign)
        .view(torch.bfloat16)
        .mul_(2.0**120)
        .to(dtype)
    )


def rounded(states: Tensor, scale: Tensor | None, numbers: Numbers) -> Tensor:
    """What keys or values [..., KV, T, D] are once they have been cached, float32."""
    step = steps(states, scale, numbers)
    return encode(states, step, numbers).float().mul_(step)


def fit(
    states: Tensor,
    numbers: Numbers,
    *,
    granularity: Granularity,
    search: Search,
    rotated: bool = False,
) -> Tensor:
    """Choose the scales of keys or values that calibration has shown.

    Args:
        states: [N, KV, D] of N tokens.
        numbers: what a code is.
        granularity: what shares a scale; for "token" there is none to choose.
        search: none takes the range that clips nothing; mse tries shrunken ranges on at most 8,192
            tokens, evenly spaced, and keeps the one of least squared error.
        rotated: channels i and i + D/2 are turned into each other by the position, further than
            calibration has shown; they share a scale, whose range is the length of both.

    Returns:
        A scale as in `KVScales`.
    """
    paired = rotated and granularity == "channel"
    largest = _range(states, granularity, paired)
    if search == "none":
        return storable(largest / LARGEST[numbers])
    heads = states[:: -(-len(states) // TRIED_TOKENS)].float().transpose(0, 1)
    best, found = torch.full_like(largest, torch.inf, dtype=torch.float64), largest
    for scale in _candidates(largest, numbers):
        error = _error(heads, scale, numbers, paired=paired)
        found = torch.where(error < best, scale, found)
        best = torch.minimum(error, best)
    return found


def relative_error(states: Tensor, scale: Tensor | None, numbers: Numbers) -> float:
    """Squared error of rounding keys or values [N, KV, D], over their squares."""
    missed = squares = 0.0
    for part in states.split(TRIED_TOKENS):
        exact = part.float().transpose(0, 1)
        missed += float((rounded(exact, scale, numbers) - exact).double().square().sum())
        squares += float(exact.double().square().sum())
    return missed / squares if squares else 0.0


def _candidates(largest: Tensor, numbers: Numbers) -> Iterator[Tensor]:
    yield from (storable(largest * (share / LARGEST[numbers])) for share in TRIED)


def _range(states: Tensor, granularity: Granularity, paired: bool) -> Tensor:
    """The largest magnitude of what shares a scale, in the shape of that scale."""
    parts = states.split(TRIED_TOKENS)
    if paired:
        pairs = (part.float().unflatten(-1, (2, -1)).square().sum(-2).amax(0) for part in parts)
        return torch.stack(list(pairs)).amax(0).sqrt().repeat(1, 2)
    by_channel = torch.stack([part.abs().amax(0).float() for part in parts]).amax(0)
    if granularity == "tensor":
        return by_channel.amax().view(1)
    return by_channel.amax(1, keepdim=True) if granularity == "head" else by_channel


def _error(heads: Tensor, scale: Tensor, numbers: Numbers, *, paired: bool) -> Tensor:
    """Squared error of [KV, N, D] in the shape of the scale, float64."""
    missed = rounded(heads, scale, numbers).sub_(heads).square_()
    by_channel = missed.sum(1, dtype=torch.float64)
    if paired:
        pairs: Tensor = by_channel.unflatten(-1, (2, -1))
        return pairs.sum(-2).repeat(1, 2)
    if scale.dim() == 1:
        return by_channel.sum().view(1)
    return by_channel if scale.shape[1] > 1 else by_channel.sum(1, keepdim=True)
