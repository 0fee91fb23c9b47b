"""The stages of a recipe, and stages that are done over and over, each time with more zeros.

Source of the schedule: Zhu and Gupta 2017, arXiv:1710.01878, equation 1, from no zeros on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compress.recipe.allocate import Allocate
from compress.recipe.distill import Distill
from compress.recipe.kv_cache import KVCache
from compress.recipe.prune import Prune, Sparsity
from compress.recipe.quantize import STRICT, Quantize
from compress.recipe.restructure import Restructure
from compress.recipe.rotate import Rotate
from compress.recipe.source import Loc

Spec = Allocate | Distill | KVCache | Prune | Quantize | Restructure | Rotate
_POWERS = {"cubic": 3, "linear": 1}  # of the share of rounds yet to come
_DIGITS = 4  # of a sparsity of the schedule: it is read in the lock
_REPEATED = ("prune", "distill")


class Stage(BaseModel):
    """One step from teacher to student: a mapping with one key, the name of the stage."""

    model_config = STRICT

    rotate: Rotate | None = Field(
        default=None,
        description="Turn the teacher round inside, so that it says the same; the first stage.",
        examples=["{residual: none, values: hadamard}"],
    )
    restructure: Restructure | None = Field(
        default=None,
        description="Take whole blocks, heads or channels away, and repair what is left.",
        examples=["{ffn: 0.75}"],
    )
    prune: Prune | None = Field(
        default=None,
        description="Set weights to zero.",
        examples=["{method: sparsegpt, sparsity: 0.5}"],
    )
    distill: Distill | None = Field(
        default=None,
        description="Train what earlier stages left on what the teacher says.",
        examples=["{epochs: 1, text: {set: wikitext2, samples: 1024}}"],
    )
    quantize: Quantize | None = Field(
        default=None,
        description="Round weights to few bits.",
        examples=["{method: gptq, bits: 4, group_size: 64}"],
    )
    allocate: Allocate | None = Field(
        default=None,
        description="Share bits out among linears under a budget, for the next stage.",
        examples=['{budget: "3.7 bits"}'],
    )
    kv_cache: KVCache | None = Field(
        default=None,
        description="Round the keys and values that a runtime caches; the last stage.",
        examples=["{numbers: int8}"],
    )

    @model_validator(mode="after")
    def _is_one(self) -> Stage:
        known = type(self).model_fields
        given = [name for name in known if getattr(self, name) is not None]
        if len(given) != 1 or len(self.model_fields_set) != 1:
            found = ", ".join(sorted(self.model_fields_set)) or "nothing"
            names = " or ".join(known)
            raise ValueError(f"holds {found}. A stage is a mapping with one key, {names}.")
        return self

    @property
    def name(self) -> str:
        """Which stage it is."""
        (name,) = self.model_fields_set
        return name

    @property
    def spec(self) -> Spec:
        """Its fields."""
        found: Spec = getattr(self, self.name)
        return found


def _listed_or_named(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "name"


class Repeat(BaseModel):
    """Prune a little more each round, and heal: stages that are done several times in a row."""

    model_config = STRICT

    times: int = Field(ge=2, le=100, description="Rounds.", examples=[3])
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        min_length=1,
        description="Stages `prune` and `distill`, as elsewhere. Those that train read their "
        "text in another order each round.",
    )
    schedule: Annotated[
        Annotated[Literal["cubic", "linear"], Tag("name")]
        | Annotated[tuple[Sparsity, ...], Field(strict=False), Tag("list")],
        Discriminator(_listed_or_named),
    ] = Field(
        default="cubic",
        description="How the sparsity of `prune` rises to what it asks for in the last round: "
        "`cubic`, much at first and ever less (1 - (1 - t/times)³ of it in round t; Zhu and "
        "Gupta); `linear`; or a list of one for each round, rising. A pattern n:m is the same in "
        "every round.",
        examples=["cubic"],
    )

    @field_validator("stages")
    @classmethod
    def _can_be_repeated(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in value]
        if other := next((name for name in names if name not in _REPEATED), None):
            raise ValueError(
                f"{other} is done once. Put it in front of repeat or behind it; repeat takes "
                f"{' and '.join(_REPEATED)}."
            )
        if names.count("prune") != 1 or "distill" not in names:
            raise ValueError(
                f"{', '.join(names)}. A round prunes once and heals what it pruned: give one "
                "prune, and distill."
            )
        return value

    @field_validator("schedule")
    @classmethod
    def _rises_to_the_end(
        cls, value: str | tuple[float, ...], info: ValidationInfo
    ) -> str | tuple[float, ...]:  # not called for defaults
        asked = [stage.prune.sparsity for stage in info.data.get("stages", ()) if stage.prune]
        if asked == [None]:
            raise ValueError("a pattern is the same in every round. Leave it out.")
        if isinstance(value, str) or "times" not in info.data or not asked:
            return value
        if len(value) != info.data["times"]:
            raise ValueError(
                f"{len(value)} sparsities for {info.data['times']} rounds. Give one for each."
            )
        if list(value) != sorted(set(value)):
            raise ValueError("does not rise. Give each round more zeros than the one before it.")
        if value[-1] != asked[0]:
            raise ValueError(
                f"ends at {value[-1]:g}, and prune asks for {asked[0]:g}. Let both be the same."
            )
        return value

    def rounds(self) -> Iterator[Stage]:
        """The stages as they are done, one after another."""
        for number in range(self.times):
            yield from (self._in_round(stage, number) for stage in self.stages)

    def _in_round(self, stage: Stage, number: int) -> Stage:
        if stage.distill:
            seed = (stage.distill.seed + number) % 2**32
            return Entry(distill=stage.distill.model_copy(update={"seed": seed}))
        if stage.prune is None or stage.prune.sparsity is None:
            return Entry.model_validate({stage.name: stage.spec})
        share = self._share(number, stage.prune.sparsity)
        overrides = {
            pattern: one.model_copy(update={"sparsity": _some(one.sparsity, share)})
            for pattern, one in stage.prune.overrides.items()
        }
        now = {"sparsity": _some(stage.prune.sparsity, share), "overrides": overrides}
        return Entry(prune=stage.prune.model_copy(update=now))

    def _share(self, number: int, asked: float) -> float:
        """Of the zeros asked for, those of a round."""
        if not isinstance(self.schedule, str):
            return self.schedule[number] / asked
        left = 1 - (number + 1) / self.times
        return float(1 - left ** _POWERS[self.schedule])


def _some(sparsity: float | None, share: float) -> float | None:
    """A share of a sparsity, as it is written down."""
    return None if sparsity is None else max(round(share * sparsity, _DIGITS), 10**-_DIGITS)


class Entry(Stage):
    """What stands in the list of stages: one of them, or some that are repeated."""

    repeat: Repeat | None = Field(
        default=None,
        description="Prune a little more each round and heal what is left, several times.",
        examples=["{times: 3, stages: [{prune: {sparsity: 0.7}}, {distill: {}}]}"],
    )


def spelled_out(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Every stage once for each time that it is done."""
    found = list[Entry]()
    for entry in entries:
        rounds = entry.repeat.rounds() if entry.repeat else [entry]
        found += [Entry.model_validate({one.name: one.spec}) for one in rounds]
    return tuple(found)


def written(stages: Any) -> list[tuple[Loc, Any]]:
    """What stands for a stage in the data of a recipe, and where, repeated ones inside.

    Args:
        stages: the list of stages as it was read; whatever it is.
    """
    found = list[tuple[Loc, Any]]()
    for index, entry in enumerate(stages if isinstance(stages, list) else []):
        found.append((("stages", index), entry))
        repeat = entry.get("repeat") if isinstance(entry, dict) else None
        inner = repeat.get("stages") if isinstance(repeat, dict) else None
        for number, stage in enumerate(inner if isinstance(inner, list) else []):
            found.append((("stages", index, "repeat", "stages", number), stage))
    return found


def origins(stages: Sequence[Mapping[str, Any]]) -> list[Loc]:
    """Where each stage of a valid recipe was written, by its number once all are spelled out."""
    found = list[Loc]()
    for index, entry in enumerate(stages):
        repeat = entry.get("repeat")
        if repeat is None:
            found.append(("stages", index))
        else:
            inner = range(len(repeat["stages"]))
            places: list[Loc] = [("stages", index, "repeat", "stages", n) for n in inner]
            found += places * repeat["times"]
    return found
