"""Many recipes under one budget: every field of a sweep, and a sweep's file → `Sweep`.

What it says of recipes (does a field exist? does a combination make sense?) is asked in
`compress.sweep.candidates`, which makes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compress import library
from compress.errors import RecipeError, shown
from compress.recipe.gates import Size, in_bytes
from compress.recipe.mistakes import belongs_to, describe
from compress.recipe.quantize import STRICT
from compress.recipe.schema import Recipe
from compress.recipe.source import Mistake, Places, read, text_of

Objective = Literal["size", "kl_mean", "perplexity", "decode"]
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_DURATION = r"^\d{1,6}(\.\d{1,3})? ?(s|min|h)$"


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values of which each makes a trial of its own."""
    told = [json.dumps(value, ensure_ascii=False, default=str) for value in values]
    if twice := next((one for one in told if told.count(one) > 1), None):
        raise ValueError(f"{shown(twice)} is named twice. Name it once.")
    return values


_Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(strict=False, min_length=1),
    AfterValidator(_once),
]
_Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1), AfterValidator(_once)]


class Dimension(BaseModel):
    """What a search may choose for one field: some values, or anything from low to high."""

    model_config = STRICT

    values: _Values | None = Field(
        default=None, description="The values themselves.", examples=["[none, mse]"]
    )
    low: int | float | None = Field(default=None, description="The least.", examples=[0.001])
    high: int | float | None = Field(default=None, description="The most.", examples=[0.1])
    log: bool = Field(default=False, description="Draw evenly among the logarithms.")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Dimension:
        if self.values is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError("values, and a range too. Leave one of them out.")
            return self
        if self.low is None or self.high is None:
            raise ValueError("says neither values nor low and high. For example {low: 1, high: 8}.")
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}. Swap them.")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm. Raise it, or leave out log.")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Of a range: the least and the most."""
        return self.low or 0, self.high or 0

    @property
    def whole(self) -> bool:
        """Whether a range is one of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def count(self) -> float:
        """How many values there are to choose from; of real numbers there is no end."""
        if self.values is not None:
            return len({json.dumps(value) for value in self.values})
        low, high = self.ends
        return high - low + 1 if self.whole else math.inf

    def holds(self, value: Any) -> bool:
        """Whether a value may be chosen."""
        if self.values is not None:
            return json.dumps(value) in {json.dumps(one) for one in self.values}
        low, high = self.ends
        return type(value) in ((int,) if self.whole else (int, float)) and low <= value <= high


class Budget(BaseModel):
    """What an artifact may take at most, what it must reach, and how long the sweep may begin."""

    model_config = STRICT

    size: Size | None = Field(
        default=None,
        description="Largest artifact, in B, KB, MB or GB. Trials planned larger are not run.",
        examples=["80 MB"],
    )
    kl_mean: float | None = Field(
        default=None, gt=0, description="Largest mean KL to the teacher, in nats.", examples=[0.05]
    )
    decode: float | None = Field(
        default=None,
        gt=0,
        description="Fewest tokens per second, one prompt at a time, on the threads of a trial.",
        examples=[100],
    )
    wall_clock: str | None = Field(
        default=None,
        pattern=_DURATION,
        description="After it no trial begins, and those at work are cut; the same command goes "
        "on with them. In s, min or h.",
        examples=["30 min"],
    )

    @field_validator("wall_clock")
    @classmethod
    def _leaves_time(cls, value: str | None) -> str | None:
        if value is not None and not _seconds(value):
            raise ValueError(f'"{value}" leaves time for nothing. For example wall_clock: 30 min')
        return value

    @property
    def size_bytes(self) -> int | None:
        """`size` as a number of bytes."""
        return None if self.size is None else in_bytes(self.size)

    @property
    def seconds(self) -> float | None:
        """`wall_clock` as a number of seconds."""
        return None if self.wall_clock is None else _seconds(self.wall_clock)


def _seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", duration).groups()  # type: ignore[union-attr]
    return float(number) * _SECONDS[unit]


def _listed(value: Any) -> Any:
    """A list of values is short for a dimension of them."""
    if not isinstance(value, Mapping):
        return value
    return {key: {"values": one} if isinstance(one, list) else one for key, one in value.items()}


