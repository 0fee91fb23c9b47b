"""What a forward keeps for the way back, and so how many windows a model can learn from at once."""

from __future__ import annotations

from compress.anatomy import Anatomy, Block


def training_bytes(anatomy: Anatomy, tokens: int, item_bytes: int, *, recompute: bool) -> int:
    """What a forward keeps for the way back, about: what every linear reads and gives.

    Args:
        anatomy: of the model.
        tokens: in the forward.
        item_bytes: of an activation: 2 in bfloat16, 4 in float32.
        recompute: only what enters each block is kept, and one block at a time.
    """
    blocks = [block_bytes(anatomy, block, tokens, item_bytes) for block in anatomy.blocks]
    if recompute:
        return max(blocks) + 4 * tokens * anatomy.hidden_size * len(blocks)
    return sum(blocks)


def block_bytes(anatomy: Anatomy, block: Block, tokens: int, item_bytes: int) -> int:
    """What the forward of one block keeps for the way back; see `training_bytes`."""
    width = sum(linear.in_features + linear.out_features for linear in block.linears)
    norms = 4 * 4 * anatomy.hidden_size  # float32, two norms: in and out
    return tokens * (item_bytes * width + norms)


def training_pass(
    anatomy: Anatomy, windows: int, seq_len: int, item_bytes: int, room_bytes: int
) -> tuple[int, bool]:
    """How many of a step's windows go through a model at once, and whether blocks are recomputed.

    As many as fit `room_bytes`; where not even one does, blocks are computed again on the way back.
    """
    for recompute in (False, True):
        one = training_bytes(anatomy, seq_len, item_bytes, recompute=recompute)
        if one <= room_bytes:
            return min(windows, room_bytes // one), recompute
    return 1, True
