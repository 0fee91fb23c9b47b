"""The trials of a sweep before any of them runs: loaded, planned, checked, named, ordered."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from compress import plan, prefixes
from compress.errors import RecipeError
from compress.recipe import resolve
from compress.recipe.load import Located, locate
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.sweep import Dimension, LocatedSweep
from compress.results.swept import Trial
from compress.surgery.walk import Watch
from compress.sweep import measured
from compress.teacher import headers, sources
from compress.teacher.headers import Headers

Values: TypeAlias = Mapping[str, Any]  # of fields, by dotted name
Point: TypeAlias = tuple[str, Values]  # a recipe's name or path, and what is varied in it
T = TypeVar("T")
_CORNERS = 64  # combinations of a search that are checked before it begins; seconds each
_LABEL = 72  # characters of a folder's name in front of its hash


@dataclass(frozen=True)
class Planned:
    """One recipe of a sweep that can be carried out."""

    point: Point
    recipe: Recipe
    places: Places
    size_bytes: int
    at_most: bool  # it may become smaller
    fingerprints: tuple[str, ...]  # of its teacher, and of what its student begins as
    seconds: float | None  # that it will take by itself, as past runs here tell


@dataclass(frozen=True)
class Candidate:
    """A planned trial, told apart from all others by its name."""

    planned: Planned
    name: str
    shared_stages: int = 0  # from the first on, that another trial begins with too

    @property
    def trial(self) -> Trial:
        """As it is before it runs."""
        return replace(trial_of(self.planned.point, self.name), size_bytes=self.planned.size_bytes)


@dataclass(frozen=True)
class Models:
    """The teacher of a recipe and what its student begins as, at hand."""

    headers: Headers
    fingerprints: tuple[str, ...]


def bring(recipe: Recipe, watch: Watch = None) -> Models:
    """Bring the models of a recipe.

    Raises:
        ModelError: one cannot be had.
    """
    teacher = sources.of_recipe(recipe, watch=watch)
    origin = sources.origin_of(recipe, teacher, watch=watch)
    fingerprints = (teacher.fingerprint, *([origin.fingerprint] if origin else []))
    return Models(headers.of_recipe(recipe), fingerprints)


@dataclass
class Planner:
    """Makes trials of one sweep; each teacher is brought once."""

    located: LocatedSweep
    cache: Path
    bring: Callable[[Recipe], Models] = bring
    device: str = "cpu"  # whose past runs tell the time
    _models: dict[str, Models] = field(default_factory=dict)

    def load(self, point: Point) -> Located:
        """One recipe, as it is written.

        Raises:
            RecipeError: every mistake of it, with its place in the sweep's file.
        """
        base, values = point
        sets = _sets({**self.located.sweep.set, **values})
        try:
            found = locate(base, list(sets))
            measured.check(found.recipe, self.located)
        except RecipeError as error:
            placed = [_placed(text, sets, point, self.located) for text in error.mistakes]
            raise RecipeError(placed) from error
        return found

    def plan(self, point: Point) -> Planned:
        """One recipe, held against its teacher.

        Raises:
            RecipeError: every mistake of it, with its place in the sweep's file.
            ModelError: the teacher cannot be had.
        """
        found, sweep = self.load(point), self.located.sweep
        models = self._models_of(found.recipe)
        try:
            made = plan.make(
                found.recipe, models.headers, cache=self.cache, threads=sweep.threads,
                places=found.places, device=self.device,
            )  # fmt: skip
        except RecipeError as error:
            sets = _sets({**sweep.set, **point[1]})
            placed = [_placed(text, sets, point, self.located) for text in error.mistakes]
            raise RecipeError(placed) from error
        size = made.size
        return Planned(
            point, found.recipe, found.places, size.size_bytes, size.at_most, models.fingerprints,
            made.seconds,
        )  # fmt: skip

    def _models_of(self, recipe: Recipe) -> Models:
        explicit = resolve.explicit(recipe)
        key = json.dumps([explicit.get(name) for name in ("teacher", "student")])
        if key not in self._models:
            self._models[key] = self.bring(recipe)
        return self._models[key]


def grid(located: LocatedSweep) -> list[Point]:
    """Every combination of a grid, the last field varied fastest."""
    sweep = located.sweep
    combined = itertools.product(*sweep.grid.values())
    every = [dict(zip(sweep.grid, values, strict=True)) for values in combined]
    return [(recipe, values) for recipe in sweep.recipes for values in every]


def corners(located: LocatedSweep) -> list[Point]:
    """What a search may choose at its ends: every value, and both ends of every range.

    All combinations, or where they are many, each end beside the first of all the others.
    """
    sweep = located.sweep
    ends = {key: _ends(one) for key, one in sweep.search.items()}
    if len(sweep.recipes) * math.prod(map(len, ends.values())) <= _CORNERS:
        combined = [dict(zip(ends, one, strict=True)) for one in itertools.product(*ends.values())]
    else:
        first = {key: values[0] for key, values in ends.items()}
        alone = [{**first, key: value} for key, values in ends.items() for value in values[1:]]
        combined = [first, *alone, {key: values[-1] for key, values in ends.items()}]
    return [(recipe, values) for recipe in sweep.recipes for values in combined]


def check(planner: Planner, points: Iterable[Point]) -> list[Planned]:
    """Plan every trial; teachers are brought when all recipes are known to be sound.

    Raises:
        RecipeError: the mistakes of all of them, each once.
        ModelError: a teacher cannot be had.
    """
    points = list(points)
    _each(planner.load, points)
    planned = _each(planner.plan, points)
    measured.check_alike(planned, planner.located)
    return planned


def _each(make: Callable[[Point], T], points: Sequence[Point]) -> list[T]:
    found: list[T] = []
    mistakes: Counter[str] = Counter()
    for point in points:
        try:
            found.append(make(point))
        except RecipeError as error:
            mistakes.update(dict.fromkeys(error.mistakes, 1))
    if mistakes:
        ordered = sorted(mistakes.items(), key=lambda mistake: _line(mistake[0]))
        raise RecipeError([_often(text, n, len(points)) for text, n in ordered])
    return found


def _line(mistake: str) -> tuple[str, int]:
    """Where a mistake was written, for sorting: the file and the line that it begins with."""
    found = re.match(r"(\S+):(\d+)  ", mistake)
    return (found[1], int(found[2])) if found else ("", 0)


def named(planned: Sequence[Planned], decided: Callable[[Planned], object]) -> list[Candidate]:
    """Trials with their names, each once, in the order in which they should begin.

    Args:
        planned: in the order of the sweep.
        decided: what else decides the bytes of a trial.
    """
    by_name: dict[str, Candidate] = {}
    for one in planned:
        name = name_of(one, decided(one))
        by_name.setdefault(name, Candidate(one, name))
    return ordered(list(by_name.values()))


def name_of(planned: Planned, decided: object) -> str:
    """The name of a trial's folder: what is varied, and a hash over all that decides its bytes."""
    base, values = planned.point
    parts = [planned.recipe.resolved.recipe or Path(base).stem]
    parts += [f"{key.rpartition('.')[2]}-{_short(value)}" for key, value in values.items()]
    label = re.sub(r"[^A-Za-z0-9.+-]+", "_", "-".join(parts)).strip("_")[:_LABEL]
    content = json.dumps([resolve.canonical_json(planned.recipe), decided], sort_keys=True)
    return f"{label}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def ordered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One trial of every shared beginning first, then those that share nothing, then the rest."""
    keys = {one.name: _keys(one.planned.recipe) for one in candidates}
    common = Counter(key for found in keys.values() for key in found)
    deep = {name: sum(common[key] > 1 for key in found) for name, found in keys.items()}
    told = [replace(one, shared_stages=deep[one.name]) for one in candidates]
    seen: set[str] = set()
    groups: tuple[list[Candidate], ...] = ([], [], [])
    for one in told:
        deepest = keys[one.name][one.shared_stages - 1] if one.shared_stages else ""
        groups[1 if not deepest else 2 if deepest in seen else 0].append(one)
        seen.add(deepest)
    return [one for group in groups for one in group]


