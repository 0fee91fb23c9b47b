"""How large a model is where it can be cut, and what is left of it: pure data, told to its config.

A model that was cut is an ordinary one of its family: fewer blocks, heads or channels, in every
block as many; channels of the MLP alone may differ from block to block, and then its config says so
block by block. Which ones are left is told by their numbers in the model before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compress.anatomy import Anatomy, Block, Linear, channels_field, kv_heads

STEP = 64  # widths come in multiples: groups of scales, vector units, halves for two devices
_BLOCKS = {"gpt2": "n_layer"}
_HEAD_DIM = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_SCALED_NORMS = ("llama", "mistral", "qwen2", "qwen3")  # divide by a length, times their weight


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that may become smaller."""

    blocks: int
    heads: int  # of queries
    kv_heads: int
    head_dim: int
    channels: int  # of the MLP; of blocks that differ, the most
    hidden: int  # of the residual stream
    differing: tuple[int, ...] | None = None  # channels of each block, where they differ

    @property
    def each(self) -> tuple[int, ...]:
        """Channels of the MLP of each block."""
        return self.differing or (self.channels,) * self.blocks

    def with_channels(self, each: Sequence[int]) -> Shape:
        """The same with so many channels in each block."""
        alike = len(set(each)) == 1
        return replace(self, channels=max(each), differing=None if alike else tuple(each))

    @property
    def group(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Kept:
    """What is left of one block, by numbers in the block before, ascending."""

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]  # where several became one, the first of them
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Remains:
    """What is left of a model."""

    blocks: Mapping[int, Kept]  # by their number before, ascending; others are gone
    hidden: tuple[int, ...] | None = None  # channels of the stream; None: all


def shape_of(config: Mapping[str, Any], anatomy: Anatomy) -> Shape:
    """The shape of a model."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    first = {linear.role: linear for linear in anatomy.blocks[0].linears}
    found = Shape(
        len(anatomy.blocks), heads, kv_heads(config), first["o"].in_features // heads,
        first["down"].in_features, anatomy.hidden_size,
    )  # fmt: skip
    return found.with_channels(anatomy.channels)


def can_cut(config: Mapping[str, Any]) -> dict[str, str]:
    """Why parts of a family's models cannot be cut, by the field of the recipe; others can."""
    kind, found = str(config["model_type"]), dict[str, str]()
    if kind not in _HEAD_DIM:
        reason = f"{kind} has no head_dim: its heads together are as wide as the stream"
        found |= dict.fromkeys(("heads", "kv_heads"), reason)
    if kind not in _SCALED_NORMS:
        why = "no channel can leave their mean"
        if kind.startswith("gemma"):
            why = "they multiply by one more than their weight, and only a weight is rescaled"
        found["hidden"] = f"norms of {kind} do more than scale: {why}"
    if config.get("scale_attn_by_inverse_layer_idx"):
        reason = "attention is scaled by the number of its block"
        found |= dict.fromkeys(("depth", "blocks"), reason)
    return found


def fewer_heads(shape: Shape) -> list[int]:
    """How many query heads may be left when whole groups go, ascending.

    Families check that heads divide the width, though their heads have a width of their own.
    """
    counts = range(shape.group, shape.heads, shape.group)
    return [count for count in counts if shape.hidden % count == 0]


