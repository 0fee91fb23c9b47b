"""The stage `restructure` before a run: what cannot be cut, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compress import anatomy as anatomies
from compress.anatomy import Anatomy
from compress.families import Role
from compress.plan.naming import Found
from compress.plan.rotation import turned, turned_headers
from compress.recipe.restructure import SHAPES, Restructure
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc
from compress.shape import (
    STEP,
    Shape,
    can_cut,
    chosen,
    cut_config,
    cut_tensors,
    fewer_heads,
    most_uneven,
    remains_of,
    shape_of,
    target,
)
from compress.teacher.headers import Headers

MANY = 3  # blocks that may go in one stage, or a third of them, without a word
DEPTH_TOKENS = 4096  # stages.depth: on which blocks are left out
CANDIDATES = 8  # stages.search: shapes that are tried at most
FITTED_WINDOWS = 8  # on which each is repaired
SCORED_WINDOWS, SCORED_TOKENS, SCORED_DRAWS = 64, 128, 4  # stages.first_order: what is walked back
NARROWED_WINDOWS = 32  # stages.width: between whose blocks the stream is read
SHARED_WINDOWS = 32  # stages.sharing: to which weights of fewer channels are fitted
SHARED_ASKED = 8 * 128  # tokens that go through every model beside the whole one
SHARED_TRIED = 8  # models for each block
_ROUNDED_ONLY = ("gptq", "bnb-int8", "gguf")  # formats that hold no model of floats
_OURS = ("packed", "dense")  # formats that hold blocks of different widths
_WORDS = {
    "blocks": "blocks", "heads": "query heads", "kv_heads": "heads of keys and values",
    "channels": "MLP channels", "hidden": "width",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A model that nobody has made yet: of one that is searched for, the largest it may be."""

    config: Mapping[str, Any]
    anatomy: Anatomy


def made(recipe: Recipe, anatomy: Anatomy, config: Mapping[str, Any]) -> Made:
    """What a recipe leaves of a teacher, before anything is rounded."""
    found = Made(config, turned(recipe, anatomy))
    for _, spec in recipe.restructurings:
        found = _left(found, spec)
    return found


def made_headers(recipe: Recipe, headers: Headers) -> Headers:
    """The headers of what a recipe leaves of a teacher."""
    found = turned_headers(recipe, headers)
    for _, spec in recipe.restructurings:
        found = _left_headers(found, spec)
    return found


def _left_headers(headers: Headers, spec: Restructure) -> Headers:
    return cut_headers(headers, _after(headers, spec), _chosen(headers, spec))


def cut_headers(headers: Headers, after: Shape, blocks: Sequence[int] | None = None) -> Headers:
    """The headers of a model that was given another shape; with certain blocks, where it is so."""
    before = shape_of(headers.config, headers.anatomy)
    left = cut_tensors(headers.anatomy, before, remains_of(before, after, blocks))
    dtypes = {now: headers.dtypes[was] for now, (was, _) in left.items()}
    found = _cut(Made(headers.config, headers.anatomy), after, blocks)
    return replace(headers, config=found.config, anatomy=found.anatomy, dtypes=dtypes)


def _after(found: Made | Headers, spec: Restructure) -> Shape:
    """The shape that a stage leaves; where it shares channels out, as unevenly as it may."""
    before = shape_of(found.config, found.anatomy)
    after = target(before, **spec.shares)
    if spec.uniform:
        return after
    return after.with_channels(most_uneven(before.each[: after.blocks], sum(after.each)))


def _chosen(found: Made | Headers, spec: Restructure) -> tuple[int, ...] | None:
    """The blocks that a stage leaves, where it names them."""
    if spec.blocks is None:
        return None
    return chosen(shape_of(found.config, found.anatomy), spec.blocks)


def _left(found: Made, spec: Restructure) -> Made:
    return _cut(found, _after(found, spec), _chosen(found, spec))