def trial_of(point: Point, name: str) -> Trial:
    """A trial of which nothing is known but what was chosen."""
    recipe, values = point
    return Trial(name, recipe, {key: json.dumps(value) for key, value in values.items()})


def stages_fixed(located: LocatedSweep, recipe: Recipe) -> int:
    """How many of a recipe's first stages no range of a search changes."""
    ranges = [key for key, one in located.sweep.search.items() if one.values is None]
    touched = [_stage(key, recipe) for key in ranges]
    return min(touched, default=len(recipe.stages))


def _stage(key: str, recipe: Recipe) -> int:
    """The first stage that a field is part of; what is part of none decides all."""
    parts = key.replace("[", ".").replace("]", "").split(".")
    if parts[0] == "stages":
        return int(parts[1])
    names = [stage.name for stage in recipe.stages]
    if parts[0] in names:
        return names.index(parts[0])
    return len(names) if parts[0] in ("evaluate", "artifact") else 0


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    if dimension.values is not None:
        return dimension.values
    return (dimension.low, dimension.high)


def _keys(recipe: Recipe) -> list[str]:
    """What every beginning of a recipe's stages is known by, the shortest first."""
    explicit = resolve.explicit(recipe)
    around = [explicit.get(name) for name in ("teacher", "student", "calibration")]
    until = (prefixes.recipe_until(recipe, index) for index in range(len(recipe.stages)))
    return [json.dumps([around, one], sort_keys=True) for one in until]


def _sets(values: Values) -> dict[str, str]:
    """As `--set` takes them, by what they set; JSON is YAML."""
    return {f"{key}={json.dumps(value, ensure_ascii=False)}": key for key, value in values.items()}


def _placed(text: str, sets: Mapping[str, str], point: Point, located: LocatedSweep) -> str:
    """A mistake of one recipe, by its place in the sweep's file where it is the sweep's."""
    for assignment, key in sets.items():
        start = f"--set {assignment}  "
        if text.startswith(start):
            return f"{located.places.label(_loc(key, point, located))}  {text[len(start) :]}"
    if text.startswith(f"{point[0]}: ") or text.startswith(repr(point[0])):
        index = located.sweep.recipes.index(point[0])
        return f"{located.places.label(('recipes', index))}  {text}"
    return text


def _loc(key: str, point: Point, located: LocatedSweep) -> tuple[str | int, ...]:
    """Where a sweep's file writes a field."""
    sweep = located.sweep
    if key in sweep.grid:
        return "grid", key, sweep.grid[key].index(point[1][key])
    return ("search" if key in sweep.search else "set"), key


def _often(text: str, count: int, trials: int) -> str:
    return text if trials == 1 else f"{text} ({count} of {trials} trials)"
