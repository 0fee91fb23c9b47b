"""A student that is yet to be made: of its teacher, or of another model with its tokenizer.

What it would be, from configs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress import anatomy as anatomies
from compress.anatomy import Anatomy
from compress.errors import RecipeError
from compress.recipe.mistakes import dotted
from compress.recipe.source import Loc, Places
from compress.recipe.student import Student
from compress.shape import cut_tensors, shape_of
from compress.smaller import flaws, remains, smaller_config

MOST_FILLING = 1024  # rows by which vocabularies of one tokenizer differ where they only fill up


def check(
    spec: Student, config: Mapping[str, Any], anatomy: Anatomy, places: Places | None = None
) -> None:
    """Check that a teacher's family has models of such sizes.

    Args:
        spec: with a `config`.
        config: the teacher's.
        anatomy: its own.
        places: where the recipe's parts were written.

    Raises:
        RecipeError: every mistake found.
    """
    given, places = spec.config.given if spec.config else {}, places or Places("recipe")
    wrong = flaws(config, anatomy, given, sliced=spec.init == "sliced")
    found = sorted(
        ((_place(name, given), text) for name, text in wrong), key=lambda m: places.order(m[0])
    )
    if found:
        raise RecipeError([f"{places.label(loc)}  {dotted(loc)}: {text}" for loc, text in found])


def _place(name: str, given: Mapping[str, int]) -> Loc:
    return ("student", "config", name) if name in given else ("student", "config")


def described(
    spec: Student, config: Mapping[str, Any], anatomy: Anatomy
) -> tuple[dict[str, Any], Anatomy]:
    """Config and anatomy of a student whose sizes were checked."""
    given = spec.config.given if spec.config else {}
    made = smaller_config(config, anatomy, given, sliced=spec.init == "sliced")
    before = shape_of(config, anatomy)
    left = cut_tensors(anatomy, before, remains(config, anatomy, given))
    return made, anatomies.read(made, {name: shape for name, (_, shape) in left.items()})


def filled_otherwise(vocab_size: int, teachers: int) -> bool:
    """Whether two vocabularies may be of one tokenizer, filled up to lengths that differ."""
    return 0 < abs(vocab_size - teachers) <= MOST_FILLING


def fitted(
    config: Mapping[str, Any], anatomy: Anatomy, vocab_size: int
) -> tuple[dict[str, Any], Anatomy]:
    """Config and anatomy of a model whose vocabulary is cut or filled to another length."""
    made = {**config, "vocab_size": vocab_size}
    padding = made.get("pad_token_id")
    if isinstance(padding, int) and padding >= vocab_size:  # of a row that is cut: no token's
        made["pad_token_id"] = None
    rows = rows_of_tokens(anatomy)
    shapes = {
        name: (vocab_size, *shape[1:]) if name in rows else shape
        for name, shape in anatomy.tensors.items()
    }
    return made, anatomies.read(made, shapes)


def rows_of_tokens(anatomy: Anatomy) -> frozenset[str]:
    """Names of the tensors that have a row for each token: embedding, head and its bias."""
    head = anatomy.head.name
    return frozenset({f"{anatomy.embedding}.weight", f"{head}.weight", f"{head}.bias"})
