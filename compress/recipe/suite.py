"""What a model is judged by: held-out text, tasks, prompts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from compress import library
from compress.errors import RecipeError
from compress.recipe import source
from compress.recipe.schema import Section


class Text(Section):
    """Windows of one held-out text."""

    set: str = Field(min_length=1, description="A calibration set, or a path beside the suite.")
    split: str | None = Field(None, description="Of a hub set: the split to read.")
    seq_len: int = Field(ge=8, le=131_072, description="Tokens in each window.")
    windows: int = Field(ge=1, le=100_000, description="Windows, from the beginning.")


class Samples(Section):
    """Prompts that teacher and student both answer, greedily."""

    prompts: list[str] = Field(description="Raw text, or what a user says where there is a chat.")
    max_new_tokens: int = Field(ge=1, le=4096, description="Length of each answer.")


class Suite(Section):
    """One way to judge a model."""

    version: int = Field(ge=1, le=1, description="Version of this schema.")
    description: str = Field("", description="What it is for, and what it costs.")
    perplexity: Text = Field(description="Text for perplexity.")
    divergence: Text = Field(description="Text for KL divergence and agreement.")
    tasks: list[str] = Field([], description="Tasks that ship with compress.")
    lm_eval_tasks: list[str] = Field([], description="Tasks of lm-eval by its names; need a hub.")
    limit: int | None = Field(None, ge=1, description="Items of each task; null for all.")
    samples: Samples | None = Field(None, description="Answers shown side by side.")


def load_suite(argument: str) -> Suite:
    """Read a suite by its shipped name or its path, sets made absolute.

    Raises:
        RecipeError: it is missing, or holds mistakes; all of them are named.
    """
    try:
        path = library.find("eval", argument)
        text = path.read_text(encoding="utf-8")
    except LookupError as error:
        raise RecipeError([f"evaluate.suite: {error}"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read as text ({error})."]) from error
    found = source.read(text, str(path))
    mistakes = [message for _, message in found.mistakes]
    try:
        suite = None if mistakes else Suite.model_validate(found.data)
    except ValidationError as error:
        mistakes = [_told(path, found.places, mistake) for mistake in error.errors()]
    if mistakes or suite is None:
        raise RecipeError(mistakes)
    return suite.model_copy(
        update={
            "perplexity": _beside(suite.perplexity, path),
            "divergence": _beside(suite.divergence, path),
        }
    )


def _told(path: Path, places: source.Places, mistake: object) -> str:
    loc = tuple(mistake["loc"])  # type: ignore[index]
    where = ".".join(map(str, loc))
    return f"{places.label(loc)}  {where}: {mistake['msg']}. See eval/README.md."  # type: ignore[index]


def _beside(text: Text, suite: Path) -> Text:
    """A set that holds a separator is a path relative to the suite's own file."""
    if not library.is_path(text.set):
        return text
    return text.model_copy(update={"set": str((suite.parent / text.set).resolve())})
