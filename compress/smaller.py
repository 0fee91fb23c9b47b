"""A smaller model of a teacher's family: which sizes it may have, and what it takes of the teacher.

Pure data, as `compress.shape`: blocks, heads and channels by their numbers, told to a config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compress.anatomy import Anatomy
from compress.shape import Kept, Remains, Shape, can_cut, cut_config, shape_of

_PARTS = {  # a size by its name in a config, and what `shape` calls it
    "num_hidden_layers": "blocks", "hidden_size": "hidden", "intermediate_size": "channels",
    "num_attention_heads": "heads", "num_key_value_heads": "kv_heads",
}  # fmt: skip
_CUT_AS = {"blocks": "depth", "hidden": "hidden", "heads": "heads", "kv_heads": "kv_heads"}
_WORDS = {
    "blocks": "blocks", "hidden": "channels of the stream", "channels": "MLP channels",
    "heads": "query heads", "kv_heads": "heads of keys and values",
}  # fmt: skip


def flaws(
    config: Mapping[str, Any], anatomy: Anatomy, sizes: Mapping[str, int], *, sliced: bool
) -> Iterator[tuple[str, str]]:
    """Why no model of a teacher's family can have sizes: each with the size at fault.

    Args:
        config: the teacher's.
        anatomy: its own.
        sizes: what is asked for, by names of a config.
        sliced: whether its weights are to be the teacher's.
    """
    before, cannot = shape_of(config, anatomy), can_cut(config)
    after = _asked(before, sizes)
    for name, value in sizes.items():
        part = _PARTS[name]
        there = getattr(before, part)
        if value > there:
            yield name, f"{value}, and the teacher has {there:,} {_WORDS[part]}. Ask for fewer."
        if (reason := cannot.get(_CUT_AS.get(part, ""))) and value != there:
            yield name, f"{value}: {reason}. Leave it at {there:,}."
    heads = "num_attention_heads" if "num_attention_heads" in sizes else "num_key_value_heads"
    if after.heads % after.kv_heads:
        yield (
            heads,
            f"{after.heads} query heads do not share {after.kv_heads} heads of keys and values "
            "evenly. Give counts of which one divides the other.",
        )
    elif sliced and after.group > before.group:
        yield (
            heads,
            f"{after.group} query heads would share keys and values that {before.group} share in "
            "the teacher. Use init: fresh, or restructure.kv_heads, which merges them.",
        )
    if {"hidden_size", "num_attention_heads"} & sizes.keys() and after.hidden % after.heads:
        yield (
            "hidden_size" if "hidden_size" in sizes else "num_attention_heads",
            f"{after.heads} heads do not divide a width of {after.hidden}, and families check "
            f"that. Use a multiple of {after.heads}.",
        )
    if before.differing and not sliced and "intermediate_size" not in sizes:
        yield "intermediate_size", "the teacher's blocks differ in it. Give one for all."
    if sliced and after == before:
        yield "num_hidden_layers", "nothing is smaller than in the teacher. Ask for less."


def _asked(before: Shape, sizes: Mapping[str, int]) -> Shape:
    """The shape that is asked for."""
    given = {_PARTS[name]: value for name, value in sizes.items()}
    channels = given.pop("channels", None)
    if "heads" in given and "kv_heads" not in given:
        given["kv_heads"] = max(1, given["heads"] // before.group)
    found = replace(before, differing=None, **given)
    if channels is not None:
        return found.with_channels([channels] * found.blocks)
    each = (before.each[block] for block in _spread(before.blocks, found.blocks))
    return found.with_channels(tuple(each))


def remains(config: Mapping[str, Any], anatomy: Anatomy, sizes: Mapping[str, int]) -> Remains:
    """What a model of certain sizes, which has no flaws, takes of its teacher.

    Blocks evenly spread from the first to the last; of each group of query heads the first, and of
    all else, too.
    """
    before = shape_of(config, anatomy)
    after = _asked(before, sizes)
    heads = tuple(
        group * before.group + place for group in range(after.kv_heads)
        for place in range(after.group)
    )  # fmt: skip
    pairs = zip(_spread(before.blocks, after.blocks), after.each, strict=True)
    blocks = {
        block: Kept(heads, tuple(range(after.kv_heads)), tuple(range(channels)))
        for block, channels in pairs
    }
    hidden = None if after.hidden == before.hidden else tuple(range(after.hidden))
    return Remains(blocks, hidden)


def smaller_config(
    config: Mapping[str, Any], anatomy: Anatomy, sizes: Mapping[str, int], *, sliced: bool
) -> dict[str, Any]:
    """The ``config.json`` of such a model; one drawn anew keeps the teacher's epsilon of norms."""
    before, after = shape_of(config, anatomy), _asked(shape_of(config, anatomy), sizes)
    found = cut_config(config, before, remains(config, anatomy, sizes))
    if (before.heads, before.kv_heads) != (after.heads, after.kv_heads):
        found |= {"num_attention_heads": after.heads, "num_key_value_heads": after.kv_heads}
        found["head_dim"] = before.head_dim
    if not sliced and "rms_norm_eps" in config:
        found["rms_norm_eps"] = config["rms_norm_eps"]
    return found


def _spread(of: int, count: int) -> tuple[int, ...]:
    """So many numbers below another, evenly from the first to the last."""
    if count >= of:
        return tuple(range(of))
    if count == 1:
        return (0,)
    return tuple((2 * i * (of - 1) + count - 1) // (2 * (count - 1)) for i in range(count))