def _cut(found: Made, after: Shape, blocks: Sequence[int] | None = None) -> Made:
    before = shape_of(found.config, found.anatomy)
    left = remains_of(before, after, blocks)
    shapes = {name: s for name, (_, s) in cut_tensors(found.anatomy, before, left).items()}
    config = cut_config(found.config, before, left)
    return Made(config, anatomies.read(config, shapes))


def cut_bytes(recipe: Recipe, headers: Headers) -> int:
    """Of blocks that were cut, as they are committed: what was fitted, in the shape that it had.

    What was turned is float32.
    """
    found, total = turned_headers(recipe, headers.cast(recipe.teacher.dtype)), 0
    wide = recipe.rotate is not None or recipe.turns
    for _, spec in recipe.restructurings:
        roles = () if spec.takes_whole else fitted_roles(spec)
        linears = [linear for linear in found.anatomy.linears if linear.role in roles]
        if spec.hidden is not None and spec.repair and not found.anatomy.tied:
            linears.append(found.anatomy.head)
        weights = (f"{linear.name}.weight" for linear in linears)
        total += 4 * sum(x.weights for x in linears) if wide else sum(map(found.nbytes, weights))
        total += 4 * found.anatomy.hidden_size**2 if spec.turns else 0
        found = _left_headers(found, spec)
    return total


def fitted_roles(spec: Restructure) -> tuple[Role, ...]:
    """What linears of a block are fitted, or cut to less than they were."""
    if spec.hidden is not None and spec.repair:
        return ("q", "k", "v", "o", "gate", "up", "down")
    return ("o", "down") if spec.kv_heads is None else ("q", "k", "v", "o", "down")


def mistakes(recipe: Recipe, anatomy: Anatomy, config: Mapping[str, Any]) -> Found:
    """What of the stages `restructure` cannot work on a model; for targets see `searching`."""
    rounds = any(stage.quantize or stage.prune for stage in recipe.stages)
    if recipe.restructurings and not rounds and recipe.artifact.format in _ROUNDED_ONLY:
        yield (
            ("artifact", "format"),
            f"{recipe.artifact.format} holds linears of integers, and nothing is quantized. Use "
            "dense, or packed.",
        )
    yield from _unopened(recipe)
    found = Made(config, turned(recipe, anatomy))
    for index, spec in recipe.restructurings:
        loc: Loc = ("stages", index, "restructure")
        earlier = any(one.searches for before, one in recipe.restructurings if before < index)
        wrong = [*_wrong(loc, spec, found), *(_unknown(loc, spec) if earlier else ())]
        yield from wrong
        if wrong:
            return  # what is behind it has no shape to be held against
        found = _left(found, spec)


def _unopened(recipe: Recipe) -> Found:
    """Formats that are there for programs which build all blocks alike."""
    format = recipe.artifact.format
    for index, spec in recipe.restructurings:
        if not spec.uniform and format not in _OURS:
            yield (
                ("stages", index, "restructure", "uniform"),
                f"false makes blocks of different widths, and no reader of {format} builds those. "
                f"Use uniform: true, or artifact.format: {' or '.join(_OURS)}, which our runtime "
                "opens.",
            )


def _wrong(loc: Loc, spec: Restructure, found: Made) -> Found:
    before = shape_of(found.config, found.anatomy)
    if spec.searches and before.differing:
        yield (
            (*loc, str(spec.target)),
            "tries shapes whose blocks are alike, and these differ. Give depth or ffn.",
        )
    cannot = can_cut(found.config)
    for field in spec.shares:
        if field in cannot:
            yield (*loc, field), f"{cannot[field]}. Cut {_others(cannot)} instead."
    if not any(field in cannot for field in spec.shares):
        yield from _unchanged(loc, spec, before)