class Sweep(BaseModel):
    """Recipes, what is varied in them, and what is looked for."""

    model_config = STRICT

    version: Literal[1] = Field(description="Version of this schema.", examples=[1])
    description: str = Field(default="", description="What it is for.")
    recipes: _Names = Field(
        description="A recipe, or several: shipped names or paths.", examples=["w4g64-rtn"]
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields that are the same in all trials, dotted as for `--set`.",
        examples=["{calibration.samples: 16}"],
    )
    grid: dict[str, _Values] = Field(
        default_factory=dict,
        description="Fields, dotted, each with its values: every combination is a trial.",
        examples=["{quantize.bits: [4, 8]}"],
    )
    search: Annotated[dict[str, Dimension], BeforeValidator(_listed)] = Field(
        default_factory=dict,
        description="Fields, dotted, each with values or a range {low, high, log}, of which a "
        "sampler chooses.",
        examples=["{quantize.damp_percent: {low: 0.001, high: 0.1, log: true}}"],
    )
    trials: int | None = Field(
        default=None, ge=1, le=10_000, validate_default=True, examples=[20],
        description="How many a search tries.",
    )  # fmt: skip
    sampler: Literal["tpe", "random"] = Field(
        default="tpe", description="How a search chooses: by what it has seen, or at random."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the sampler.")
    budget: Budget = Field(default=Budget(), description="What the best must keep within.")
    objective: Objective = Field(
        description="What the best of those within the budget is best at.", examples=["size"]
    )
    workers: int | None = Field(
        default=None, ge=1, le=4096, examples=[2],
        description="Trials at once; by default as cores allow.",
    )  # fmt: skip
    threads: int = Field(
        default=1, ge=1, le=1024, description="Of each trial; part of its identity."
    )

    @field_validator("search")
    @classmethod
    def _is_one_of_both(
        cls, value: dict[str, Dimension], info: ValidationInfo
    ) -> dict[str, Dimension]:
        if value and info.data.get("grid"):
            raise ValueError("a grid is given too. Leave one of them out.")
        return value

    @field_validator("trials")
    @classmethod
    def _has_a_search(cls, value: int | None, info: ValidationInfo) -> int | None:
        search = info.data.get("search")
        if search and value is None:
            raise ValueError("missing: a search ends after so many. For example trials: 20")
        if search == {} and value is not None:
            raise ValueError(f"{value}, but only a search has a number of them. Leave it out.")
        return value

    @property
    def most(self) -> float:
        """How many trials differ that a search can choose."""
        return len(set(self.recipes)) * math.prod(one.count for one in self.search.values())


@dataclass(frozen=True)
class LocatedSweep:
    """A sweep, its name, and where each part of it was written."""

    sweep: Sweep
    name: str
    places: Places


def load(argument: str) -> LocatedSweep:
    """Read a sweep by its shipped name or its path.

    Args:
        argument: a path where it ends in .yaml or .yml or holds a separator, else a shipped name.

    Raises:
        RecipeError: every mistake found, with its file and line.
    """
    try:
        path = library.find("sweeps", argument)
    except LookupError as error:
        raise RecipeError([str(error)]) from error
    source = read(text_of(path), _display(path))
    if not isinstance(source.data, dict):
        raise RecipeError([f"{source.places.name}  holds no mapping. A sweep begins version: 1."])
    if fields := belongs_to(source.data, Recipe, Sweep):
        raise RecipeError(
            [
                f"{source.places.name}  is a recipe, by its {fields}. `compress apply` takes it; a "
                "sweep names it under recipes."
            ]
        )
    mistakes, sweep = list(source.mistakes), None
    try:
        sweep = Sweep.model_validate(source.data)
    except ValidationError as error:
        mistakes += describe(error, source.places, Sweep)
    mistakes += _both(source.data, source.places)
    if mistakes or sweep is None:
        raise RecipeError([text for _, text in sorted(dict.fromkeys(mistakes))])
    return LocatedSweep(sweep, path.stem, source.places)


def _both(data: Mapping[str, Any], places: Places) -> list[Mistake]:
    """Fields that are fixed and varied at once."""
    sections = {name: data.get(name) for name in ("set", "grid", "search")}
    keys = {name: one if isinstance(one, dict) else {} for name, one in sections.items()}
    twice = [(name, key) for name in ("grid", "search") for key in keys[name] if key in keys["set"]]
    return [
        (places.order(loc), f"{places.label(loc)}  {'.'.join(loc)}: is fixed under set too. Leave "
         "one of them out.")
        for loc in twice
    ]  # fmt: skip


def _display(path: Path) -> str:
    working = Path.cwd()
    return str(path.relative_to(working) if path.is_relative_to(working) else path)
