"""Run a model one decoder block at a time: one block's weights resident, all activations held.

transformers supplies every family's arithmetic. The model is built without weights; asked to run,
it is stopped at its blocks, and what it would have handed to each (masks, rotary tables) is kept.
A block is then filled, called, emptied.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compress.anatomy import Anatomy, channels_field, own_channels
from compress.errors import ModelError, shown
from compress.families import FAMILIES
from compress.kernels.activations import Rounds
from compress.kernels.kv import KVScales
from compress.results import Progress
from compress.surgery import attention, caching
from compress.surgery.rounding import attach, detach

Watch = Callable[[Progress], None] | None
_NOT_DESCRIBED = (
    "quantization_config", "dtype", "torch_dtype", "attn_implementation", "experts_implementation",
    "auto_map", "per_layer_config",
)  # fmt: skip


class Weights(Protocol):
    """Anything that can be walked: a teacher, a student, an artifact."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``."""

    @property
    def anatomy(self) -> Anatomy:
        """The picture of the model."""

    def block(self, index: int) -> dict[str, Tensor]:
        """Dense tensors of one block by their stored names."""

    def outside(self) -> dict[str, Tensor]:
        """Dense tensors that belong to no block by their stored names."""

    def inputs(self, index: int) -> Mapping[str, Rounds]:
        """The linears of one block, by name, whose inputs are rounded when they multiply."""

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""


class _Stop(Exception):  # noqa: N818 - control flow, not an error
    """Raised inside a forward when all that is wanted has been seen."""