def _unknown(loc: Loc, spec: Restructure) -> Found:
    """Numbers that are held against a shape which an earlier stage has yet to find."""
    counts = ("blocks", "blocks"), ("heads", "heads"), ("kv_heads", "heads of keys and values")
    for field, what in counts:
        value = getattr(spec, field)
        if value is not None and not isinstance(value, str):
            text = f"how many {what} there will be is searched for by a stage before it"
            yield (*loc, field), f"{text}. Put this one in front of that."


def _others(cannot: Mapping[str, str]) -> str:
    return " or ".join(field for field in SHAPES if field not in (*cannot, "blocks"))


def _unchanged(loc: Loc, spec: Restructure, before: Shape) -> Found:
    """Counts that are none of the model's, and shares that leave all there is."""
    if isinstance(spec.blocks, tuple) and spec.blocks[-1] >= before.blocks:
        yield (
            (*loc, "blocks"),
            f"{spec.blocks[-1]}: the model has {before.blocks} blocks, 0 to {before.blocks - 1}. "
            "Name those.",
        )
        return
    if spec.heads is not None and spec.heads not in (fitting := fewer_heads(before)):
        there = f"heads, which leave in whole groups and divide the width of {before.hidden},"
        yield (*loc, "heads"), _counts(spec.heads, before.heads, fitting, there)
    if spec.kv_heads is not None and not (
        spec.kv_heads < before.kv_heads and before.kv_heads % spec.kv_heads == 0
    ):
        fitting = [n for n in range(1, before.kv_heads) if before.kv_heads % n == 0]
        there = "heads of keys and values, of which neighbours are merged,"
        yield (*loc, "kv_heads"), _counts(spec.kv_heads, before.kv_heads, fitting, there)
    after = target(before, **spec.shares)
    steps = {"ffn": f" in multiples of {STEP}", "hidden": " in steps that heads divide"}
    for field, was, now in (
        ("depth", before.blocks, after.blocks),
        ("blocks", before.blocks, after.blocks),
        ("ffn", before.channels, after.channels),
        ("hidden", before.hidden, after.hidden),
    ):
        if getattr(spec, field) is not None and now >= was:
            step = steps.get(field, "")
            listed = field == "blocks" and isinstance(spec.blocks, tuple)
            asked = "every one" if listed else getattr(spec, field)
            yield (*loc, field), f"{asked} of {was}{step} leaves all. Ask for less."


def _counts(asked: int, there: int, fitting: list[int], what: str) -> str:
    choice = " or ".join(map(str, fitting))
    remedy = f"Use {choice}" if choice else "Leave it out"
    return f"{asked} of {there} {what} cannot be. {remedy}."


def notes(recipe: Recipe, headers: Headers) -> Iterator[str]:
    """What shape a recipe asks for, in a line."""
    if not recipe.restructurings:
        return
    before = shape_of(headers.config, headers.anatomy)
    found = made_headers(recipe, headers)
    after = shape_of(found.config, found.anatomy)
    changed = [
        f"{words} {getattr(before, field):,} → {getattr(after, field):,}"
        for field, words in _WORDS.items()
        if getattr(before, field) != getattr(after, field)
        and not (field == "channels" and after.differing)
    ]
    if after.differing:
        was, now = sum(before.each), sum(after.each)
        changed.append(f"MLP channels {was:,} → {now:,} in all; here as uneven as they may come")
    told = ", ".join(changed) or "the shape is found while it runs; sizes are of the uncut model"
    yield f"restructure: {told}"
    yield from _at_once(recipe, before)


def _at_once(recipe: Recipe, shape: Shape) -> Iterator[str]:
    """Stages that take so many blocks that the last are chosen among wrecks."""
    for index, spec in recipe.restructurings:
        before, shape = shape, target(shape, **spec.shares)
        gone = before.blocks - shape.blocks
        if spec.depth is not None and gone > max(MANY, before.blocks // 3):
            yield (
                f"stages[{index}].restructure: {gone} of {before.blocks} blocks go before anything "
                "is repaired; two or three stages that take fewer each leave more of the teacher "
                "(docs/pitfalls.md)"
            )
