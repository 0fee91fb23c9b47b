"""Whether the tensors of a folder make a whole model, as far as its anatomy can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.anatomy import Anatomy, Linear


def flaws(anatomy: Anatomy, config: Mapping[str, Any]) -> Iterator[str]:
    """Name every tensor that is missing, extra or mis-shaped; a whole model yields nothing."""
    yield from _uneven_blocks(anatomy)
    yield from _outside(anatomy, config)
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
