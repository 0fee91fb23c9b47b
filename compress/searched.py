"""The shapes that a search tries: some depths, all heads or fewer, the widest MLP that still fits.

Pure data, as `compress.shape`: what fits is counted here, or told by who measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from compress.anatomy import Anatomy
from compress.recipe.restructure import Restructure
from compress.shape import STEP, Shape, can_cut, cut_tensors, fewer_heads, remains_of, shape_of

Holds = Callable[[Shape], bool]
_DEPTHS = 4  # numbers of blocks that are tried, from all to the fewest that fit
_LEAST = 4  # of the channels at least one in so many stays


class Model(Protocol):
    """A model by its config and its anatomy, whether or not its weights are there."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its ``config.json``."""

    @property
    def anatomy(self) -> Anatomy:
        """The picture of it."""


@dataclass(frozen=True)
class Search:
    """What may be tried of a model, and what of that fits."""

    model: Model
    fits: Holds
    divides: Holds = lambda _: True  # whether later stages can work on what a shape's linears read

    @property
    def before(self) -> Shape:
        """The shape that the model has."""
        return shape_of(self.model.config, self.model.anatomy)

    def candidates(self) -> list[Shape]:
        """The shapes to try; none where nothing fits."""
        found = {}
        for cut in self._with_heads():
            widths = self._widths(cut)
            depths = [n for n in self._depths() if self._widest(cut, n, widths)]
            # more blocks than those that fit whole leave narrower MLPs
            whole = [n for n in depths if self.fits(replace(cut, blocks=n, channels=widths[-1]))]
            for blocks in _spread(depths[max(0, len(whole) - 1) :]):
                if shape := self._widest(cut, blocks, widths):
                    found[shape] = shape
        return list(found)

    def flaw(self, spec: Restructure) -> str | None:
        """Why there is nothing to try: the model fits as it is, or the least of it does not."""
        if self.fits(self.before):
            return f"{getattr(spec, str(spec.target))} leaves all. Ask for less."
        fewest = self._depths()[0]
        least = [
            replace(cut, blocks=fewest, channels=widths[0])
            for cut in self._with_heads()
            if (widths := self._widths(cut))
        ]
        if any(map(self.fits, least)):
            return None
        last = least[-1]
        blocks = f"{last.blocks} block{'s' if last.blocks > 1 else ''}"
        return (
            f"no shape reaches {spec.written}: {blocks} with {last.heads} heads and "
            f"{last.channels:,} MLP channels, the least that is tried, takes more. Allow more."
        )

    def _with_heads(self) -> Iterator[Shape]:
        """The shape before, with all heads and with fewer."""
        before = self.before
        yield before
        if "heads" not in can_cut(self.model.config):
            for kept in fewer_heads(before)[-1:]:
                yield replace(before, heads=kept, kv_heads=kept // before.group)

    def _depths(self) -> Sequence[int]:
        """Numbers of blocks, ascending."""
        blocks = self.before.blocks
        return [blocks] if "depth" in can_cut(self.model.config) else range(1, blocks + 1)

    def _widths(self, shape: Shape) -> list[int]:
        """The widths of an MLP that are tried, ascending: its own the last."""
        narrow = math.ceil(shape.channels / _LEAST / STEP) * STEP
        widths = [*range(narrow, shape.channels, STEP), shape.channels]
        return [width for width in widths if self.divides(replace(shape, channels=width))]

    def _widest(self, shape: Shape, blocks: int, widths: Sequence[int]) -> Shape | None:
        """The widest MLP with which so many blocks fit; None where a narrow one does not."""
        sizes = [replace(shape, blocks=blocks, channels=width) for width in widths]
        if not sizes or not self.fits(sizes[0]):
            return None
        low, high = 0, len(sizes)  # sizes[low] fits
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(sizes[middle]) else (low, middle)
        return sizes[low]


def counting(model: Model, spec: Restructure) -> Holds:
    """Whether a shape has no more parameters than are asked for, or no more of the weights."""
    if (most := spec.most_parameters) is not None:
        return lambda shape: parameters(model, shape) <= most
    limit = (spec.keep or 1.0) * block_weights(model, shape_of(model.config, model.anatomy))
    return lambda shape: block_weights(model, shape) <= limit


def block_weights(model: Model, shape: Shape) -> int:
    """Weights of the block linears of a model of another shape."""
    linears = {f"{linear.name}.weight" for linear in model.anatomy.linears}
    left = _left(model, shape).items()
    return sum(math.prod(size) for name, size in left if name in linears)


def parameters(model: Model, shape: Shape) -> int:
    """Parameters in all of a model of another shape, a tied head once."""
    return sum(map(math.prod, _left(model, shape).values()))


def _left(model: Model, shape: Shape) -> dict[str, tuple[int, ...]]:
    before = shape_of(model.config, model.anatomy)
    left = cut_tensors(model.anatomy, before, remains_of(before, shape))
    return {name: size for name, (_, size) in left.items()}


def _spread(numbers: Sequence[int]) -> list[int]:
    """A few of them, the first and the last among them."""
    if len(numbers) <= _DEPTHS:
        return list(numbers)
    last = len(numbers) - 1
    return [numbers[round(last * step / (_DEPTHS - 1))] for step in range(_DEPTHS)]
