"""What forwards keep, and so how many windows a model can learn from, or write, at once."""

from __future__ import annotations

from compress.anatomy import Anatomy, Block

_PAGE_ROWS = 32, 128  # the fewest and the most that are written in step
_PAGE_BYTES = 2**30
_LOGITS = 4 * 4  # bytes a word: float32, and three copies while one is drawn


def writing_rows(anatomy: Anatomy, seq_len: int) -> int:
    """How many rows of tokens a model writes in step: more take less time each, and more memory."""
    least, most = _PAGE_ROWS
    fitting = _PAGE_BYTES // writing_bytes(anatomy, 1, seq_len)
    return max(least, min(most, fitting // least * least))


def writing_bytes(anatomy: Anatomy, rows: int, seq_len: int) -> int:
    """What writing so many rows holds beside weights: keys and values, and logits."""
    return rows * (kv_bytes(anatomy, seq_len) + _LOGITS * anatomy.vocab_size)


def kv_bytes(anatomy: Anatomy, tokens: int) -> int:
    """Keys and values of a whole model, two bytes each."""
    return 2 * 2 * tokens * sum(map(_key_width, anatomy.blocks))


def _key_width(block: Block) -> int:
    """Width of a token's keys; a third of what one linear makes of queries, keys and values."""
    linear = next(x for role in ("k", "qkv") for x in block.linears if x.role == role)
    return linear.out_features // (3 if linear.role == "qkv" else 1)


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
