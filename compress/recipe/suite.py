"""What a model is judged by: held-out text, tasks, prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from compress import library
from compress.errors import RecipeError
from compress.recipe.mistakes import describe
from compress.recipe.quantize import STRICT
from compress.recipe.source import mapping_with_places

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


def _beside(text: Text, suite: Path) -> Text:
    """A set that holds a separator is a path relative to the suite's own file."""
    if not library.is_path(text.set):
        return text
    return text.model_copy(update={"set": str((suite.parent / text.set).resolve())})
