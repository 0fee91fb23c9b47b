"""The methods of the stage `quantize` and its presets: which fields each uses, what each leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Method = Literal["gptq", "rtn", "w8a8", "llm_int8", "fp8", "nvfp4", "mxfp4"]
Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[16, 32, 64, 128, -1]
ScaleSearch = Literal["none", "mse", "hessian"]
Strategy = Literal["channel", "block", "tensor"]
Activations = Literal["none", "dynamic", "static"]
Outliers = Literal["dynamic", "static"]
Solver = Literal["nearest", "gptq"]
Preset = Literal[
    "W2A16", "W3A16", "W4A16", "W4A16_ASYM", "W8A16", "W8A8",
    "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4",
]  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "W2A16": {"bits": 2, "group_size": 128, "sym": True},
    "W3A16": {"bits": 3, "group_size": 128, "sym": True},
    "W4A16": {"bits": 4, "group_size": 128, "sym": True},
    "W4A16_ASYM": {"bits": 4, "group_size": 128, "sym": False},
    "W8A16": {"bits": 8, "group_size": -1, "sym": True},
    "W8A8": {"method": "w8a8"},
    "FP8": {"method": "fp8", "strategy": "tensor", "activations": "static"},
    "FP8_DYNAMIC": {"method": "fp8", "strategy": "channel", "activations": "dynamic"},
    "FP8_BLOCK": {"method": "fp8", "strategy": "block", "activations": "dynamic"},
    "NVFP4A16": {"method": "nvfp4", "activations": "none"},
    "NVFP4": {"method": "nvfp4", "activations": "static"},
    "MXFP4A16": {"method": "mxfp4", "activations": "none"},
    "MXFP4": {"method": "mxfp4", "activations": "dynamic"},
}
FLOATS: dict[str, dict[str, Any]] = {  # what methods of floating numbers leave no choice of
    "fp8": {"bits": 8, "sym": True},
    "nvfp4": {"bits": 4, "group_size": 16, "sym": True},
    "mxfp4": {"bits": 4, "group_size": 32, "sym": True},
}
INT8: dict[str, dict[str, Any]] = {  # what methods of int8 products leave no choice of
    "w8a8": {"bits": 8, "group_size": -1, "sym": True},
    "llm_int8": {"bits": 8, "group_size": -1, "sym": True, "scale_search": "none"},
}
FIXED = FLOATS | INT8
ACTIVATIONS: dict[str, tuple[Activations, ...]] = {  # the first is the default
    "fp8": ("dynamic", "static", "none"),
    "nvfp4": ("none", "static"),
    "mxfp4": ("none", "dynamic"),
}
GPTQ_ONLY = (
    "desc_act",
    "static_groups",
    "damp_percent",
    "true_sequential",
    "sweeps",
    "sink_tokens",
    "sink_weight",
    "error_correction",
    "output_curvature",
    "learned_rounding",
)
USED_BY: dict[str, tuple[str, ...]] = {  # by which methods; all others are used by all
    **dict.fromkeys(GPTQ_ONLY, ("gptq",)),
    "strategy": ("fp8",),
    "activations": tuple(ACTIVATIONS),
    "smooth": ("gptq", "rtn", *INT8),
    "solver": tuple(INT8),
    "threshold": ("llm_int8",),
    "outliers": ("llm_int8",),
}


def defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a method makes of fields that are not given; of some it leaves no choice."""
    method = str(data.get("method", "gptq"))
    found = dict(FIXED.get(method, {}))
    if method == "fp8":
        found["group_size"] = 128 if data.get("strategy") == "block" else -1
    if method in ACTIVATIONS:
        found["activations"] = ACTIVATIONS[method][0]
    return found if method == "gptq" else {"scale_search": "mse", **found}
