"""Which shipped recipes may keep what is wanted: plans rule out, the catalogue's numbers sort."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress import catalogue, library, plan
from compress.auto.wanted import excess
from compress.catalogue import Catalogue, Measurement
from compress.errors import ModelError, RecipeError, RequestError
from compress.plan.sizes import Size
from compress.recipe.gates import in_words
from compress.recipe.load import Located, find, locate
from compress.recipe.sets import assign, spelled
from compress.recipe.source import read, text_of
from compress.report import numbers
from compress.results.choice import Wanted
from compress.teacher import headers
from compress.teacher.folder import Teacher

_NOT_FOR_USE = {"smoke": "proves that everything runs; not for use"}
_RUNTIME = "compress"  # how plans call ours


@dataclass(frozen=True)
class Candidate:
    """One shipped recipe with this teacher; `why_not` says why it is none after all."""

    name: str
    sets: tuple[str, ...] = ()
    located: Located | None = None
    planned: Size | None = None
    measured: Measurement | None = None  # on the catalogue's teacher, of no narrower budget
    why_not: str = ""

    @property
    def kl(self) -> float | None:
        """Mean KL as the catalogue has it."""
        return self.measured.kl_mean if self.measured else None

    @property
    def speed(self) -> float | None:
        """Tokens a second to expect: decoding reads all weights, so bytes a second stay."""
        one = self.measured
        if one is None or one.decode_tokens_per_second is None or self.planned is None:
            return None
        return one.decode_tokens_per_second * one.size_bytes / self.planned.size_bytes


def candidates(
    teacher: Teacher, wanted: Wanted, *, sets: Sequence[str] = (), threads: int | None = None
) -> list[Candidate]:
    """Every shipped recipe with this teacher: first those that may do, the most promising first.

    Args:
        teacher: as fetched, to be pinned by what was found.
        wanted: the limits.
        sets: what is laid over each recipe besides, as `--set`.
        threads: that will compute.

    Raises:
        ModelError: the teacher is missing, broken or unsupported.
        RecipeError: `sets` fit no recipe.
    """
    found, laid = _still_true(catalogue.read()), (*_pins(teacher), *sets)
    made = [_candidate(name, wanted, laid, threads, found) for name in library.names("recipes")]
    if sets and not any(one.located for one in made):
        locate(_meant(sets), sets)  # tells what is wrong with them
    able = [one for one in made if not one.why_not]
    return [*_sorted(able, wanted), *(one for one in made if one.why_not)]


def _meant(sets: Sequence[str]) -> str:
    """The first recipe with the stages that `sets` speak of; others say that they have none."""

    def refused(name: str) -> int:
        source, count = read(text_of(find(name)), name), 0
        for assignment in sets:
            try:
                assign(source, assignment)
            except RecipeError:
                count += 1
        return count

    return min((name for name in library.names("recipes") if name not in _NOT_FOR_USE), key=refused)


def _still_true(found: Catalogue) -> Catalogue:
    """Without what was measured of recipes before they were changed."""
    old = catalogue.changed(found)
    kept = {name: one for name, one in found.recipes.items() if name not in old}
    return replace(found, recipes=kept)


def _pins(teacher: Teacher) -> list[str]:
    """What names this very teacher in a recipe."""
    pins = {"model": teacher.name, "revision": teacher.revision, "sha256": teacher.source_sha256}
    return list(spelled({"teacher": {field: value for field, value in pins.items() if value}}))


def _candidate(
    name: str, wanted: Wanted, sets: Sequence[str], threads: int | None, found: Catalogue
) -> Candidate:
    if name in _NOT_FOR_USE:
        return Candidate(name, why_not=_NOT_FOR_USE[name])
    laid = (*_limits(name, wanted), *sets)
    try:
        located = locate(name, laid)
        planned = plan.make(
            located.recipe,
            headers.of_recipe(located.recipe),
            cache=library.cache_folder(),
            threads=threads,
            places=located.places,
        )
    except ModelError:
        raise
    except (RecipeError, RequestError) as error:
        return Candidate(name, laid, why_not=_first(error))
    runs = next(one for one in planned.consumers if one.name == _RUNTIME)
    why_not = _beyond(planned.size, wanted)
    if wanted.min_speed is not None and not runs.loads:
        why_not = f"our runtime does not open it: {'; '.join(runs.reasons)}"
    measured = _measured(located, planned.size, found)
    return Candidate(name, laid, located, planned.size, measured, why_not)


def _limits(name: str, wanted: Wanted) -> list[str]:
    """The limits as the recipe itself keeps them: gates, and the budget of one that has one."""
    gates = {}
    if wanted.max_size_bytes is not None:
        gates["size_max"] = in_words(wanted.max_size_bytes)
    if wanted.max_kl is not None:
        gates["kl_mean_max"] = repr(wanted.max_kl)
    told = ", ".join(f"{gate}: {limit}" for gate, limit in gates.items())
    laid = [f"evaluate.gates={{{told}}}"] if gates else []
    allocate = locate(name).recipe.allocate
    if allocate is None or allocate.parsed.nbytes is None:
        return laid
    if wanted.max_size_bytes is not None:
        amount = f"{wanted.max_size_bytes / 1e6:.6f}".rstrip("0").rstrip(".")
        return [*laid, f'allocate.budget="{amount} MB"']
    if wanted.max_kl is not None:
        return [*laid, f"allocate.budget={{kl_mean_max: {wanted.max_kl!r}}}"]
    return laid


def _beyond(size: Size, wanted: Wanted) -> str:
    """Why a planned size cannot do; "" where it can, or may, once its bits are shared out."""
    limit, least = wanted.max_size_bytes, size.least_bytes if size.at_most else size.size_bytes
    if limit is None or least is None or least <= limit:
        return ""
    return f"takes {'at least ' if size.at_most else ''}{numbers.size(least)}"


def _measured(located: Located, size: Size, found: Catalogue) -> Measurement | None:
    """What the catalogue says of a recipe; nothing of one that has less room than it had there."""
    one = found.recipes.get(located.recipe.resolved.recipe or "")
    allocate = located.recipe.allocate
    if one is None or allocate is None or found.dense is None:
        return one
    if allocate.parsed.nbytes is None and allocate.parsed.kl_mean is None:
        return one
    before = one.size_bytes / found.dense.size_bytes
    return one if size.size_bytes / size.before_bytes >= before else None


def _sorted(able: Sequence[Candidate], wanted: Wanted) -> list[Candidate]:
    """The most promising first; those that are only small enough if bits are saved come last.

    Where only quality is limited, the smallest that kept the limits in the catalogue leads, else
    the one closest to its teacher; then those that missed them, the nearest first; then what was
    not measured, the largest first, which keeps most.
    """
    most = wanted.max_size_bytes
    smallest = wanted.max_kl is not None and most is None

    def key(one: Candidate) -> tuple[float, ...]:
        size = one.planned.size_bytes if one.planned else 0
        beyond = most is not None and size > most
        if one.kl is None:
            return (beyond, 2, -size)
        over = excess(wanted, size_bytes=0, kl=one.kl, speed=one.speed)
        if over > 1:
            return (beyond, 1, over, one.kl)
        return (beyond, 0, size, one.kl) if smallest else (beyond, 0, one.kl, size)

    return sorted(able, key=key)


def _first(error: RequestError) -> str:
    """The first mistake of a message, without the place where it was found."""
    told = error.mistakes[0] if isinstance(error, RecipeError) else str(error)
    first = told.splitlines()[0]
    return re.sub(r"^stages\[\d+\]\.", "", first.partition("  ")[2] or first)


def over(one: Candidate, wanted: Wanted) -> float:
    """How far the planned size of a candidate is beyond what is wanted; infinite if unknown."""
    if one.planned is None:
        return math.inf
    return one.planned.size_bytes / (wanted.max_size_bytes or one.planned.size_bytes)