def target(
    shape: Shape,
    *,
    depth: float | None = None,
    blocks: str | Sequence[int] | None = None,
    ffn: float | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: float | None = None,
) -> Shape:
    """The shape that a recipe asks for: shares of what there is, widths in multiples of `STEP`.

    Whole groups of heads leave before keys and values are merged.
    """
    found = shape
    if depth is not None:
        count = max(1, _nearest(depth * shape.blocks))
        found = replace(found, blocks=count).with_channels(shape.each[:count])
    if blocks is not None:
        left = chosen(shape, blocks)
        found = replace(found, blocks=len(left)).with_channels([shape.each[i] for i in left])
    if ffn is not None:
        found = found.with_channels(narrowed(found.each, ffn))
    if heads is not None:
        found = replace(found, heads=heads, kv_heads=max(1, heads // shape.group))
    if kv_heads is not None:
        found = replace(found, kv_heads=kv_heads)
    if hidden is not None:
        found = replace(found, hidden=_narrower(shape.hidden, hidden, found.heads))
    return found


def chosen(shape: Shape, blocks: str | Sequence[int]) -> tuple[int, ...]:
    """The numbers of blocks that a recipe names, ascending."""
    return tuple(range(0, shape.blocks, 2) if isinstance(blocks, str) else blocks)


def narrowed(each: Iterable[int], share: float) -> tuple[int, ...]:
    """The channels of some blocks when a share of each stays, in multiples of `STEP`."""
    return tuple(min(channels, _width(share * channels)) for channels in each)


def most_uneven(each: Sequence[int], total: int) -> tuple[int, ...]:
    """So many channels in all, shared out so that blocks differ as far as they may.

    The first is as wide as it can be and the last as narrow, those between are alike.

    Args:
        each: channels that blocks have before; `STEP` or more of each stay, in multiples of it.
        total: of channels that stay.
    """
    found = [min(STEP, channels) for channels in each]
    rest = total - sum(found)
    for places in ([0], range(1, len(each) - 1), [len(each) - 1]):
        while rest >= STEP and (open_ := [i for i in places if found[i] + STEP <= each[i]]):
            for place in open_[: rest // STEP]:
                found[place] += STEP
                rest -= STEP
    return tuple(found)


def remains_of(before: Shape, after: Shape, left: Sequence[int] | None = None) -> Remains:
    """The first of everything: any choice of which makes a model of the same sizes.

    Args:
        before: the model's.
        after: what is to be left of it.
        left: the blocks that are, where that is known.
    """
    heads, groups = tuple(range(after.heads)), tuple(range(after.kv_heads))
    numbers = range(after.blocks) if left is None else left
    pairs = zip(numbers, after.each, strict=True)
    blocks = {i: Kept(heads, groups, tuple(range(n))) for i, n in pairs}
    hidden = None if after.hidden == before.hidden else tuple(range(after.hidden))
    return Remains(blocks, hidden)


def cut_config(config: Mapping[str, Any], before: Shape, remains: Remains) -> dict[str, Any]:
    """The ``config.json`` of what is left."""
    kind = str(config["model_type"])
    cut = {name: value for name, value in config.items() if name != "per_layer_config"}
    kept = next(iter(remains.blocks.values()))
    cut[_BLOCKS.get(kind, "num_hidden_layers")] = len(remains.blocks)
    each = [len(one.channels) for one in remains.blocks.values()]
    if max(each) != before.channels:
        cut[channels_field(config)] = max(each)
    if own := _own_channels(channels_field(config), each):
        cut["per_layer_config"] = own
    if kind in _HEAD_DIM and (remains.hidden or len(kept.kv_heads) != before.kv_heads):
        cut["num_attention_heads"], cut["num_key_value_heads"] = (
            len(kept.heads), len(kept.kv_heads),
        )  # fmt: skip
        cut["head_dim"] = before.head_dim
    if remains.hidden is not None:
        cut["hidden_size"] = len(remains.hidden)
        # a mean over fewer channels, all others having been zero, is so many times larger
        if (epsilon := cut.get("rms_norm_eps")) is not None:
            cut["rms_norm_eps"] = epsilon * before.hidden / len(remains.hidden)
    if len(remains.blocks) != before.blocks:
        cut |= _renumbered(config, before.blocks, list(remains.blocks))
    return cut


def _own_channels(field: str, each: Sequence[int]) -> dict[str, dict[str, int]]:
    """What blocks with fewer channels than others say of themselves, as transformers writes it."""
    digits = len(str(len(each) - 1))  # so that they sort as numbers do
    return {str(i).zfill(digits): {field: n} for i, n in enumerate(each) if n != max(each)}


def _renumbered(config: Mapping[str, Any], blocks: int, left: Sequence[int]) -> dict[str, Any]:
    """What a config says block by block, told of those that are left."""
    lists = {k: v for k, v in config.items() if isinstance(v, list) and len(v) == blocks}
    if "layer_types" not in lists and (types := _usual_types(config, blocks)):
        lists["layer_types"] = types
    found: dict[str, Any] = {key: [values[i] for i in left] for key, values in lists.items()}
    if (first := config.get("max_window_layers")) is not None:  # those behind it see a window
        found["max_window_layers"] = sum(index < int(first) for index in left)
    return found


def _usual_types(config: Mapping[str, Any], blocks: int) -> list[str]:
    """How blocks of families attend that take turns, where their config does not say."""
    turns = {"gemma2": 2, "gemma3_text": 6}
    every = turns.get(str(config["model_type"]))
    every = int(config.get("sliding_window_pattern") or every or 0) if every else 0
    kinds = ("sliding_attention", "full_attention")
    return [kinds[not (index + 1) % every] for index in range(blocks)] if every else []


def cut_tensors(
    anatomy: Anatomy, before: Shape, remains: Remains
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor that is left: its name before, and its shape, by its name now."""
    found = {}
    for name in anatomy.outside():
        chosen = stream_axes(anatomy.tensors[name], before, name, remains.hidden)
        found[name] = name, _shape(anatomy, name, chosen)
    for now, (index, kept) in enumerate(remains.blocks.items()):
        block, renamed = anatomy.blocks[index], anatomy.blocks[now].prefix
        for name in anatomy.inside(index):
            chosen = block_axes(block, anatomy.tensors[name], before, name, kept, remains.hidden)
            found[renamed + name.removeprefix(block.prefix)] = name, _shape(anatomy, name, chosen)
    return found


def block_axes(
    block: Block,
    shape: Sequence[int],
    before: Shape,
    name: str,
    kept: Kept,
    hidden: Sequence[int] | None,
) -> list[Sequence[int] | None]:
    """For each axis of a stored tensor of a block, the places that are left of it; None for all.

    Args:
        block: before it is cut.
        shape: of the tensor.
        before: of the model.
        name: of the tensor.
        kept: what is left of the block.
        hidden: channels of the stream that are left; None for all.
    """
    module = name.rpartition(".")[0]
    linear = next((linear for linear in block.linears if linear.name == module), None)
    if linear is None:
        return stream_axes(shape, before, name, hidden)
    rows, columns = _sides(linear, before, kept, hidden)
    if name.endswith(".bias"):
        return [rows]
    return [columns, rows] if linear.transposed else [rows, columns]


def stream_axes(
    shape: Sequence[int], before: Shape, name: str, hidden: Sequence[int] | None
) -> list[Sequence[int] | None]:
    """As `block_axes`, of what is no linear of a block: norms, embeddings, the head."""
    inner: list[Sequence[int] | None] = [None] * (len(shape) - 1)
    return [*inner, hidden if shape[-1] == before.hidden and not _of_heads(name) else None]


def scales_stream(name: str) -> bool:
    """Whether a tensor is the weight of a norm of the stream, by its name."""
    return name.endswith("norm.weight") and not _of_heads(name)


def _of_heads(name: str) -> bool:
    """Whether a tensor belongs to a norm of each query or key."""
    return name.rpartition(".")[0].endswith(("q_norm", "k_norm"))


def _sides(
    linear: Linear, before: Shape, kept: Kept, hidden: Sequence[int] | None
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """Which rows and columns of a linear are left."""
    size = before.head_dim
    heads = _some(spread(kept.heads, size), before.heads * size)
    keys = _some(spread(kept.kv_heads, size), before.kv_heads * size)
    inner = linear.in_features if linear.role == "down" else linear.out_features
    channels = _some(kept.channels, inner)
    return {
        "q": (heads, hidden), "k": (keys, hidden), "v": (keys, hidden), "qkv": (None, hidden),
        "o": (hidden, heads),
        "gate": (channels, hidden), "up": (channels, hidden), "down": (hidden, channels),
        "head": (None, hidden),
    }[linear.role]  # fmt: skip


def spread(units: Iterable[int], size: int) -> tuple[int, ...]:
    """The places that units of one size take up."""
    return tuple(unit * size + place for unit in units for place in range(size))


def _some(places: Sequence[int], of: int) -> Sequence[int] | None:
    return None if len(places) == of else places


def _shape(anatomy: Anatomy, name: str, chosen: Sequence[Sequence[int] | None]) -> tuple[int, ...]:
    sizes = zip(anatomy.tensors[name], chosen, strict=True)
    return tuple(size if places is None else len(places) for size, places in sizes)


def _nearest(number: float) -> int:
    """Halves go up."""
    return math.floor(number + 0.5)


def _narrower(hidden: int, share: float, heads: int) -> int:
    """The width of the stream that comes near a share of it, and that heads divide.

    Families check that. It is a multiple of `STEP` too, or of a half or a quarter of it and so on
    where those that heads divide are further than a sixteenth of the width from what is asked for.
    """
    asked, width, step = share * hidden, 0, STEP
    while step:
        unit = math.lcm(step, heads)
        width = unit * max(1, _nearest(asked / unit))
        if abs(width - asked) <= hidden / 16:
            break
        step //= 2
    return width


def _width(number: float) -> int:
    return STEP * max(1, _nearest(number / STEP))
