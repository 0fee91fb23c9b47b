"""The fields of the stage `kv_cache`: what cached keys and values are, and what shares a scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from compress.recipe.quantize import STRICT

HELD_BY = {  # formats with a place for the scales, by what shares one
    "tensor": ("packed", "compressed-tensors"),
    "head": ("packed", "compressed-tensors"),
    "channel": ("packed",),
    "token": ("packed",),
}


class KVCache(BaseModel):
    """Round the keys and values that a runtime caches to eight bits, with calibrated scales."""

    model_config = STRICT

    numbers: Literal["int8", "fp8_e4m3"] = Field(
        default="int8",
        description="What a cached number is. `int8` is closer to the teacher; `fp8_e4m3` is what "
        "vLLM opens.",
    )
    granularity: Literal["tensor", "head", "channel", "token"] = Field(
        default="head",
        description="What shares a scale, calibrated once: all heads of a block (`tensor`), a "
        "`head`, or one `channel` of a head. Or each head of each `token` gets its own when it is "
        "cached: the closest, with 2 bytes more. `compressed-tensors` holds the first two.",
    )
    scale_search: Literal["none", "mse"] = Field(
        default="mse",
        description="`none` takes the extremes of the calibration; `mse` tries shrunken ranges and "
        "keeps the one of least squared error. With `channel` and `token` the default is `none`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("granularity") in ("channel", "token"):
            return {"scale_search": "none", **data}
        return data

    @field_validator("scale_search")
    @classmethod
    def _has_scales(cls, value: str, info: ValidationInfo) -> str:
        if value == "mse" and info.data.get("granularity") == "token":
            raise ValueError("mse, but scales of granularity token are not searched. Leave it out.")
        return value