class Walk:
    """A model whose blocks are filled one at a time."""

    def __init__(self, weights: Weights, *, device: str, dtype: torch.dtype) -> None:
        """Build the model without weights, then load what lies outside its blocks.

        Args:
            weights: what to walk; read block by block, never held whole.
            device: where blocks run.
            dtype: in which they run; activations carry it too.
        """
        self.weights, self.anatomy = weights, weights.anatomy
        self.device, self.dtype = device, dtype
        self._model = empty_model(weights.config, dtype)
        self._modules = [self._model.get_submodule(block.prefix) for block in self.anatomy.blocks]
        self._empty = [dict(module.state_dict()) for module in self._modules]
        self._calls: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}
        head = self.anatomy.head.name + "."
        outside = {
            k: self._place(v) for k, v in weights.outside().items() if not k.startswith(head)
        }
        self._model.load_state_dict(outside, strict=False, assign=True)
        for buffers in (module._buffers for module in self._model.modules()):
            buffers.update({k: v.to(device) for k, v in buffers.items() if v is not None})

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        """What block 0 is given for token ids [B, T]: [B, T, D] in the walk's dtype."""
        self._arguments(ids.shape[1])  # while the embedding is there: see `forget_embedding`
        caught: list[Tensor] = []

        def stop(hidden: Tensor, *_: Any, **__: Any) -> None:
            caught.append(hidden)
            raise _Stop

        with self._replaced([stop] * len(self._modules)), contextlib.suppress(_Stop):
            self._model(input_ids=ids.to(self.device), use_cache=False)
        return caught[0]

    def forget_embedding(self) -> None:
        """Let go of the input embedding, once all that is to be walked has been embedded."""
        module = self._model.get_submodule(self.anatomy.embedding)
        module.weight = nn.Parameter(module.weight.to("meta"), requires_grad=False)

    @contextlib.contextmanager
    def filled(
        self, index: int, tensors: Mapping[str, Tensor] | None = None
    ) -> Iterator[nn.Module]:
        """The module of one block with its weights in, for as long as the context lasts.

        Args:
            index: which block.
            tensors: its tensors by stored names; read from the walk's weights by default.
        """
        module, prefix = self._modules[index], self.anatomy.blocks[index].prefix + "."
        stored = self.weights.block(index) if tensors is None else tensors
        wanted = self._empty[index]
        state = {k.removeprefix(prefix): self._place(v) for k, v in stored.items()}
        module.load_state_dict({k: v for k, v in state.items() if k in wanted}, assign=True)
        linears = [
            (linear, module.get_submodule(linear.name.removeprefix(prefix)))
            for linear in self.anatomy.blocks[index].linears
        ]
        rounding = self.weights.inputs(index)
        for linear, target in linears:
            if linear.name in rounding:
                attach(target, rounding[linear.name], transposed=linear.transposed)
        if (scales := self.weights.kv(index)) is not None:
            attention_module = caching.attention_of(module, self.anatomy.blocks[index])
            caching.attach(attention_module, scales.on(self.device).round)
        try:
            yield module.eval().requires_grad_(False)
        finally:
            for _, target in linears:
                detach(target)
            caching.detach(module)
            module.load_state_dict(wanted, assign=True)

    @torch.inference_mode()
    def call(self, index: int, module: nn.Module, hidden: Tensor) -> Tensor:
        """Run one filled block on activations [B, T, D]."""
        return self.run(index, module, hidden)

    def run(
        self,
        index: int,
        module: nn.Module,
        hidden: Tensor,
        made: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """`call`, for those who switch gradients on or off themselves.

        Parameters `made`, by full stored name, take the place of the block's own meanwhile.
        """
        args, kwargs = self._arguments(hidden.shape[1])[index]
        prefix = self.anatomy.blocks[index].prefix + "."
        own = {name.removeprefix(prefix): weight for name, weight in made.items()}
        out: Tensor | tuple[Tensor, ...] = (
            functional_call(module, own, (hidden, *args), kwargs)
            if own
            else module(hidden, *args, **kwargs)
        )
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the final norm: what the head is given."""
        out: Tensor = self._model.get_submodule(self.anatomy.final_norm)(hidden)
        return out

    def _arguments(self, seq_len: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What the model hands each block beside the hidden states, for sequences of one length."""
        if seq_len not in self._calls:
            self._calls[seq_len] = self._record(seq_len)
        return self._calls[seq_len]

    def _record(self, seq_len: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def keep(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls.append((args, kwargs))
            if len(calls) == len(self._modules):
                raise _Stop
            return hidden

        ids = torch.zeros(1, seq_len, dtype=torch.long, device=self.device)
        with self._replaced([keep] * len(self._modules)), contextlib.suppress(_Stop):
            self._model(input_ids=ids, use_cache=False)
        return calls

    @contextlib.contextmanager
    def _replaced(self, forwards: list[Callable[..., Any]]) -> Iterator[None]:
        for module, forward in zip(self._modules, forwards, strict=True):
            module.forward = forward
        try:
            yield
        finally:
            for module in self._modules:
                del module.forward


def described_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a ``config.json`` describes a model.

    Private names and implementations (which can name code on the hub) are not a config's to set.
    """
    return {k: v for k, v in config.items() if k not in _NOT_DESCRIBED and not k.startswith("_")}


def _described_model(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    # torch's fused attention cannot cap scores, as Gemma 2 wants it
    capped = config.get("attn_logit_softcapping")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**described_fields(config)),
            dtype=dtype,
            attn_implementation="eager" if capped else attention.register(),
            trust_remote_code=False,
        )
        _give_own_blocks(model, config, dtype)
    return model


def _give_own_blocks(model: Any, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Put blocks in that have other widths than most.

    transformers 5.23 reads `per_layer_config`, but its models build every block alike.
    """
    for index, channels in own_channels(config).items():
        name = FAMILIES[str(config["model_type"])].block.format(i=index)
        own = copy.copy(model.config)
        setattr(own, channels_field(config), channels)
        block = type(model.get_submodule(name))(own, index)
        model.set_submodule(name, block.to(dtype))


def empty_model(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Build a transformers causal model whose parameters hold no data; its tables are computed.

    Raises:
        ModelError: transformers cannot make one of this config.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        model = _described_model(config, dtype)
    except Exception as error:  # a config may make its classes raise anything
        reason = shown(f"{type(error).__name__}: {error}")
        raise ModelError(
            f"config.json: transformers cannot build what it describes ({reason}). Fetch the "
            "config again."
        ) from error
    for module in model.modules():
        lost = {k: v for k, v in module._buffers.items() if v is not None and v.is_meta}
        if lost:
            module._buffers.update({k: torch.empty_like(v, device="cpu") for k, v in lost.items()})
            # computes tables; parameters are on meta, where filling does nothing
            model._init_weights(module)
    return model.eval()


@torch.inference_mode()
def forward(
    weights: Weights,
    batches: Sequence[Tensor],
    *,
    device: str,
    dtype: torch.dtype,
    watch: Watch = None,
) -> list[Tensor]:
    """Final hidden states of batches of token ids, after the final norm, walked block by block.

    Args:
        weights: the model.
        batches: token ids, each [B, T]; padding on the right is harmless: attention is causal.
        device: where blocks run.
        dtype: in which they run.
        watch: told of each finished block.

    Returns:
        For each batch [B, T, D] in `dtype`, on the CPU.
    """
    walk = Walk(weights, device=device, dtype=dtype)
    hidden = [walk.embed(ids) for ids in batches]
    walk.forget_embedding()
    blocks = len(walk.anatomy.blocks)
    for index in range(blocks):
        with walk.filled(index) as module:
            hidden = [walk.call(index, module, part) for part in hidden]
        if watch:
            watch(Progress("forward", index + 1, blocks))
    return [walk.finish(part).cpu() for part in hidden]


def hidden_states(
    weights: Weights,
    ids: Tensor,
    *,
    device: str,
    dtype: torch.dtype,
    batch_tokens: int = 4096,
    watch: Watch = None,
) -> Tensor:
    """Final hidden states [B, T, D] of token ids [B, T], `batch_tokens` a pass; see `forward`."""
    batches = ids.split(max(1, batch_tokens // ids.shape[1]))
    return torch.cat(forward(weights, batches, device=device, dtype=dtype, watch=watch))


@torch.inference_mode()
def logits(
    weights: Weights, hidden: Tensor, *, head: tuple[Tensor, Tensor | None] | None = None
) -> Tensor:
    """Logits [N, V] float32 of final hidden states [N, D].

    Args:
        weights: the model.
        hidden: in the dtype in which to multiply.
        head: `head_of(weights)`, when it is at hand.
    """
    weight, bias = head if head is not None else head_of(weights)
    out = nn.functional.linear(
        hidden, weight.to(hidden), None if bias is None else bias.to(hidden)
    ).float()
    cap = weights.config.get("final_logit_softcapping")
    return out if not cap else torch.tanh(out / cap) * cap


def head_of(weights: Weights) -> tuple[Tensor, Tensor | None]:
    """The head's weight [V, D] and bias; the embedding's weight when they are tied."""
    anatomy, outside = weights.anatomy, weights.outside()
    name = anatomy.embedding if anatomy.tied else anatomy.head.name
    return outside[name + ".weight"], outside.get(anatomy.head.name + ".bias")
