"""Windows that a student writes on itself as it learns, for its teacher to say what it would.

Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, Algorithm 1, with a share of the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.drawing import drawn
from compress.recipe.text import OnPolicy
from compress.surgery.decode import deciding
from compress.surgery.learning import Learner

_APART = 1_000_003  # a prime: seeds of steps and windows do not meet


@dataclass(frozen=True)
class Writer:
    """A student that goes on with the beginnings of windows, as it is at each step."""

    learner: Learner
    asked: OnPolicy
    seed: int
    end: frozenset[int]  # tokens that end a text

    def takes(self, step: int) -> bool:
        """Whether the windows of a step are written on; told by seed and step alone."""
        return float(_numbers(self.seed, step, -1, 1)) < self.asked.share

    def write(self, ids: Tensor, windows: list[int], step: int) -> tuple[Tensor, Tensor]:
        """Go on with windows, each by numbers of its own, whatever else is written beside.

        Args:
            ids: [b, T], of which only the beginnings are read.
            windows: their numbers.
            step: of the training.

        Returns:
            What was written, [b, T], and how much each token counts, [b, T]: of every window those
            that were drawn, up to the one that ends it, 1 together.
        """
        given, (rows, length) = self.asked.prompt_tokens, ids.shape
        levels = torch.stack([_numbers(self.seed, step, one, length) for one in windows])
        found = ids.clone()
        with deciding(self.learner.model, length, self.learner.dtype) as decoder:
            for place in range(length - 1):
                logits = decoder.step(found[:, place])
                if place + 1 >= given:
                    found[:, place + 1] = drawn(
                        logits, levels[:, place + 1].to(ids.device),
                        temperature=self.asked.temperature, top_p=self.asked.top_p,
                    )  # fmt: skip
        written = found[:, given:]
        ends = torch.isin(written, torch.tensor(sorted(self.end), device=ids.device))
        counts = torch.zeros((rows, length), device=ids.device)
        counts[:, given:] = (ends.cumsum(1) - ends.int() == 0).float()
        return found, counts / counts.sum(1, keepdim=True)


def _numbers(seed: int, step: int, window: int, count: int) -> Tensor:
    """Uniform numbers of a window in a step."""
    mixed = ((seed * _APART + step) * _APART + window + 1) % 2**63
    return torch.rand(count, generator=torch.Generator().manual_seed(mixed))
