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

from compress.recipe.methods import (
    ACTIVATIONS,
    FIXED,
    INT8,
    PRESETS,
    USED_BY,
    Activations,
    Bits,
    GroupSize,
    Method,
    Outliers,
    Preset,
    ScaleSearch,
    Solver,
    Strategy,
    defaults,
)
from compress.recipe.patterns import HEAD, any_matches, fault
from compress.recipe.walking import (
    DampPercent,
    ErrorCorrection,
    SinkTokens,
    SinkWeight,
    TrueSequential,
    used_by_method,
)

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)  # for every section of a recipe

_ONLY_NVFP4 = "16 is the group of nvfp4 alone. Use 32, 64, 128 or -1."


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
        "open; `rtn` rounds each weight to the nearest. `w8a8` and `llm_int8` round inputs and "
        "weights to int8, the latter all inputs but outlier columns. `fp8`, `nvfp4` and `mxfp4` "
        "round to the nearest floating number, of 8 bits or of 4.",
    )
    scheme: Preset | None = Field(
        default=None,
        description="A preset by its usual name; sets `bits`, `group_size` and `sym`, or `method`, "
        "`strategy` and `activations`. Only `group_size` of integers may be given beside it and "
        "differ.",
    )
    strategy: Strategy = Field(
        default="channel",
        description="What shares one scale in `fp8`: a row (`channel`), `block` of 128 rows and "
        "128 columns, or the whole matrix with all that is fused with it (`tensor`).",
    )
    activations: Activations = Field(
        default="none",
        description="How linears of `fp8`, `nvfp4` and `mxfp4` round their inputs: `none`; "
        "`dynamic`, with scales taken from each token; `static`, with a scale that calibration "
        "found. The default of `fp8` is `dynamic`; `nvfp4` knows no other than `static`, `mxfp4` "
        "no other than `dynamic`.",
    )
    smooth: Annotated[float, Field(ge=0, le=1)] | Literal["search", "awq"] | None = Field(
        default=None,
        description="`w8a8` and `llm_int8`: move this much of what is hard to round from inputs "
        "into weights (SmoothQuant's alpha), by powers of two folded into what makes the inputs; "
        "`search` finds for each channel how much. `gptq` and `rtn`: `awq` enlarges, in the same "
        "way, columns of weights whose inputs are large. Needs calibration; null moves nothing.",
    )
    solver: Solver = Field(
        default="nearest",
        description="`w8a8` and `llm_int8`: round each weight to the `nearest`, or by `gptq`, from "
        "inputs that calibration saw.",
    )
    threshold: float = Field(
        default=6.0,
        ge=0,
        le=1e6,
        description="`llm_int8`: a column of inputs in which any magnitude reaches it is "
        "multiplied as it is. 0: none is.",
    )
    outliers: Outliers = Field(
        default="dynamic",
        description="`llm_int8`: which columns those are: found in every batch anew (`dynamic`, as "
        "bitsandbytes does: what a token becomes depends on its batch), or those that calibration "
        "found (`static`).",
    )
    bits: Bits = Field(default=4, description="Width of the integer grid.")
    group_size: GroupSize = Field(
        default=64,
        description="Input columns that share one scale; must divide each linear's inputs. "
        "-1: one scale per row. 16 is that of `nvfp4` alone.",
    )
    sym: bool = Field(
        default=True,
        description="Zero is the middle of the grid; false stores a zero point with each scale.",
    )
    scale_search: ScaleSearch = Field(
        default="hessian",
        description="What scales minimise before rounding: `none` takes the extremes, `mse` the "
        "squared error of the weights, `hessian` that error weighted by how strongly each input "
        "is driven. Without `gptq` the default is `mse`, which needs no calibration.",
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
    damp_percent: DampPercent = 0.01
    true_sequential: TrueSequential = True
    sink_tokens: SinkTokens = 2
    sink_weight: SinkWeight = 25.0
    sweeps: int = Field(
        default=1,
        ge=0,
        le=16,
        description="Rounds of coordinate descent after GPTQ; each visits every column once more.",
    )
    error_correction: ErrorCorrection = 0.0
    output_curvature: bool = Field(
        default=False,
        description="Weigh errors also by how the teacher's distribution moves with each output, "
        "and let rows make up for each other's (YAQA). Walks back through the teacher, and solves "
        "three times as long.",
    )
    learned_rounding: int = Field(
        default=0,
        ge=0,
        le=10_000,
        examples=[100],
        description="Steps in which all codes of a solved block then learn what its outputs should "
        "be, none further than one step of its grid (SignRound).",
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
        given = {**PRESETS.get(str(data.get("scheme")), {}), **data}
        return {**defaults(given), **given}

    @field_validator("bits", "sym", "strategy", "activations")
    @classmethod
    def _agrees_with_scheme(cls, value: Any, info: ValidationInfo) -> Any:
        scheme, field = info.data.get("scheme"), str(info.field_name)
        if scheme and value != (meant := PRESETS[scheme].get(field, value)):
            raise ValueError(_contradiction(value, f"scheme {scheme}", meant))
        return value

    @field_validator("scheme")
    @classmethod
    def _agrees_with_method(cls, value: str | None, info: ValidationInfo) -> str | None:
        method, fields = info.data.get("method"), PRESETS.get(value or "", {})
        meant = (fields["method"],) if "method" in fields else ("gptq", "rtn")
        if fields and method and method not in meant:
            raise ValueError(_contradiction(method, f"scheme {value}", " or ".join(meant)))
        return value

    @field_validator("bits", "sym", "group_size")
    @classmethod
    def _agrees_with_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        method, field = str(info.data.get("method")), str(info.field_name)
        if method in FIXED and value != (meant := defaults(info.data).get(field, value)):
            raise ValueError(_contradiction(value, f"method {method}", meant))
        if method not in FIXED and field == "group_size" and value == 16:
            raise ValueError(_ONLY_NVFP4)
        return value

    @field_validator(*USED_BY)
    @classmethod
    def _used_by_method(cls, value: Any, info: ValidationInfo) -> Any:  # not called for defaults
        return used_by_method(value, info, USED_BY)

    @field_validator("scale_search")
    @classmethod
    def _search_of_method(cls, value: Any, info: ValidationInfo) -> Any:
        if wrong := _wrong_search(str(info.data.get("method")), value):
            raise ValueError(wrong)
        return value

    @field_validator("smooth")
    @classmethod
    def _smooths_what_is_rounded(cls, value: Any, info: ValidationInfo) -> Any:
        method = str(info.data.get("method"))
        if method in INT8 and value == "awq":
            raise ValueError(
                f"awq is for weights alone, and {method} rounds inputs too. Use search, or a "
                "number from 0 to 1."
            )
        if method in ("gptq", "rtn") and value not in ("awq", None):
            raise ValueError(
                f"{value}, but {method} rounds no inputs: there is nothing to move out of them. "
                "Use awq, or leave it out."
            )
        return value

    @field_validator("learned_rounding")
    @classmethod
    def _learns_what_is_solved(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("smooth") is not None:
            raise ValueError(
                f"{value} steps, but smooth: {info.data['smooth']} scales columns when a block is "
                "finished, and codes learn before that. Leave out one of them."
            )
        return value

    @field_validator("activations")
    @classmethod
    def _known_to_method(cls, value: Any, info: ValidationInfo) -> Any:
        method = info.data.get("method")
        if method in ACTIVATIONS and value not in (known := ACTIVATIONS[method]):
            raise ValueError(f"{method} does not know {value}. Use {' or '.join(known)}.")
        return value

    @field_validator("overrides")
    @classmethod
    def _leave_numbers_alone(
        cls, value: dict[str, Override], info: ValidationInfo
    ) -> dict[str, Override]:
        method = info.data.get("method")
        for pattern, override in value.items():
            if method in FIXED and (odd := override.changes().keys() - {"scale_search"}):
                raise ValueError(
                    f"{pattern}: {method} leaves no choice of {' and '.join(sorted(odd))}. Give "
                    "these linears a stage of their own."
                )
            search = override.scale_search
            if search and (wrong := _wrong_search(str(method), search)):
                raise ValueError(f"{pattern}: scale_search: {wrong}")
            if override.group_size == 16:
                raise ValueError(f"{pattern}: {_ONLY_NVFP4}")
        return value

    @field_validator("head")
    @classmethod
    def _head_is_not_ignored(cls, value: int | None, info: ValidationInfo) -> int | None:
        meant = FIXED.get(str(info.data.get("method")), {}).get("bits", value)
        if value and value != meant:
            raise ValueError(_contradiction(value, f"method {info.data['method']}", meant))
        if value and any_matches(info.data.get("ignore", ()), HEAD):
            raise ValueError(f"{value} bits, but ignore names {HEAD}. Leave out one of them.")
        return value

    @property
    def needs_calibration(self) -> bool:
        """Whether anything here is solved from inputs of the linears."""
        searches = {self.scale_search, *(o.scale_search for o in self.overrides.values())}
        observed = self.method in ("gptq", "llm_int8") or self.smooth is not None
        observed = observed or self.solver == "gptq"
        return observed or "hessian" in searches or self.activations == "static"

    @property
    def rounds_inputs(self) -> bool:
        """Whether linears round what they are given when they multiply."""
        return self.method in INT8 or self.activations != "none"

    def bits_used(self) -> set[int]:
        """Every width that a block linear or the head may get."""
        given = {self.bits, self.head, *(override.bits for override in self.overrides.values())}
        return {bits for bits in given if bits is not None}


def _contradiction(value: Any, what: str, meant: Any) -> str:
    found, rule = str(value).lower(), f"{what}, which means {str(meant).lower()}"
    return f"{found} contradicts {rule}. Leave out one of them."


def _wrong_search(method: str, search: str) -> str | None:
    """Why a method of int8 products does not search scales like that."""
    if method in INT8 and search == "hessian":
        return f"{method} does not use hessian. Leave it out."
    if method in INT8 and search != (meant := INT8[method].get("scale_search", search)):
        return _contradiction(search, f"method {method}", meant)
    return None
