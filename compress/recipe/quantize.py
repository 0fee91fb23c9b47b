"""The fields of the stage `quantize`: types, ranges, defaults, and what contradicts what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compress.recipe.patterns import HEAD, any_matches, fault

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)  # for every section of a recipe

Method = Literal["gptq", "rtn"]
Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[32, 64, 128, -1]
ScaleSearch = Literal["none", "mse", "hessian"]
Preset = Literal["W2A16", "W3A16", "W4A16", "W4A16_ASYM", "W8A16"]

PRESETS: dict[str, dict[str, Any]] = {
    "W2A16": {"bits": 2, "group_size": 128, "sym": True},
    "W3A16": {"bits": 3, "group_size": 128, "sym": True},
    "W4A16": {"bits": 4, "group_size": 128, "sym": True},
    "W4A16_ASYM": {"bits": 4, "group_size": 128, "sym": False},
    "W8A16": {"bits": 8, "group_size": -1, "sym": True},
}
GPTQ_ONLY = (
    "desc_act",
    "static_groups",
    "damp_percent",
    "true_sequential",
    "sweeps",
    "sink_tokens",
    "sink_weight",
)


def _sound(pattern: str) -> str:
    if reason := fault(pattern):
        raise ValueError(f"{reason}. Write a glob such as *.down_proj, or re: and an expression.")
    return pattern


Pattern = Annotated[str, AfterValidator(_sound)]
# YAML knows lists, not tuples; strict types would refuse them.
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False)]


class Override(BaseModel):
    """What differs for the linears that a pattern names."""

    model_config = STRICT

    bits: Bits | None = Field(default=None, description="As in `quantize`.")
    group_size: GroupSize | None = Field(default=None, description="As in `quantize`.")
    sym: bool | None = Field(default=None, description="As in `quantize`.")
    scale_search: ScaleSearch | None = Field(default=None, description="As in `quantize`.")

    @model_validator(mode="after")
    def _says_something(self) -> Override:
        if not self.changes():
            raise ValueError(f"changes nothing. Give one of {', '.join(Override.model_fields)}.")
        return self

    def changes(self) -> dict[str, Any]:
        """The fields that are given."""
        return self.model_dump(exclude_none=True)


class Quantize(BaseModel):
    """Round weights to integers of a few bits that share scales in groups."""

    model_config = STRICT

    # Fields that others are checked against come first: a validator sees only what stands above.
    method: Method = Field(
        default="gptq",
        description="`gptq` rounds column by column and spreads each error over the columns still "
        "open; `rtn` rounds each weight to the nearest.",
    )
    scheme: Preset | None = Field(
        default=None,
        description="A preset by its usual name; sets `bits`, `group_size` and `sym`. Only "
        "`group_size` may be given beside it and differ.",
    )
    bits: Bits = Field(default=4, description="Width of the integer grid.")
    group_size: GroupSize = Field(
        default=64,
        description="Input columns that share one scale; must divide each linear's inputs. "
        "-1: one scale per row.",
    )
    sym: bool = Field(
        default=True,
        description="Zero is the middle of the grid; false stores a zero point with each scale.",
    )
    scale_search: ScaleSearch = Field(
        default="hessian",
        description="What scales minimise before rounding: `none` takes the extremes, `mse` the "
        "squared error of the weights, `hessian` that error weighted by how strongly each input "
        "is driven. With `rtn` the default is `mse`, which needs no calibration.",
    )
    desc_act: bool = Field(
        default=True,
        description="Visit columns by falling activation; the stored order does not change.",
    )
    static_groups: Literal[True] = Field(
        default=True,
        description="Scales are fixed before rounding, so that no artifact needs a `g_idx`. "
        "Only `true` exists.",
    )
    damp_percent: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Fraction of the mean diagonal added to the Hessian; 0.01 is 1 %.",
    )
    true_sequential: bool = Field(
        default=True,
        description="Observe each linear behind those of its block that are rounded already. "
        "`false` observes the dense block: nearly twice the forwards, but less memory.",
    )
    sink_tokens: int = Field(
        default=2,
        ge=0,
        le=64,
        description="First tokens of a window, to which all later ones attend: attention sinks.",
    )
    sink_weight: float = Field(
        default=25.0,
        ge=0,
        le=1e6,
        description="How many times more than another token each of them counts in the Hessian.",
    )
    sweeps: int = Field(
        default=1,
        ge=0,
        le=16,
        description="Rounds of coordinate descent after GPTQ; each visits every column once more.",
    )
    targets: Patterns = Field(
        default=("*",), min_length=1, description="Patterns of the block linears to quantize."
    )
    ignore: Patterns = Field(
        default=(), description="Patterns of linears that stay dense, whatever `targets` says."
    )
    overrides: dict[Pattern, Override] = Field(
        default={},
        description="Pattern → what differs for the linears it names. The first pattern that "
        "matches decides.",
    )
    head: Literal[4, 8] | None = Field(
        default=None,
        description="Bits of the head (with the embedding, where they are tied); null keeps it "
        "dense.",
    )
    on_unsolvable: Literal["fail", "keep_dense"] = Field(
        default="fail",
        description="What to do with a linear that cannot be solved. One kept dense, with the "
        "linears that engines fuse with it (q, k, v; gate, up), is named in the results.",
    )

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        search = {"scale_search": "mse"} if data.get("method") == "rtn" else {}
        return {**search, **PRESETS.get(str(data.get("scheme")), {}), **data}

    @field_validator("bits", "sym")
    @classmethod
    def _agrees_with_scheme(cls, value: Any, info: ValidationInfo) -> Any:
        scheme = info.data.get("scheme")
        if scheme and value != (meant := PRESETS[scheme][str(info.field_name)]):
            found, rule = str(value).lower(), f"scheme {scheme}, which means {str(meant).lower()}"
            raise ValueError(f"{found} contradicts {rule}. Leave out one of them.")
        return value

    @field_validator(*GPTQ_ONLY)
    @classmethod
    def _used_by_method(cls, value: Any, info: ValidationInfo) -> Any:  # not called for defaults
        if info.data.get("method") == "rtn":
            raise ValueError("rtn does not use this field. Leave it out, or choose method: gptq.")
        return value

    @field_validator("head")
    @classmethod
    def _head_is_not_ignored(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and any_matches(info.data.get("ignore", ()), HEAD):
            raise ValueError(f"{value} bits, but ignore names {HEAD}. Leave out one of them.")
        return value

    @property
    def needs_calibration(self) -> bool:
        """Whether anything here is solved from inputs of the linears."""
        searches = {self.scale_search, *(o.scale_search for o in self.overrides.values())}
        return self.method == "gptq" or "hessian" in searches

    def bits_used(self) -> set[int]:
        """Every width that a block linear or the head may get."""
        given = {self.bits, self.head, *(override.bits for override in self.overrides.values())}
        return {bits for bits in given if bits is not None}
