"""Which numbers one linear gets: a stage's fields under the first override that names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from compress.recipe.patterns import any_matches, matches
from compress.recipe.quantize import (
    FLOATS,
    Activations,
    Bits,
    GroupSize,
    Method,
    Quantize,
    ScaleSearch,
    Strategy,
)

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

    @property
    def floating(self) -> bool:
        """Whether weights become floating numbers, whose width cannot be another."""
        return self.method in FLOATS

    @property
    def needs_hessian(self) -> bool:
        """Whether the inputs of the linear must be observed."""
        observed = self.scale_search == "hessian" or self.activations == "static"
        return self.method == "gptq" or observed


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
    return _scheme(quantize, bits=bits, activations="none") if bits else None


def override_for(quantize: Quantize, linear_name: str) -> str | None:
    """The pattern whose override decides for one linear: the first that names it."""
    return next((pattern for pattern in quantize.overrides if matches(pattern, linear_name)), None)


def _scheme(quantize: Quantize, **changes: object) -> Scheme:
    fields = {name: getattr(quantize, name) for name in Scheme.__dataclass_fields__}
    return Scheme(**{**fields, **changes})
