"""Bits, zeros or shapes before they are found: whether a budget can be kept, the most it takes."""

from __future__ import annotations

import math
from dataclasses import replace

from compress.anatomy import Anatomy
from compress.errors import RecipeError
from compress.plan import pruning, searching
from compress.plan.naming import Found
from compress.plan.reshaping import made_headers
from compress.plan.sizes import Size, free_linears, size
from compress.recipe.allocate import too_tight
from compress.recipe.mistakes import dotted
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.teacher.headers import Headers

_BLOCKS = "block linears"
_NAMED = 64  # bytes that config.json takes at most to say the bits of one linear, beside its name
_FILLED = 4  # bytes: kept codes of a linear whose zeros are shared out fill up another word
_LONGER = 28  # and headers may need longer numbers to say where all of it lies


def check(recipe: Recipe, headers: Headers, places: Places | None = None) -> None:
    """Check that some choice keeps every budget; one of KL or time is known when it is measured.

    Raises:
        RecipeError: even the narrowest grids take more, or the smallest shape; or all there is
            takes no more than a shape is searched for.
    """
    places = places or Places("recipe")
    found = [*searching.mistakes(recipe, headers), *_too_tight(recipe, headers)]
    if found:
        raise RecipeError([f"{places.label(loc)}  {dotted(loc)}: {text}" for loc, text in found])


def _too_tight(recipe: Recipe, headers: Headers) -> Found:
    allocate = recipe.allocate
    if allocate is None or allocate.parsed.kl_mean is not None:
        return
    made = made_headers(recipe, headers).anatomy
    narrow = _narrowest(recipe, headers, made)
    if reason := too_tight(allocate, narrow.bits_per_weight, narrow.size_bytes):
        index = next(i for i, stage in enumerate(recipe.stages) if stage.allocate)
        yield ("stages", index, "allocate", "budget"), reason


def at_most(recipe: Recipe, headers: Headers) -> Size:
    """What the artifact takes, to the byte; at most, where bits, zeros or a shape are not found."""
    found = _shared_out(recipe, headers)
    if any(spec.searches for _, spec in recipe.restructurings):  # planned as if nothing were cut
        return replace(found, at_most=True, least_bytes=None)
    return found


def _shared_out(recipe: Recipe, headers: Headers) -> Size:
    made = made_headers(recipe, headers).anatomy
    wide = _uneven(size(recipe, headers), recipe, made)
    if (allocate := recipe.allocate) is None:
        return wide
    chosen = free(recipe, made)
    narrow = _narrowest(recipe, headers, made)
    least: dict[str, int] = {part.part: part.after_bytes for part in narrow.parts}
    most: dict[str, int] = {part.part: part.after_bytes for part in wide.parts}
    most["other files"] += sum(len(name) + _NAMED for name in chosen)
    weights, budget = made.weights, allocate.parsed
    if budget.bits is not None:
        most[_BLOCKS] = min(most[_BLOCKS], math.floor(budget.bits * weights / 8))
    total = min(sum(most.values()), budget.nbytes or sum(most.values()))
    rest = sum(least.values())
    most = {name: min(taken, total - rest + least[name]) for name, taken in most.items()}
    head = headers.anatomy.head.weights
    both = most[_BLOCKS] + most["head"] + (most["embedding"] if headers.anatomy.tied else 0)
    together = min(both, total - least["norms and biases"] - least["other files"])
    return replace(
        wide,
        size_bytes=total,
        bits_per_weight=8 * most[_BLOCKS] / weights,
        bits_per_weight_with_head=8 * together / (weights + head),
        parts=tuple(replace(part, after_bytes=most[part.part]) for part in wide.parts),
        at_most=True,
        least_bytes=narrow.size_bytes,
    )


def _narrowest(recipe: Recipe, headers: Headers, made: Anatomy) -> Size:
    """The least that may come of what is yet to be shared out."""
    bits = min(recipe.allocate.bits) if recipe.allocate else 0
    given = dict.fromkeys(free(recipe, made), bits)
    return size(recipe, headers, given, pruning.fewest(recipe, made))


def _uneven(found: Size, recipe: Recipe, made: Anatomy) -> Size:
    """The size of an artifact whose zeros are shared out, from that of the largest; at most."""
    masks = recipe.artifact.format == "packed"
    count = len(pruning.shared(recipe, made)) if masks else 0
    if not count:
        return found
    more = {_BLOCKS: _FILLED * count, "other files": _LONGER * count}
    return replace(
        found,
        size_bytes=found.size_bytes + sum(more.values()),
        bits_per_weight=found.bits_per_weight + 8 * more[_BLOCKS] / made.weights,
        bits_per_weight_with_head=found.bits_per_weight_with_head
        + 8 * more[_BLOCKS] / (made.weights + made.head.weights),
        parts=tuple(
            replace(part, after_bytes=part.after_bytes + more.get(part.part, 0))
            for part in found.parts
        ),
        at_most=True,
    )


def free(recipe: Recipe, anatomy: Anatomy) -> list[str]:
    """Linears whose bits are still to be said."""
    return [
        name
        for index, quantize in recipe.quantizations
        if (allocate := recipe.fed(index))
        for name in free_linears(allocate, quantize, anatomy)
    ]
