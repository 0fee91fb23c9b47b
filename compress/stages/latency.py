"""How long our runtime takes for one token of a model of some shape: weights decide nothing."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compress.anatomy import Anatomy
from compress.kernels.grid import Rounded
from compress.kernels.kv import KVScales
from compress.runtime.batch import alone
from compress.runtime.model import Model
from compress.shape import Shape, remains_of, shape_of
from compress.surgery.resize import Cut
from compress.surgery.walk import Weights

_PROMPT, _TOKENS = 64, 24  # read before, and timed


def decode_seconds(weights: Weights, shape: Shape) -> float:
    """Median time of one token behind a short prompt, with weights of no meaning."""
    model = Model(_Meaningless(weights, shape), torch.bfloat16)
    pages = model.pages(_PROMPT + _TOKENS)
    model.forward(alone([0] * _PROMPT), pages)
    spent = []
    for at in range(_PROMPT, _PROMPT + _TOKENS):
        begun = time.perf_counter()
        model.next_logits(alone([0], at), pages)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


@dataclass(frozen=True)
class _Meaningless:
    """A model of another shape, whose tensors say nothing."""

    weights: Weights
    shape: Shape

    @cached_property
    def _cut(self) -> Cut:
        before = shape_of(self.weights.config, self.weights.anatomy)
        return Cut(self.weights, remains_of(before, self.shape))

    @cached_property
    def config(self) -> dict[str, object]:
        return dict(self._cut.config)

    @property
    def anatomy(self) -> Anatomy:
        return self._cut.anatomy

    def rounded(self, name: str) -> Rounded | None:
        return None

    def tensor(self, name: str) -> Tensor:
        return torch.zeros(self._cut.anatomy.tensors[name], dtype=torch.bfloat16)

    def kv(self, index: int) -> KVScales | None:
        return None
