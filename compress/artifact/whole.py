"""Whether the tensors of a folder make a whole model, as far as its anatomy can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.anatomy import Anatomy, Linear, channels_of


def flaws(anatomy: Anatomy, config: Mapping[str, Any]) -> Iterator[str]:
    """Name every tensor that is missing, extra or mis-shaped; a whole model yields nothing."""
    yield from _uneven_blocks(anatomy)
    yield from _outside(anatomy, config)
    yield from _sizes(anatomy, config)
    for linear in anatomy.linears:
        yield from _shape(linear, anatomy)


def _uneven_blocks(anatomy: Anatomy) -> Iterator[str]:
    """All blocks of the families known here have the same tensors; name where one differs."""
    endings = [
        {name.removeprefix(block.prefix) for name in anatomy.inside(block.index)}
        for block in anatomy.blocks
    ]
    for ending in sorted(set().union(*endings)):
        with_it = [
            b.prefix + ending for b, e in zip(anatomy.blocks, endings, strict=True) if ending in e
        ]
        without = [
            b.prefix + ending
            for b, e in zip(anatomy.blocks, endings, strict=True)
            if ending not in e
        ]
        if len(without) <= len(with_it):
            yield from (f"{name}: missing, though other blocks have theirs" for name in without)
        else:
            yield from (f"{name}: extra, most blocks have none" for name in with_it)


def _outside(anatomy: Anatomy, config: Mapping[str, Any]) -> Iterator[str]:
    # OPT-350m normalizes inside its blocks only; its config says so
    normed = config.get("do_layer_norm_before", True)
    if normed and f"{anatomy.final_norm}.weight" not in anatomy.tensors:
        yield f"{anatomy.final_norm}.weight: missing"
    if anatomy.tied and config.get("tie_word_embeddings") is False:
        yield f"{anatomy.head.name}.weight: missing, and config.json says it is not tied"
    if config.get("vocab_size", anatomy.vocab_size) != anatomy.vocab_size:
        rows, promised = anatomy.vocab_size, config["vocab_size"]
        yield f"{anatomy.embedding}.weight: has {rows} rows, config.json promises {promised}"


def _sizes(anatomy: Anatomy, config: Mapping[str, Any]) -> Iterator[str]:
    """What is built from config.json is as wide as it says, so every width is held to a tensor."""
    heads = config.get("num_attention_heads") or config.get("n_head")
    head_dim = config.get("head_dim")
    if heads and not head_dim and anatomy.hidden_size % heads:
        yield f"config.json: {heads} attention heads do not divide the width {anatomy.hidden_size}"
        return
    width = head_dim or (anatomy.hidden_size // heads if heads else 0)
    groups = config.get("num_key_value_heads") or heads
    promised = {
        "q": (heads or 0) * width, "k": (groups or 0) * width, "v": (groups or 0) * width,
    }  # fmt: skip
    for linear in anatomy.linears:
        inner = linear.role in ("gate", "up")
        rows = channels_of(config, linear.block or 0) if inner else promised.get(linear.role)
        if rows and rows != linear.out_features:
            yield (
                f"{linear.name}.weight: has {linear.out_features} rows, config.json promises {rows}"
            )
            return
    yield from _positions(anatomy, config)


def _positions(anatomy: Anatomy, config: Mapping[str, Any]) -> Iterator[str]:
    """Models that learn a vector for each position have as many as they say."""
    for name, key, more in (
        ("transformer.wpe.weight", "n_positions", 0),
        ("model.decoder.embed_positions.weight", "max_position_embeddings", 2),
    ):
        rows, promised = anatomy.tensors.get(name, (0,))[0], config.get(key)
        if rows and promised and rows != promised + more:
            yield f"{name}: has {rows} rows, config.json promises {promised + more}"


def _shape(linear: Linear, anatomy: Anatomy) -> Iterator[str]:
    hidden = anatomy.hidden_size
    writes = linear.role in ("o", "down")  # these write the residual stream, the others read it
    width = linear.out_features if writes else linear.in_features
    if width != hidden:
        side = "out" if writes else "in"
        yield f"{linear.name}.weight: {side}_features {width}, the model's width is {hidden}"
    bias = anatomy.tensors.get(f"{linear.name}.bias", (linear.out_features,))
    if bias != (linear.out_features,):
        yield f"{linear.name}.bias: shape {list(bias)}, its linear has {linear.out_features} rows"
