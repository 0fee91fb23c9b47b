"""What a forward keeps for the way back, and so how many windows a model can learn from at once."""

from __future__ import annotations

from compress.anatomy import Anatomy


def training_bytes(anatomy: Anatomy, tokens: int, item_bytes: int, *, recompute: bool) -> int:
    """What a forward keeps for the way back, about: what every linear reads and gives.

    Args:
        anatomy: of the model.
        tokens: in the forward.
        item_bytes: of an activation: 2 in bfloat16, 4 in float32.
        recompute: only what enters each block is kept, and one block at a time.
    """
    kept = [sum(x.in_features + x.out_features for x in b.linears) for b in anatomy.blocks]
    norms = 4 * 4 * anatomy.hidden_size  # float32, two norms: in and out
    blocks = [tokens * (item_bytes * width + norms) for width in kept]
    if recompute:
        return max(blocks) + 4 * tokens * anatomy.hidden_size * len(blocks)
    return sum(blocks)


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
