"""A student whole, some of its weights learning: tokens and what the teacher said in, loss out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from compress.kernels.distillation import UNLABELLED, Head, Objective, States, distillation
from compress.kernels.grid import Rounded
from compress.surgery import attention, grids
from compress.surgery.grids import Grid
from compress.surgery.load import materialize
from compress.surgery.matching import Matched, Matching
from compress.surgery.sharding import laid_out, shard, whole
from compress.surgery.walk import Weights, head_of

_HEAD = "lm_head"  # what transformers calls every head
_MATCHING = "matching."


@dataclass(frozen=True)
class Lesson:
    """Windows of tokens, and what the teacher says of them."""

    ids: Tensor  # [B, T]
    said: Tensor  # [B, T, D_t], its final hidden states
    inside: tuple[Tensor, ...] = ()  # its states behind each block that is matched, [B, T, D_t]
    weights: Tensor | None = None  # [B, T], how much each token counts; None: alike
    drawn: bool = False  # by the student itself: what follows there is no text to expect

    def to(self, device: torch.device) -> Lesson:
        """The same on a device."""
        inside = tuple(states.to(device) for states in self.inside)
        weights = None if self.weights is None else self.weights.to(device)
        return Lesson(self.ids.to(device), self.said.to(device), inside, weights, self.drawn)

    @property
    def asked(self) -> Tensor | None:
        """How much what is said at each place counts, [B · T]: as the token behind it does."""
        if self.weights is None:
            return None
        found = torch.zeros_like(self.weights)
        found[:, :-1] = self.weights[:, 1:]
        return found.flatten()


class Learner(nn.Module):
    """A student, its teacher's head, and what is asked of it."""

    def __init__(
        self, student: Weights, teacher: Weights, *, learns: Iterable[tuple[str, Grid]] | None,
        objective: Objective, dtype: torch.dtype, embeddings: bool = False,
        matched: Matched | None = None,
    ) -> None:  # fmt: skip
        """Build the model in float32, and let learn what is to.

        Args:
            student: read whole.
            teacher: of the same vocabulary.
            learns: what makes the weights of linears (or a tied embedding) that have become codes,
                by name: it learns, and norms do. None: every weight learns.
            objective: the loss.
            dtype: in which products are made; weights, sums and gradients are float32.
            embeddings: embedding and head learn, too, where they have weights of their own.
            matched: what is asked of its hidden states beside.
        """
        super().__init__()
        self.anatomy, self.objective, self.dtype = student.anatomy, objective, dtype
        self.model: Any = materialize(student, torch.float32)
        if student.config.get("attn_logit_softcapping") is None:
            self.model.set_attn_implementation(attention.register())
        self._cap = student.config.get("final_logit_softcapping")
        self._teacher_cap = teacher.config.get("final_logit_softcapping")
        weight, bias = head_of(teacher)
        self.register_buffer("teacher_weight", weight.to(dtype), persistent=False)
        self.register_buffer("teacher_bias", bias, persistent=False)
        for name, grid in learns or ():
            here = _HEAD if name == self.anatomy.head.name else name
            grids.replace_weight(self.model.get_submodule(here), grid)
        table = self.model.get_input_embeddings()
        if self.anatomy.tied and not hasattr(table, "weight"):
            grids.read_from(self.model.get_output_embeddings(), table)
        _let_learn(self.model, everything=learns is None, embeddings=embeddings)
        self.matching = None
        if matched is not None:
            self.matching = Matching(self.model, student.anatomy, teacher.anatomy, matched)

    def made(self) -> AbstractContextManager[None]:
        """While it lasts windows may be read: see `grids.made`."""
        return grids.made(self.model)

    def forward(self, lesson: Lesson) -> Tensor:
        """The loss of windows, within `made`: a scalar float32, nats per token."""
        asked_for = replace(self.objective, cross_entropy=0.0) if lesson.drawn else self.objective
        loss = self._held(lesson, asked_for, self.dtype)
        if self.matching is None:
            return loss
        asked = lesson.asked
        if asked is None:
            asked = torch.ones(lesson.ids.numel(), device=loss.device)
        shares = asked / asked.sum()
        added: Tensor = self.matching(lesson.inside, shares)
        return loss + added

    @torch.no_grad()
    def divergence(self, lesson: Lesson) -> Tensor:
        """KL(teacher || student), mean per token in nats, logits multiplied in float32."""
        return self._held(lesson, Objective(), torch.float32)

    def _held(self, lesson: Lesson, asked: Objective, dtype: torch.dtype) -> Tensor:
        """Hold the student's windows against what the teacher said of them."""
        ids, said = lesson.ids, lesson.said
        narrow = self.dtype != torch.float32
        with torch.autocast(ids.device.type, self.dtype, enabled=narrow):
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            head = Head(*self._head(), self._cap)
        bias: Tensor | None = self.get_buffer("teacher_bias")
        theirs = Head(self.get_buffer("teacher_weight"), bias, self._teacher_cap)
        following = torch.full_like(ids, UNLABELLED)
        following[:, :-1] = ids[:, 1:]
        return distillation(
            States(hidden.flatten(0, 1), head), States(said.flatten(0, 1), theirs), asked,
            labels=following.flatten(), weights=lesson.asked, dtype=dtype,
        )  # fmt: skip

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """The student's head; of a tied one the embedding, which may be codes."""
        head = self.model.get_output_embeddings()
        tied = self.model.get_input_embeddings() if self.anatomy.tied else head
        return tied.weight, getattr(head, "bias", None)

    def recompute_blocks(self) -> None:
        """Keep only what enters each block; the rest is computed again on the way back."""
        for block in self.anatomy.blocks:
            module = self.model.get_submodule(block.prefix)
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)

    def shard(self, processes: int, device: str) -> None:
        """Hold a share of all weights, beside so many processes that do the same; see `sharding`.

        Before anything is on its device: weights go there a block at a time.
        """
        blocks = [self.model.get_submodule(block.prefix) for block in self.anatomy.blocks]
        shard(self, blocks, processes, device)

    def learning(self) -> dict[str, nn.Parameter]:
        """What learns, by its name here: of the student, and what carries its states over."""
        found = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return found | {f"{_MATCHING}{n}": p for n, p in enumerate(self.projections())}

    def projections(self) -> list[nn.Parameter]:
        """Of what learns, what is no part of the student."""
        return [] if self.matching is None else list(self.matching.parameters())

    def matrices(self) -> list[nn.Parameter]:
        """Of what learns, the weights that may decay: neither norms nor biases nor grids."""
        found = self.learning().items()
        inside = (found for found in found if not found[0].startswith(_MATCHING))
        return [p for n, p in inside if p.dim() > 1 and grids.PART not in n]

    def latent(self) -> list[nn.Parameter]:
        """Of what learns, what is rounded to codes."""
        found = (grid.latent for _, _, grid in grids.of(self.model))
        return [parameter for parameter in found if parameter is not None]

    def pruned(self, names: Collection[str]) -> list[nn.Parameter]:
        """The learning weights of linears, by the linears' names."""
        return [p for n, p in self.learning().items() if n.removesuffix(".weight") in names]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over values of all that learns, by its names here."""
        with torch.no_grad():
            for name, parameter in self.learning().items():
                parameter.copy_(laid_out(tensors[name], parameter))

    def learned(self) -> Iterator[tuple[str, Tensor | Rounded]]:
        """What was learned, on the CPU.

        Yields:
            Full stored names with float32 tensors; names of linears with their codes and scales.
        """
        head = self.anatomy.head.name
        for name, parameter in self.learning().items():
            module, _, part = name.rpartition(".")
            if grids.PART not in name and not name.startswith(_MATCHING):
                yield f"{head if module == _HEAD else module}.{part}", whole(parameter)
        for name, _, grid in grids.of(self.model):
            yield head if name == _HEAD else name, grid.rounded()


def _let_learn(model: Any, *, everything: bool, embeddings: bool) -> None:
    """Let all parameters learn, or grids, norms and, where asked, both ends.

    What learns gets memory of its own: weights may be mapped from files.
    """
    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
    some = [p for module in norms for p in module.parameters()]
    if embeddings:
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        some += [p for module in ends for n, p in module.named_parameters() if n == "weight"]
    inside = set(map(id, some))
    for parameter in model.parameters():
        if everything or id(parameter) in inside:
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
