"""The numbers that trials are chosen by: something measures them, and the same for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.errors import RecipeError
from compress.recipe.schema import Recipe
from compress.recipe.sweep import LocatedSweep, Sweep

if TYPE_CHECKING:
    from compress.sweep.candidates import Planned


def check(recipe: Recipe, located: LocatedSweep) -> None:
    """Check that a trial will have the numbers that it is chosen by.

    Raises:
        RecipeError: nothing measures them.
    """
    if recipe.evaluate.suite != "none":
        return
    mistakes = [
        f"{located.places.label(loc)}  {'.'.join(loc)}: evaluate.suite is none, so nothing "
        "measures it. Choose a suite."
        for loc in _asked(located.sweep)
    ]
    if mistakes:
        raise RecipeError(mistakes)


def check_alike(planned: Sequence[Planned], located: LocatedSweep) -> None:
    """Check that these numbers are of one suite and text, beside one teacher.

    Raises:
        RecipeError: they are not, and so do not tell who is better.
    """
    if not (asked := _asked(located.sweep)):
        return
    place = f"{located.places.label(asked[0])}  {'.'.join(asked[0])}"
    mistakes, first = [], planned[0]
    for name in _protocol(first):
        key, told = _protocol(first)[name]
        other = next((one for one in planned if _protocol(one)[name][0] != key), None)
        if other:
            there = json.dumps(_protocol(other)[name][1])
            mistakes.append(
                f"{place}: trials differ in {name} ({json.dumps(told)} in {first.point[0]}, "
                f"{there} in {other.point[0]}), and only numbers of one suite, text and teacher "
                f"are ranked. Give all the same, as in set: {{{name}: {json.dumps(told)}}}."
            )
    if mistakes:
        raise RecipeError(mistakes)


def _protocol(one: Planned) -> dict[str, tuple[str | None, str | None]]:
    """What a trial's numbers are of, by its field: what tells it apart, and what is shown."""
    judged, teacher = one.recipe.evaluate, one.recipe.teacher
    return {
        "evaluate.suite": (judged.suite, judged.suite),
        "evaluate.text": (judged.text, judged.text),
        "teacher.model": (one.fingerprints[0], teacher.model),
    }


def _asked(sweep: Sweep) -> list[tuple[str, ...]]:
    """The fields of a sweep that look at numbers of an evaluation."""
    wanted = {
        ("budget", "kl_mean"): sweep.budget.kl_mean is not None,
        ("objective",): sweep.objective in ("kl_mean", "perplexity"),
    }
    return [loc for loc, asked in wanted.items() if asked]
