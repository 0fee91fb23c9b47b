"""Which linears a recipe names: globs on dotted names, ``re:`` expressions, ``Linear`` for all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

ALL_LINEARS = "Linear"  # the class name by which llm-compressor's recipes mean every linear
HEAD = "lm_head"  # means the head of any family, whatever its tensors are called
_REGEX = "re:"


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` names the linear `name`.

    A glob's ``*`` crosses dots, so ``*.down_proj`` is the down projection of every block. ``re:``
    matches from the start of the name and need not reach its end, as in llm-compressor.
    """
    if pattern.startswith(_REGEX):
        return re.match(pattern.removeprefix(_REGEX), name) is not None
    return pattern == ALL_LINEARS or fnmatchcase(name, pattern)


def any_matches(patterns: Iterable[str], name: str) -> bool:
    """Whether at least one pattern names the linear `name`."""
    return any(matches(pattern, name) for pattern in patterns)


def fault(pattern: str) -> str | None:
    """What is wrong with a pattern as such, or None."""
    if not pattern.startswith(_REGEX):
        return None if pattern.strip() else "an empty pattern names nothing"
    try:
        re.compile(pattern.removeprefix(_REGEX))
    except re.error as error:
        return f"not a regular expression ({error})"
    return None
