"""Which numbers one linear gets: a stage's fields under the first override that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from compress.recipe.methods import (
    FIXED,
    FLOATS,
    INT8,
    Activations,
    Bits,
    GroupSize,
    Method,
    Outliers,
    ScaleSearch,
    Solver,
    Strategy,
)
from compress.recipe.patterns import any_matches, matches
from compress.recipe.quantize import Quantize

_SCALE_ROWS: dict[Strategy, int] = {"channel": 1, "block": 128, "tensor": 0}
_NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Scheme:
    """How one linear is quantized; `group_size` -1 is one group per row.

    Of ``desc_act``, ``damp_percent`` and ``sweeps``, rtn reads none.
    """

    method: Method
    bits: Bits
    group_size: GroupSize
    sym: bool
    scale_search: ScaleSearch
    desc_act: bool
    damp_percent: float
    sweeps: int
    strategy: Strategy = "channel"
    activations: Activations = "none"
    threshold: float = 0.0
    outliers: Outliers = "dynamic"
    solver: Solver = "nearest"

    @property
    def floating(self) -> bool:
        """Whether weights become floating numbers, whose width cannot be another."""
        return self.method in FLOATS

    @property
    def numbers(self) -> Literal["int", "fp8_e4m3", "fp4_e2m1"]:
        """What codes stand for; see `kernels.numbers`."""
        if not self.floating:
            return "int"
        return "fp8_e4m3" if self.method == "fp8" else "fp4_e2m1"

    @property
    def scale_rows(self) -> int:
        """Neighbouring rows that share a scale; 0: all."""
        return _SCALE_ROWS[self.strategy] if self.method == "fp8" else 1

    @property
    def input_group(self) -> int:
        """Columns of a row of inputs that share a scale, where inputs are rounded; 0: all."""
        return 0 if self.method == "fp8" and self.strategy != "block" else self.group_size

    @property
    def int8_inputs(self) -> bool:
        """Whether inputs become int8, too."""
        return self.method in INT8

    @property
    def fixed(self) -> bool:
        """Whether the width of the codes cannot be another."""
        return self.method in FIXED

    @property
    def needs_hessian(self) -> bool:
        """Whether the inputs of the linear must be observed."""
        observed = self.scale_search == "hessian" or self.activations == "static"
        return self.by_gptq or observed

    @property
    def by_gptq(self) -> bool:
        """Whether columns are rounded one after another, each error carried on."""
        return self.method == "gptq" or (self.int8_inputs and self.solver == "gptq")


def scheme_for(
    quantize: Quantize, linear_name: str, allocated: Mapping[str, int] = _NONE
) -> Scheme | None:
    """The scheme of one block linear; None where it stays dense. For the head: `head_scheme`.

    Args:
        quantize: the stage.
        linear_name: dotted.
        allocated: bits by linear, from the stage `allocate` before it; overrides come first.
    """
    if not any_matches(quantize.targets, linear_name) or any_matches(quantize.ignore, linear_name):
        return None
    pattern = override_for(quantize, linear_name)
    changes = quantize.overrides[pattern].changes() if pattern else {}
    given = {"bits": allocated[linear_name]} if linear_name in allocated else {}
    return _scheme(quantize, **{**given, **changes})


def head_scheme(
    quantize: Quantize, head_name: str = "", allocated: Mapping[str, int] = _NONE
) -> Scheme | None:
    """The scheme of the head, whose inputs are never rounded; None where it stays dense.

    `allocated` as for `scheme_for`.
    """
    bits = quantize.head or allocated.get(head_name)
    method = quantize.method
    if method in INT8:  # weights alone, by what rounds them there
        method = "gptq" if quantize.solver == "gptq" else "rtn"
    return _scheme(quantize, method=method, bits=bits, activations="none") if bits else None


def override_for(quantize: Quantize, linear_name: str) -> str | None:
    """The pattern whose override decides for one linear: the first that names it."""
    return next((pattern for pattern in quantize.overrides if matches(pattern, linear_name)), None)


def _scheme(quantize: Quantize, **changes: object) -> Scheme:
    fields = {name: getattr(quantize, name) for name in Scheme.__dataclass_fields__}
    return Scheme(**{**fields, **changes})
