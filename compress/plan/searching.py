"""What a stage `restructure` has to reach, before a run: whether any shape does, from headers."""

from __future__ import annotations

from compress.plan.naming import Found
from compress.plan.reshaping import made_headers
from compress.plan.sizes import Counter
from compress.recipe.restructure import Restructure
from compress.recipe.schema import Recipe
from compress.recipe.source import Loc
from compress.searched import Holds, Search, counting
from compress.teacher.headers import Headers


def mistakes(recipe: Recipe, headers: Headers) -> Found:
    """Targets that the model reaches as it is, or that no shape reaches.

    A time is known only when it is measured, and what is behind a search only when that has ended.
    """
    counter = Counter(recipe, headers)
    for index, spec in recipe.restructurings:
        begun = recipe.model_copy(update={"stages": recipe.stages[:index]})
        if index and begun.restructurings:
            counter = counter.cut(made_headers(begun, headers))
        if spec.target is None:
            continue
        if spec.most_time is None:
            model = made_headers(begun, headers)
            flaw = Search(model, _fitting(model, spec, counter), counter.divides).flaw(spec)
            loc: Loc = ("stages", index, "restructure", spec.target)
            if flaw:
                yield loc, flaw
        return


def _fitting(model: Headers, spec: Restructure, counter: Counter) -> Holds:
    if (most := spec.most_bytes) is not None:
        return lambda shape: counter.shaped(shape) <= most
    return counting(model, spec)
