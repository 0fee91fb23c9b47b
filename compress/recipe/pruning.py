"""How much of one linear is pruned, and how: a stage's fields under the override that names it."""

from __future__ import annotations

from dataclasses import dataclass

from compress.recipe.patterns import any_matches, matches
from compress.recipe.prune import Prune, PruneMethod, ZerosBy
from compress.recipe.scheme import Scheme

MEASURED = (64, 128)  # windows, and tokens of each, by which `allocation` shares zeros out
_OWL = 0.08  # how far a block's sparsity may be from what is asked for
_OFFSETS = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)  # sparsities that `sensitivity` tries
_MOST = 0.99  # that it tries, unless more is asked for


@dataclass(frozen=True)
class Pruning:
    """How one linear is pruned; `sparsity` is None where `pattern` says how much."""

    method: PruneMethod
    sparsity: float | None
    pattern: str | None
    rounds: int
    refine: int
    damp_percent: float
    grid: Scheme | None = None  # what the weights that stay are rounded to in the same loop
    allocation: ZerosBy = "uniform"  # who says how many zeros: `sparsity`, or what is measured
    zeros: int | None = None  # how many, where they were shared out

    @property
    def bits(self) -> int | None:
        """Of the weights that stay; None where they stay floats."""
        return self.grid.bits if self.grid else None

    @property
    def floating(self) -> bool:
        """Whether more bits cannot be given: a gate makes no pruned linear wider."""
        return True

    @property
    def needs_hessian(self) -> bool:
        """Whether it looks at inputs."""
        return self.method != "magnitude"

    @property
    def neighbours(self) -> int | None:
        """How many neighbours in a row compete to stay; None: all of a row, or of the matrix."""
        return int(self.pattern.split(":")[1]) if self.pattern else None

    @property
    def by_rows(self) -> bool:
        """Whether every row keeps as much, where no pattern says so: Wanda compares within rows."""
        return self.method == "wanda"

    def kept(self, rows: int, columns: int) -> int:
        """How many weights of a matrix stay: exact, so that sizes are known beforehand."""
        if self.pattern is not None:
            count, of = map(int, self.pattern.split(":"))
            return rows * (columns // of) * count
        if self.zeros is not None:
            return rows * columns - self.zeros
        if self.by_rows:
            return rows * _staying(columns, self.sparsity)
        return _staying(rows * columns, self.sparsity)

    @property
    def choices(self) -> tuple[float, ...]:
        """Sparsities that it may get, ascending: what is asked for among them."""
        asked = self.sparsity or 0.0
        if self.allocation == "owl":
            apart = min(_OWL, asked / 2, (1 - asked) / 2)
            return asked - apart, asked, asked + apart
        if self.allocation == "sensitivity":
            tried = (round(asked + off, 9) if off else asked for off in _OFFSETS)
            return tuple(sparsity for sparsity in tried if 0 < sparsity <= max(asked, _MOST))
        return (asked,)


def _staying(weights: int, sparsity: float | None) -> int:
    return max(1, weights - round((sparsity or 0.0) * weights))


def pruning_for(prune: Prune, linear_name: str) -> Pruning | None:
    """How one block linear is pruned; None where it stays whole."""
    if not any_matches(prune.targets, linear_name) or any_matches(prune.ignore, linear_name):
        return None
    pattern = prune_override_for(prune, linear_name)
    how_much = prune.overrides[pattern] if pattern else prune
    return Pruning(
        prune.method, how_much.sparsity, how_much.pattern, prune.rounds,
        prune.refine, prune.damp_percent, _grid(prune),
        "uniform" if pattern else prune.allocation,
    )  # fmt: skip


def prune_override_for(prune: Prune, linear_name: str) -> str | None:
    """The pattern whose override decides for one linear: the first that names it."""
    return next((pattern for pattern in prune.overrides if matches(pattern, linear_name)), None)


def _grid(prune: Prune) -> Scheme | None:
    """The scheme of linears that are rounded while they are pruned."""
    if (grid := prune.quantize) is None:
        return None
    return Scheme(
        "gptq", grid.bits, grid.group_size, grid.sym, grid.scale_search, grid.desc_act,
        prune.damp_percent, grid.sweeps,
    )  # fmt: skip
