"""A budget of bits before it is shared out: whether it can be kept, and what it allows at most."""

from __future__ import annotations

import math
from dataclasses import replace

from compress.anatomy import Anatomy
from compress.errors import RecipeError
from compress.plan.reshaping import made_headers
from compress.plan.sizes import Size, free_linears, size
from compress.recipe.allocate import too_tight
from compress.recipe.mistakes import dotted
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc, Places
from compress.teacher.headers import Headers

_BLOCKS = "block linears"
_NAMED = 64  # bytes that config.json takes at most to say the bits of one linear, beside its name


def check(recipe: Recipe, headers: Headers, places: Places | None = None) -> None:
    """Check that some choice keeps the budget; a budget of KL is known only when it is measured.

    Raises:
        RecipeError: even the narrowest grids take more.
    """
    allocate = recipe.allocate
    if allocate is None or allocate.parsed.kl_mean is not None:
        return
    made = made_headers(recipe, headers).anatomy
    narrow = size(recipe, headers, dict.fromkeys(free(recipe, made), min(allocate.bits)))
    reason = too_tight(allocate, narrow.bits_per_weight, narrow.size_bytes)
    if reason is None:
        return
    index = next(i for i, stage in enumerate(recipe.stages) if stage.allocate)
    loc: Loc = ("stages", index, "allocate", "budget")
    label = (places or Places("recipe")).label(loc)
    raise RecipeError([f"{label}  {dotted(loc)}: {reason}"])


def at_most(recipe: Recipe, headers: Headers) -> Size:
    """What the artifact takes, to the byte; where bits are still to be shared out, at most."""
    allocate = recipe.allocate
    if allocate is None:
        return size(recipe, headers)
    made = made_headers(recipe, headers).anatomy
    chosen = free(recipe, made)
    wide = size(recipe, headers)
    narrow = size(recipe, headers, dict.fromkeys(chosen, min(allocate.bits)))
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
    )


def free(recipe: Recipe, anatomy: Anatomy) -> list[str]:
    """Linears whose bits are still to be said."""
    return [
        name
        for index, quantize in recipe.quantizations
        if (allocate := recipe.fed(index))
        for name in free_linears(allocate, quantize, anatomy)
    ]
