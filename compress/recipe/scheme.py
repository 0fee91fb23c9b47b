"""Which numbers one linear gets: a stage's fields under the first override that names it."""

from __future__ import annotations

from dataclasses import dataclass

from compress.recipe.patterns import any_matches, matches
from compress.recipe.quantize import Bits, GroupSize, Method, Quantize, ScaleSearch


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

    @property
    def needs_hessian(self) -> bool:
        """Whether the inputs of the linear must be observed."""
        return self.method == "gptq" or self.scale_search == "hessian"


def scheme_for(quantize: Quantize, linear_name: str) -> Scheme | None:
    """The scheme of one block linear; None where it stays dense. For the head: `head_scheme`."""
    if not any_matches(quantize.targets, linear_name) or any_matches(quantize.ignore, linear_name):
        return None
    pattern = override_for(quantize, linear_name)
    changes = quantize.overrides[pattern].changes() if pattern else {}
    return _scheme(quantize, **changes)


def head_scheme(quantize: Quantize) -> Scheme | None:
    """The scheme of the head; None where it stays dense."""
    return _scheme(quantize, bits=quantize.head) if quantize.head else None


def override_for(quantize: Quantize, linear_name: str) -> str | None:
    """The pattern whose override decides for one linear: the first that names it."""
    return next((pattern for pattern in quantize.overrides if matches(pattern, linear_name)), None)


def _scheme(quantize: Quantize, **changes: object) -> Scheme:
    fields = {name: getattr(quantize, name) for name in Scheme.__dataclass_fields__}
    return Scheme(**{**fields, **changes})
