"""A student that begins as another model than its teacher: what the two must share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from compress.anatomy import Anatomy
from compress.plan.naming import Found
from compress.recipe.schema import Recipe
from compress.teacher.beginning import MOST_FILLING
from compress.teacher.headers import Headers


class Model(Protocol):
    """A model as a plan sees it: headers, or a teacher."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its ``config.json``."""

    @property
    def anatomy(self) -> Anatomy:
        """Its anatomy."""


def mistakes(recipe: Recipe, begun: Anatomy, teacher: Model | None) -> Found:
    """Vocabularies that differ; `begun` is what the student begins as.

    Whether the tokenizers spell alike is seen when both are here: see `teacher.spelling`.
    """
    if recipe.student is None or teacher is None:
        return
    ours, theirs = begun.vocab_size, teacher.anatomy.vocab_size
    if ours != theirs:
        yield (
            ("student", "model"),
            f"{recipe.student.told} has a vocabulary of {ours:,} and the teacher one of "
            f"{theirs:,}: what both expect next is compared token by token. Choose a model with "
            "the teacher's vocabulary; one that is only filled up to another length may differ by "
            f"{MOST_FILLING:,}.",
        )


def notes(recipe: Recipe, headers: Headers) -> Iterator[str]:
    """What the student begins as."""
    if recipe.student is None:
        return
    found = headers.anatomy
    weights = found.weights + found.head.weights * (1 if found.tied else 2)
    made = recipe.student.config is not None
    spelled = "its tokenizer is the teacher's" if made else (
        "its tokenizer is held against the teacher's when the run begins"
    )  # fmt: skip
    yield (
        f"the student begins as {headers.name}: {found.model_type}, {len(found.blocks)} "
        f"blocks, {weights / 1e6:,.1f} M weights; {spelled}"
    )
    if before := headers.fitted_from:
        now = found.vocab_size
        how = f"filled up with {now - before:,}" if now > before else f"cut by {before - now:,}"
        yield (
            f"the student's vocabulary of {before:,} rows is {how} to the teacher's {now:,}; "
            "whether every token has a row in both is seen when the run begins"
        )
