"""A student whole, some of its weights learning: tokens and what the teacher said in, loss out.

Integers stay: of a quantized linear only the factors by which its scales move are learned, and
every forward multiplies by scales as they can be stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from compress.kernels.distillation import UNLABELLED, Head, Objective, States, distillation
from compress.kernels.grid import Rounded, storable
from compress.surgery.load import materialize
from compress.surgery.walk import Weights, head_of

Learns = Literal["all", "scales_and_norms"]
_HEAD = "lm_head"
_FACTOR = ".parametrizations.weight.original"  # what torch calls what a weight is made of


class Learner(nn.Module):
    """A student, its teacher's head, and what is asked of it."""

    def __init__(
        self, student: Weights, rounded: Mapping[str, Rounded], teacher: Weights, *,
        learns: Learns, objective: Objective, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """Build the model in float32, and let learn what is to.

        Args:
            student: read whole.
            rounded: what of it has become codes, by the name of its linear (or tied embedding).
            teacher: of the same vocabulary.
            learns: every weight, or the scales of `rounded` and the weights of norms.
            objective: the loss.
            dtype: in which products are made; weights, sums and gradients are float32.
        """
        super().__init__()
        self.anatomy, self.objective, self.dtype = student.anatomy, objective, dtype
        self.model: Any = materialize(student, torch.float32)
        if student.config.get("attn_logit_softcapping") is None:
            self.model.set_attn_implementation("sdpa")  # whose backward is a kernel, too
        self._cap = student.config.get("final_logit_softcapping")
        self._teacher_cap = teacher.config.get("final_logit_softcapping")
        weight, bias = head_of(teacher)
        self.register_buffer("teacher_weight", weight.to(dtype), persistent=False)
        self.register_buffer("teacher_bias", bias, persistent=False)
        if learns == "scales_and_norms":
            head = self.anatomy.head.name  # transformers calls every head lm_head
            here = {_HEAD if name == head else name: matrix for name, matrix in rounded.items()}
            _learn_scales(self.model, here, {x.name: x.transposed for x in self.anatomy.linears})
        _let_learn(self.model, None if learns == "all" else frozenset(rounded))

    def forward(self, ids: Tensor, said: Tensor) -> Tensor:
        """The loss of windows.

        Args:
            ids: [B, T] token ids; every token counts.
            said: [B, T, D_t], the teacher's final hidden states of them.

        Returns:
            A scalar float32: nats per token.
        """
        return self._held(ids, said, self.objective, self.dtype)

    @torch.no_grad()
    def divergence(self, ids: Tensor, said: Tensor) -> Tensor:
        """KL(teacher || student), mean per token in nats, logits multiplied in float32."""
        return self._held(ids, said, Objective(), torch.float32)

    def _held(self, ids: Tensor, said: Tensor, asked: Objective, dtype: torch.dtype) -> Tensor:
        """Hold the student's windows against what the teacher said of them."""
        narrow = self.dtype != torch.float32
        with parametrize.cached(), torch.autocast(ids.device.type, self.dtype, enabled=narrow):
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            head = Head(*self._head(), self._cap)
        bias: Tensor | None = self.get_buffer("teacher_bias")
        theirs = Head(self.get_buffer("teacher_weight"), bias, self._teacher_cap)
        following = torch.full_like(ids, UNLABELLED)
        following[:, :-1] = ids[:, 1:]
        return distillation(
            States(hidden.flatten(0, 1), head), States(said.flatten(0, 1), theirs), asked,
            labels=following.flatten(), dtype=dtype,
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

    def learning(self) -> dict[str, nn.Parameter]:
        """What learns, by its name here."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def matrices(self) -> list[nn.Parameter]:
        """Of what learns, the weights that may decay: neither norms nor biases nor scales."""
        found = self.learning().items()
        return [p for n, p in found if p.dim() > 1 and not n.endswith(_FACTOR)]

    def pruned(self, names: Collection[str]) -> list[nn.Parameter]:
        """The learning weights of linears, by the linears' names."""
        return [p for n, p in self.learning().items() if n.removesuffix(".weight") in names]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over values of all that learns, by its names here."""
        with torch.no_grad():
            for name, parameter in self.learning().items():
                parameter.copy_(tensors[name])

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """What was learned, on the CPU.

        Yields:
            Full stored names with float32 tensors; and names of linears with the scales [O, G] of
            their codes, storable.
        """
        head = self.anatomy.head.name
        for name, parameter in self.learning().items():
            value = parameter.detach().cpu()
            if name.endswith(_FACTOR):
                linear = name.removesuffix(_FACTOR)
                (made,) = self.model.get_submodule(linear).parametrizations.weight
                yield head if linear == _HEAD else linear, made.scales(parameter).detach().cpu()
            else:
                module, _, part = name.rpartition(".")
                yield f"{head if module == _HEAD else module}.{part}", value


class _Scaled(nn.Module):
    """Makes a weight of codes that stay and of a factor for each scale."""

    offsets: Tensor
    scale: Tensor

    def __init__(self, matrix: Rounded, *, transposed: bool) -> None:
        super().__init__()
        rows, groups = matrix.scale.shape
        codes = matrix.codes.view(rows, groups, -1).short() - matrix.zero[..., None].short()
        small = codes.to(torch.int8) if matrix.bits < 8 else codes
        self.register_buffer("offsets", small, persistent=False)  # [O, G, group size]
        self.register_buffer("scale", matrix.scale, persistent=False)  # [O, G]
        self.transposed = transposed

    def scales(self, factor: Tensor) -> Tensor:
        """[O, G] as they are stored; gradients pass the rounding unchanged."""
        moved = self.scale * factor
        return moved + (storable(moved) - moved).detach()

    def forward(self, factor: Tensor) -> Tensor:
        weight = (self.offsets * self.scales(factor)[..., None]).flatten(1)
        return weight.T if self.transposed else weight

    def right_inverse(self, _: Tensor) -> Tensor:
        return torch.ones_like(self.scale)


def _learn_scales(
    model: nn.Module, rounded: Mapping[str, Rounded], transposed: Mapping[str, bool]
) -> None:
    for name, matrix in rounded.items():
        made = _Scaled(matrix, transposed=transposed.get(name, False))
        parametrize.register_parametrization(model.get_submodule(name), "weight", made)


def _let_learn(model: nn.Module, scales: Collection[str] | None) -> None:
    """Let all parameters learn, or (given names of linears) their scales and all norms.

    What learns gets memory of its own: weights may be mapped from files.
    """
    norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
    inside = {id(p) for module in norms for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if scales is None or name.endswith(_FACTOR) or id(parameter) in inside:
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
