"""How the stage `prune` shared zeros out, where they were not the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ZeroCost:
    """What a fused group would cost at one sparsity."""

    sparsity: float
    kl: float  # mean per token, nats, as predicted when only this group is pruned


@dataclass(frozen=True)
class ZeroShare:
    """The zeros that one fused group, or by outliers one block, got."""

    linears: tuple[str, ...]
    block: int
    kind: str  # qkv, o, gate_up, down; or all
    sparsity: float  # of its linears together
    outliers: float | None = None  # share of its weights, where that decided
    costs: tuple[ZeroCost, ...] = ()  # of what it might have got, where they decided


@dataclass(frozen=True)
class ZeroAllocation:
    """Zeros of all linears that a stage prunes by one sparsity, and who got them."""

    by: Literal["owl", "sensitivity"]
    sparsity: float  # as the recipe asked
    zeros: int  # in all
    shares: tuple[ZeroShare, ...]
    kl_predicted: float | None = None  # the sum over all groups, nats; by sensitivity
    kl_uniform: float | None = None  # the same, had all got the same sparsity
