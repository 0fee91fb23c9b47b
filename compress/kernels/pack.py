"""Dense bit packing of codes into 32-bit words, row by row.

Element i of a row occupies bits ``[i * bits, (i + 1) * bits)`` of that row, counted from the lowest
bit of its first word; an element may straddle two words (3 bits). Rows start on a word, so that one
row can be read by itself. On disk words are little-endian, hence the bytes of a row in file order
are its bits in order. compressed-tensors packs the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad as _pad

WIDTHS = (2, 3, 4, 8)
_LANES = 8  # eight codes fill exactly `bits` bytes, at every width


def words(columns: int, bits: int) -> int:
    """Number of 32-bit words that hold `columns` codes of `bits` bits."""
    return -(-columns * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into words.

    Args:
        codes: [O, I] uint8, each below ``2**bits``.
        bits: 2, 3, 4 or 8.

    Returns:
        [O, ceil(I * bits / 32)] int32; the bits after a row's last code are zero.

    Raises:
        ValueError: a width that is not packed, or a code that does not fit it.
    """
    _check_width(bits)
    rows, columns = codes.shape
    if codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"code {int(codes.max())} does not fit {bits} bits")
    lanes = _pad(codes, (0, -columns % 32)).reshape(rows, -1, _LANES)
    packed = lanes.new_zeros(rows, lanes.shape[1], bits)
    for lane in range(_LANES):
        byte, shift = divmod(lane * bits, 8)
        packed[..., byte] |= lanes[..., lane] << shift  # uint8: what passes the byte is dropped …
        if shift + bits > 8:
            packed[..., byte + 1] |= lanes[..., lane] >> (8 - shift)  # … and lands in the next
    row_words = packed.view(rows, -1).view(torch.int32)
    return row_words[:, : words(columns, bits)].contiguous()


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `pack`: any rows of [O, W] int32 words give their codes [O, columns] uint8.

    Raises:
        ValueError: a width that is not packed, or words that cannot hold exactly `columns` codes.
    """
    _check_width(bits)
    rows, found = packed.shape
    if found != words(columns, bits):
        raise ValueError(
            f"{columns} codes of {bits} bits fill {words(columns, bits)} words, not {found}"
        )
    if 8 % bits == 0:  # bytes hold whole codes
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        codes = packed.contiguous().view(torch.uint8)[..., None] >> shifts & (1 << bits) - 1
        return codes.flatten(1)[:, :columns].contiguous()
    whole = _pad(packed, (0, -found % bits))  # `bits` words hold 32 codes
    row_bytes = whole.contiguous().view(torch.uint8).view(rows, -1, bits)
    codes = row_bytes.new_empty(rows, row_bytes.shape[1], _LANES)
    for lane in range(_LANES):
        byte, shift = divmod(lane * bits, 8)
        code = row_bytes[..., byte] >> shift
        if shift + bits > 8:
            code |= row_bytes[..., byte + 1] << (8 - shift)
        codes[..., lane] = code & ((1 << bits) - 1)
    return codes.view(rows, -1)[:, :columns].contiguous()


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask [O, I] bool, I a multiple of 32, into words [O, I / 32] int32, a bit each."""
    rows, columns = mask.shape
    values = 1 << torch.arange(_LANES, dtype=torch.uint8, device=mask.device)
    row_bytes = (mask.view(rows, columns // _LANES, _LANES) * values).sum(2, dtype=torch.uint8)
    return row_bytes.view(torch.int32)


def unpack_bits(packed: Tensor) -> Tensor:
    """Undo `pack_bits`: words [O, W] int32 give their mask [O, 32 W] bool."""
    values = 1 << torch.arange(_LANES, dtype=torch.uint8, device=packed.device)
    row_bytes = packed.contiguous().view(torch.uint8)
    return (row_bytes[..., None] & values).bool().flatten(1)


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"bits={bits}; codes are packed at {', '.join(map(str, WIDTHS))} bits")
