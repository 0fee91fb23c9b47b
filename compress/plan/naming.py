"""How mistakes name linears: one of them, the others by their kinds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence

from compress.anatomy import Linear
from compress.recipe.patterns import HEAD, matches
from compress.recipe.source import Loc

Found = Iterator[tuple[Loc, str]]


def matching_nothing(loc: Loc, pattern: str, names: Sequence[str]) -> Found:
    """A pattern that names none of these linears."""
    if any(matches(pattern, name) for name in names):
        return
    if matches(pattern, HEAD):
        yield loc, f"{pattern!r} names the head, which is no block linear. Write head: 8 instead."
        return
    suffixes = dict.fromkeys(f"*.{name.rpartition('.')[2]}" for name in names)
    yield loc, f"{pattern!r} matches no linear. Names end in {', '.join(suffixes) or 'nothing'}."


def deciding_nothing(
    loc: Loc, overrides: Iterable[str], decisive: Container[str | None], names: Sequence[str]
) -> Found:
    """Patterns of overrides that decide for none of these linears."""
    for pattern in overrides:
        place = (*loc, "overrides", pattern)
        if pattern in decisive:
            continue
        if any(matches(pattern, name) for name in names):
            yield place, "decides nothing: patterns above it name the same linears. Move it up."
        else:
            yield from matching_nothing(place, pattern, names)


def by_inputs(linears: Sequence[Linear]) -> str:
    """The inputs of linears, and which have as many."""
    by_width: dict[int, list[Linear]] = {}
    for linear in linears:
        by_width.setdefault(linear.in_features, []).append(linear)
    return ", ".join(f"{width} of {named(group)}" for width, group in by_width.items())


def named(linears: Sequence[Linear]) -> str:
    """Name one linear and count the others, by their last names."""
    if len(linears) == 1:
        return linears[0].name
    kinds = Counter(linear.name.rpartition(".")[2] for linear in linears)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    more = len(linears) - 1
    return f"{linears[0].name} and {more} more linear{'s' if more > 1 else ''} ({listed})"
