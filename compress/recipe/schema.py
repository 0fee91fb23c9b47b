"""Every section and field of a recipe: type, range, default, meaning. Nothing else is accepted.

Checks that need only the recipe live here and in `quantize`, each on the field at fault, so that a
mistake can name its line. What needs the model (does a group size divide a width?) is asked in
`compress.plan`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from compress.recipe.allocate import Allocate, bits_used
from compress.recipe.distill import ROUNDED, Distill, can_learn, has_text
from compress.recipe.gates import WIDTHS, Gates, LinearGate
from compress.recipe.kv_cache import HELD_BY, KVCache
from compress.recipe.methods import FLOATS
from compress.recipe.prune import Prune
from compress.recipe.quantize import STRICT, Quantize
from compress.recipe.restructure import Restructure
from compress.recipe.rotate import Rotate
from compress.recipe.sections import (
    Artifact,
    Calibration,
    Evaluate,
    Resolved,
    Teacher,
)
from compress.recipe.stages import Entry, Repeat, Stage, spelled_out
from compress.recipe.student import Student

__all__ = [
    "Allocate",
    "Artifact",
    "Calibration",
    "Distill",
    "Evaluate",
    "Gates",
    "KVCache",
    "Prune",
    "Quantize",
    "Recipe",
    "Repeat",
    "Resolved",
    "Restructure",
    "Rotate",
    "Stage",
    "Student",
    "Teacher",
    "json_schema",
]


class Recipe(BaseModel):
    """One job: a teacher, a calibration text, stages, an evaluation and an artifact."""

    model_config = STRICT

    version: Literal[1] = Field(description="Version of this schema.", examples=[1])
    teacher: Teacher = Field(description="The dense original.")
    student: Student | None = Field(
        default=None,
        description="What the student begins as, where that is another model than the teacher.",
        examples=["{config: {num_hidden_layers: 15}}"],
    )
    calibration: Calibration = Field(
        default=Calibration(), description="The text on which inputs are observed."
    )
    stages: Annotated[tuple[Entry, ...], Field(strict=False)] = Field(
        min_length=1, description="What is done, in order."
    )
    evaluate: Evaluate = Field(default=Evaluate(), description="How the student is judged.")
    artifact: Artifact = Field(default=Artifact(), description="What is written, and how.")
    resolved: Resolved = Field(
        default=Resolved(), description="What a run found out; only in lock files."
    )

    @field_validator("stages")
    @classmethod
    def _is_spelled_out(cls, value: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return spelled_out(value)  # first: those that follow look at what is really done

    @field_validator("stages")
    @classmethod
    def _is_handed_on(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        places = [index for index, stage in enumerate(value) if stage.allocate]
        for index in places:
            behind = value[index + 1].quantize if index + 1 < len(value) else None
            where = f"stages[{index}].allocate"
            if len(places) > 1:
                raise ValueError(f"{where}: a recipe has one budget. Leave one allocate.")
            if behind is None or behind.method not in ("gptq", "rtn"):
                raise ValueError(
                    f"{where}: decides the bits of the stage behind it, which must be quantize "
                    "with method gptq or rtn. Put such a stage there."
                )
            if behind.bits != Quantize.model_fields["bits"].default:
                raise ValueError(
                    f"stages[{index + 1}].quantize: asks for {behind.bits} bits, but {where} "
                    "decides them. Leave out bits (or the scheme that sets them); overrides may "
                    "give some."
                )
        return value

    @field_validator("stages")
    @classmethod
    def _folds_exactly(cls, value: tuple[Stage, ...], info: ValidationInfo) -> tuple[Stage, ...]:
        teacher = info.data.get("teacher")
        for index, stage in enumerate(value):
            smooth = stage.quantize.smooth if stage.quantize else None
            if smooth is not None and teacher and teacher.dtype == "float16":
                raise ValueError(
                    f"stages[{index}].quantize.smooth: divides weights by powers of two, and small "
                    "ones lose bits in float16. Use teacher.dtype: bfloat16 or float32."
                )
        return value

    @field_validator("stages")
    @classmethod
    def _gradients_pass(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        rounding = None
        for index, spec in enumerate(stage.quantize for stage in value):
            if rounding is not None and spec and spec.learned_rounding:
                raise ValueError(
                    f"stages[{index}].quantize.learned_rounding: gradients do not pass linears "
                    f"that round inputs, as stages[{rounding}] makes them. Move it in front."
                )
            rounding = index if spec and spec.rounds_inputs else rounding
        return value

    @field_validator("stages")
    @classmethod
    def _caches_last(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        for index, stage in enumerate(value[:-1]):
            if stage.kv_cache:
                raise ValueError(
                    f"stages[{index}].kv_cache: its scales are those of finished weights, and "
                    f"stages[{index + 1}].{value[index + 1].name} comes behind it. Move it to the "
                    "end, and have one."
                )
        return value

    @field_validator("stages")
    @classmethod
    def _turns_first(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        for index, stage in enumerate(value[1:], 1):
            if stage.rotate:
                raise ValueError(
                    f"stages[{index}].rotate: turns weights as the teacher has them, and "
                    f"stages[{index - 1}].{value[index - 1].name} comes before it. Move it to the "
                    "front, and have one."
                )
        return value

    @field_validator("stages")
    @classmethod
    def _cuts_first(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        for index, stage in enumerate(value):
            earlier = (one.name for one in value[:index])
            before = [name for name in earlier if name not in ("restructure", "rotate")]
            if stage.restructure and before:
                raise ValueError(
                    f"stages[{index}].restructure: fits weights anew, and would undo what "
                    f"{before[0]} before it did to them. Move it in front of it."
                )
        return value

    @field_validator("stages")
    @classmethod
    def _learns(cls, value: tuple[Stage, ...], info: ValidationInfo) -> tuple[Stage, ...]:
        for index, stage in enumerate(value):
            if stage.distill:
                where = f"stages[{index}].distill"
                begun = info.data.get("student") is not None
                can_learn(where, stage.distill, value[:index], begun=begun)
                has_text(where, stage.distill, info.data.get("calibration"))
        return value

    @field_validator("evaluate")
    @classmethod
    def _has_bits_to_give(cls, value: Evaluate, info: ValidationInfo) -> Evaluate:
        widest = max(WIDTHS["packed"])
        used = set().union(*_bits_used(info.data.get("stages", ())).values())
        if value.gates and value.gates.on_violation == "escalate" and used == {widest}:
            raise ValueError(
                f"gates: escalate has nothing to give: every linear has {widest} bits already. "
                "Choose fail, or ask for fewer bits."
            )
        stages = info.data.get("stages", ())
        barren = stages and not any(stage.quantize for stage in stages)
        if value.gates and value.gates.on_violation == "escalate" and barren:
            raise ValueError(
                "gates: escalate gives linears of a stage quantize more bits, and there is no such "
                "stage. Choose fail or keep_dense."
            )
        healed = any(s.distill and s.distill.train in ROUNDED for s in stages)
        if value.gates and value.gates.on_violation == "escalate" and healed:
            raise ValueError(
                "gates: escalate rounds some linears again, and scales that were trained are those "
                "of all. Choose fail or keep_dense."
            )
        floating = [
            f"stages[{index}]"
            for index, stage in enumerate(info.data.get("stages", ()))
            if stage.quantize and stage.quantize.method in FLOATS
        ]
        if value.gates and value.gates.on_violation == "escalate" and floating:
            raise ValueError(
                f"gates: escalate gives integers more bits, and {floating[0]} rounds to floating "
                "numbers. Choose fail or keep_dense."
            )
        return value

    @field_validator("evaluate")
    @classmethod
    def _holds_what_is_final(cls, value: Evaluate, info: ValidationInfo) -> Evaluate:
        limited = value.gates and value.gates.linear_error_max is not None
        for index, stage in enumerate(info.data.get("stages", ())):
            if limited and stage.quantize and stage.quantize.learned_rounding:
                raise ValueError(
                    "gates: linear_error_max holds linears as the solver leaves them, and "
                    f"stages[{index}].quantize.learned_rounding moves them behind it, each for "
                    "its block. Leave out one of them."
                )
        return value

    @field_validator("artifact")
    @classmethod
    def _format_holds_bits(cls, value: Artifact, info: ValidationInfo) -> Artifact:
        for stage, used in _bits_used(info.data.get("stages", ())).items():
            if used and value.format == "dense":
                raise ValueError(
                    f"dense holds weights and no codes, and {stage} rounds. Use packed, and "
                    "compress export for a dense copy of it."
                )
            if odd := sorted(used - {*WIDTHS[value.format]}):
                found = f"{stage} asks for {' and '.join(map(str, odd))}"
                held = WIDTHS[value.format]
                raise ValueError(
                    f"{value.format} holds {' and '.join(map(str, held))} bits, and {found}. "
                    f"Choose {' or '.join(map(str, held))} bits, or format: packed."
                )
        return value

    @field_validator("artifact")
    @classmethod
    def _format_holds_caches(cls, value: Artifact, info: ValidationInfo) -> Artifact:
        specs = [stage.kv_cache for stage in info.data.get("stages", ()) if stage.kv_cache]
        for spec in specs:
            if value.format not in (held := HELD_BY[spec.granularity]):
                raise ValueError(
                    f"format {value.format} has no place for the scales of stage kv_cache, one a "
                    f"{spec.granularity}. Use {' or '.join(held)}, or change the stage."
                )
        return value

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.calibration.seed

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage is solved from inputs of the linears."""
        measured = self.allocate is not None or self.kv_cache is not None
        measured = measured or any(spec.text is None for _, spec in self.distillations)
        solvers = (stage.quantize or stage.prune or stage.restructure for stage in self.stages)
        return measured or any(spec.needs_calibration for spec in solvers if spec)

    @property
    def quantizations(self) -> tuple[tuple[int, Quantize], ...]:
        """Every stage `quantize` with its place among the stages."""
        return tuple((i, stage.quantize) for i, stage in enumerate(self.stages) if stage.quantize)

    @property
    def prunings(self) -> tuple[tuple[int, Prune], ...]:
        """Every stage `prune` with its place among the stages."""
        return tuple((i, stage.prune) for i, stage in enumerate(self.stages) if stage.prune)

    @property
    def restructurings(self) -> tuple[tuple[int, Restructure], ...]:
        """Every stage `restructure` with its place among the stages."""
        found = enumerate(stage.restructure for stage in self.stages)
        return tuple((index, spec) for index, spec in found if spec)

    @property
    def distillations(self) -> tuple[tuple[int, Distill], ...]:
        """Every stage `distill` with its place among the stages."""
        return tuple((i, stage.distill) for i, stage in enumerate(self.stages) if stage.distill)

    def read_by(self, spec: Distill) -> Calibration:
        """The text that a stage `distill` reads."""
        return spec.text or self.calibration

    @property
    def allocate(self) -> Allocate | None:
        """The stage that shares out bits, if there is one."""
        return next((stage.allocate for stage in self.stages if stage.allocate), None)

    @property
    def rotate(self) -> Rotate | None:
        """The stage that turns the teacher, if there is one."""
        return next((stage.rotate for stage in self.stages[:1]), None)

    @property
    def turns(self) -> bool:
        """Whether a stage turns the residual stream, which takes a tied head off its embedding."""
        turned = self.rotate is not None and self.rotate.residual != "none"
        return turned or any(spec.turns for _, spec in self.restructurings)

    @property
    def kv_cache(self) -> KVCache | None:
        """The stage that rounds keys and values, if there is one."""
        return next((stage.kv_cache for stage in self.stages[-1:]), None)

    def fed(self, index: int) -> Allocate | None:
        """The stage `allocate` that says the bits of stage `index`."""
        return self.stages[index - 1].allocate if index else None

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths that the artifact can hold, ascending."""
        return WIDTHS[self.artifact.format]

    @property
    def linear_gate(self) -> LinearGate | None:
        """What stages hold each linear against, before its block is committed."""
        gates = self.evaluate.gates
        if gates is None or gates.linear_error_max is None:
            return None
        return LinearGate(gates.linear_error_max, gates.on_violation, self.widths)


def _bits_used(stages: tuple[Stage, ...]) -> dict[str, set[int]]:
    """Every width that a linear may get, by what asks for it."""
    found: dict[str, set[int]] = {}
    for index, stage in enumerate(stages):
        before = stages[index - 1].allocate if index else None
        if stage.quantize and before:
            found[f"stages[{index - 1}].allocate"] = bits_used(before, stage.quantize)
        elif stage.quantize:
            found[f"stages[{index}].quantize"] = stage.quantize.bits_used()
        elif stage.prune and stage.prune.quantize:
            found[f"stages[{index}].prune.quantize"] = {stage.prune.quantize.bits}
    return found


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check YAML."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **Recipe.model_json_schema()}
