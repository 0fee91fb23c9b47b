"""The fields of the stage `prune`: types, ranges, defaults, and what contradicts what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from compress.recipe.methods import Bits, ScaleSearch
from compress.recipe.quantize import STRICT, Pattern, Patterns
from compress.recipe.walking import (
    DampPercent,
    ErrorCorrection,
    SinkTokens,
    SinkWeight,
    TrueSequential,
    used_by_method,
)

PruneMethod = Literal["admm", "sparsegpt", "wanda", "magnitude"]
ZerosBy = Literal["uniform", "owl", "sensitivity"]
_SOLVED = ("admm", "sparsegpt")
_CALIBRATED = (*_SOLVED, "wanda")
PRUNE_USED_BY: dict[str, tuple[str, ...]] = {  # by which methods; all others are used by all
    **dict.fromkeys(
        (
            "refine", "damp_percent", "true_sequential", "sink_tokens", "sink_weight",
            "error_correction",
        ),
        _CALIBRATED,
    ),
    "rounds": ("admm",),
    "quantize": _SOLVED,
}  # fmt: skip
_REFINE = {"admm": 3, "wanda": 0}  # defaults; what magnitude is not told, it does not use
_OF_REFINE = ("damp_percent", "error_correction")  # what wanda uses only where it refits
Sparsity = Annotated[float, Field(gt=0, lt=1)]
NofM = Annotated[str, Field(pattern=r"^[1-9]\d?:[1-9]\d?$")]


class Grid(BaseModel):
    """The integer grid that weights are rounded to in the loop that prunes them."""

    model_config = STRICT

    bits: Bits = Field(default=4, description="As in `quantize`.")
    group_size: Literal[32, 64, 128, -1] = Field(default=64, description="As in `quantize`.")
    sym: bool = Field(default=True, description="As in `quantize`.")
    scale_search: ScaleSearch = Field(
        default="hessian", description="As in `quantize`; of the weights that stay."
    )
    desc_act: bool = Field(default=True, description="As in `quantize`.")
    sweeps: int = Field(default=1, ge=0, le=16, description="As in `quantize`.")


class PruneOverride(BaseModel):
    """How much of the linears that a pattern names is pruned."""

    model_config = STRICT

    sparsity: Sparsity | None = Field(default=None, description="As in `prune`.")
    pattern: NofM | None = Field(default=None, description="As in `prune`.")

    @field_validator("pattern")
    @classmethod
    def _excludes(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _one_way(value, info)

    @model_validator(mode="after")
    def _says_how_much(self) -> PruneOverride:
        _given(self.sparsity, self.pattern)
        return self


class Prune(BaseModel):
    """Set weights to zero, and move those that stay to make up for it."""

    model_config = STRICT

    # Fields that others are checked against come first: a validator sees only what stands above.
    method: PruneMethod = Field(
        default="sparsegpt",
        description="`sparsegpt` prunes column by column and spreads each error over the columns "
        "still open; `admm` finds mask and weights together, a little more pruned each round; "
        "`wanda` keeps in each row what is large times the norm of its input, `magnitude` what is "
        "large.",
    )
    sparsity: Sparsity | None = Field(
        default=None,
        description="Fraction of the weights of each linear that become zero. This or `pattern`.",
        examples=[0.5],
    )
    pattern: NofM | None = Field(
        default=None,
        description="`n:m`: of every m neighbours in a row at most n stay. m must divide each "
        "linear's inputs. Quote it: YAML 1.1 readers take 2:4 for a time.",
        examples=['"2:4"'],
    )
    allocation: ZerosBy = Field(
        default="uniform",
        description="Who gets the zeros that `sparsity` asks for in all. `uniform`: every linear "
        "its part. `owl`: fewer for blocks with more outliers of |w| times the norm of its input, "
        "at most 8 points off. `sensitivity`: as many for each of what engines fuse (q, k, v; "
        "gate, up) as makes the least KL together, at most 20 points off, the choice exact. "
        "Overrides that give a sparsity stand. Measured on 64 windows of 128 tokens.",
    )
    rounds: int = Field(
        default=10, ge=1, le=1000, description="Of `admm`; the first three quarters prune more."
    )
    refine: int = Field(
        default=10,
        ge=0,
        le=1000,
        description="Steps by which what stays is fitted to the inputs once more, the mask fixed "
        "(conjugate gradients). The default of `wanda` is 0, which moves no weight, that of `admm` "
        "3.",
    )
    damp_percent: DampPercent = 0.01
    true_sequential: TrueSequential = True
    sink_tokens: SinkTokens = 2
    sink_weight: SinkWeight = 25.0
    error_correction: ErrorCorrection = 0.0
    targets: Patterns = Field(
        default=("*",), min_length=1, description="Patterns of the block linears to prune."
    )
    ignore: Patterns = Field(
        default=(), description="Patterns of linears that stay whole, whatever `targets` says."
    )
    overrides: dict[Pattern, PruneOverride] = Field(
        default={},
        description="Pattern → another `sparsity` or `pattern` for the linears it names. The first "
        "pattern that matches decides.",
    )
    quantize: Grid | None = Field(
        default=None,
        description="Round what stays to integers in the same loop, so that both errors are "
        "carried on together; null keeps floats.",
    )
    on_unsolvable: Literal["fail", "keep_dense"] = Field(
        default="fail",
        description="What to do with a linear that cannot be solved. One kept dense is named in "
        "the results.",
    )

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and str(data.get("method")) in _REFINE:
            return {"refine": _REFINE[data["method"]], **data}
        return data

    @field_validator("pattern")
    @classmethod
    def _excludes(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _one_way(value, info)

    @field_validator("allocation")
    @classmethod
    def _shares_zeros(cls, value: ZerosBy, info: ValidationInfo) -> ZerosBy:
        if value != "uniform" and (pattern := info.data.get("pattern")):
            raise ValueError(
                f"{value}, but a pattern leaves nothing to share out: {pattern} is the same "
                "everywhere. Leave out one of them, or give sparsity."
            )
        return value

    @field_validator(*PRUNE_USED_BY)
    @classmethod
    def _used_by_method(cls, value: Any, info: ValidationInfo) -> Any:  # not called for defaults
        used_by_method(value, info, PRUNE_USED_BY)
        method = info.data.get("method")
        if method == "wanda" and info.field_name in _OF_REFINE and not info.data.get("refine"):
            raise ValueError(
                "wanda moves no weight, so it does not use this field. Leave it out, or give "
                "refine some rounds."
            )
        return value

    @model_validator(mode="after")
    def _says_how_much(self) -> Prune:
        _given(self.sparsity, self.pattern)
        return self

    @property
    def by_energies(self) -> bool:
        """Whether how inputs go together decides nothing, only how large they are."""
        return self.method == "wanda" and not self.refine

    @property
    def by_inputs(self) -> bool:
        """Whether linears are pruned by what they are given, not by their weights alone."""
        return self.method in _CALIBRATED

    @property
    def needs_calibration(self) -> bool:
        """Whether anything here looks at inputs of the linears."""
        return self.by_inputs or self.allocation != "uniform"

    def unused(self) -> set[str]:
        """The fields that its method does not use."""
        found = {name for name, users in PRUNE_USED_BY.items() if self.method not in users}
        return found | (set(_OF_REFINE) if self.by_energies else set())


def _one_way(value: str | None, info: ValidationInfo) -> str | None:
    """Check a pattern n:m, and that no sparsity stands beside it."""
    if value is None:
        return None
    if info.data.get("sparsity") is not None:
        raise ValueError(f"{value}, but sparsity is given too. Leave out one of them.")
    kept, of = map(int, value.split(":"))
    if kept >= of:
        raise ValueError(
            f"{value} prunes nothing: the first number is how many of the second stay."
        )
    return value


def _given(sparsity: float | None, pattern: str | None) -> None:
    if sparsity is None and pattern is None:
        raise ValueError('does not say how much. Give sparsity: 0.5, or a pattern such as "2:4".')
