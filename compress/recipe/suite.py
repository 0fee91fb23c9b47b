"""What a model is judged by: held-out text, tasks, prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from compress import library
from compress.errors import RecipeError
from compress.recipe.gates import Gates
from compress.recipe.mistakes import describe
from compress.recipe.quantize import STRICT
from compress.recipe.source import mapping_with_places

if TYPE_CHECKING:
    from compress.recipe.schema import Recipe

_Names = Annotated[tuple[str, ...], Field(strict=False)]
_Prompts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]


class Text(BaseModel):
    """Windows of one held-out text."""

    model_config = STRICT

    set: str = Field(min_length=1, description="A calibration set, or a path beside the suite.")
    split: str | None = Field(default=None, description="Of a hub set: the split to read.")
    seq_len: int = Field(ge=8, le=131_072, description="Tokens in each window.")
    windows: int = Field(ge=1, le=100_000, description="Windows, from the beginning.")


class Samples(BaseModel):
    """Prompts that teacher and student both answer, greedily."""

    model_config = STRICT

    prompts: _Prompts = Field(description="Raw text, or what a user says where there is a chat.")
    max_new_tokens: int = Field(ge=1, le=4096, description="Length of each answer.")


class Suite(BaseModel):
    """One way to judge a model."""

    model_config = STRICT

    version: Literal[1] = Field(description="Version of this schema.", examples=[1])
    description: str = Field(default="", description="What it is for, and what it costs.")
    perplexity: Text = Field(description="Text for perplexity.")
    divergence: Text = Field(description="Text for KL divergence and agreement.")
    tasks: _Names = Field(default=(), description="Tasks that ship with compress.")
    lm_eval_tasks: _Names = Field(
        default=(), description="Tasks of lm-eval by its names; need a hub."
    )
    limit: int | None = Field(default=None, ge=1, description="Items of each task; null for all.")
    samples: Samples | None = Field(default=None, description="Answers shown side by side.")


def load_suite(argument: str) -> Suite:
    """Read a suite by its shipped name or its path, sets made absolute.

    Raises:
        RecipeError: it is missing, or holds mistakes; all of them are named.
    """
    try:
        path = library.find("eval", argument)
    except LookupError as error:
        raise RecipeError([f"evaluate.suite: {error}"]) from error
    data, places = mapping_with_places(path)
    try:
        suite = Suite.model_validate(data)
    except ValidationError as error:
        raise RecipeError([text for _, text in sorted(describe(error, places, Suite))]) from error
    texts = {name: _beside(getattr(suite, name), path) for name in ("perplexity", "divergence")}
    return suite.model_copy(update=texts)


def suite_of(recipe: Recipe) -> Suite | None:
    """The suite that a recipe asks for, on the text that it names; None where it asks for none.

    Raises:
        RecipeError: as `load_suite`.
    """
    if recipe.evaluate.suite == "none":
        return None
    suite = load_suite(recipe.evaluate.suite)
    if recipe.evaluate.text is None:
        return suite
    change = {"set": recipe.evaluate.text, "split": None}
    texts = {
        name: getattr(suite, name).model_copy(update=change)
        for name in ("perplexity", "divergence")
    }
    return suite.model_copy(update=texts)


def unmeasured(gates: Gates, suite: Suite) -> Iterator[tuple[str, str]]:
    """The limits that a suite measures nothing for, by name, each with what to do."""
    if gates.accuracy_drop_max is not None and not (suite.tasks or suite.lm_eval_tasks):
        yield "accuracy_drop_max", "the suite has no tasks. Choose one that has, or leave this out."
    if gates.generation and not (suite.samples and suite.samples.prompts):
        yield "generation", "the suite has no samples. Give it prompts, or leave this out."


def _beside(text: Text, suite: Path) -> Text:
    """A set that holds a separator is a path relative to the suite's own file."""
    if not library.is_path(text.set):
        return text
    return text.model_copy(update={"set": str((suite.parent / text.set).resolve())})
