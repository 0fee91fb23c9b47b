"""Decode many sequences in step with a whole transformers model, one token of each at a time.

Two things make it several times faster than transformers' own loop on a CPU: keys and values are
written into rooms made once, not concatenated, and heads that share keys are rows of one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ATTENTION = "compress_decode"  # the name under which transformers finds `_attend`
_PLACES = 64


class Decoder:
    """A batch of sequences that grow together."""

    def __init__(self, model: Any, room: int) -> None:
        """Take over a model that `load.materialize` made, for sequences of `room` tokens."""
        _register()
        model.set_attn_implementation(_ATTENTION)
        self._model = model
        self._cache = _cache(model.config.num_hidden_layers, room)

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Append one token to every sequence.

        Args:
            ids: [B] token ids.

        Returns:
            Logits [B, V] float32 of the token that follows.
        """
        out = self._model(input_ids=ids[:, None], past_key_values=self._cache, use_cache=True)
        logits: Tensor = out.logits[:, -1].float()
        return logits


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        # Never left out for a single query: places not yet written have to be masked.
        return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})

    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, mask)


def _attend(
    module: Any,
    query: Tensor,  # [B, H, 1, D]
    key: Tensor,  # [B, KV heads, T, D]
    value: Tensor,
    mask: Tensor,  # bool, broadcast to [B, 1, 1, T]
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    batch, heads, _one, width = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    scores = (rows @ key.transpose(-1, -2)).float() * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    out = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(value.dtype) @ value
    return out.reshape(batch, 1, heads, value.shape[-1]), None


def _reach(length: int) -> int:
    """Places looked at: few distinct numbers, since oneDNN compiles kernels for each."""
    return -(-length // _PLACES) * _PLACES


def _cache(layers: int, room: int) -> Any:
    from transformers.cache_utils import Cache, DynamicLayer

    room = _reach(room)

    class Room(DynamicLayer):
        """Keys and values of one layer, written into place; what is handed out are views."""

        length = 0

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            new = (key_states, value_states)
            if not self.is_initialized:  # zeros: a masked place must be finite
                self.rooms = [t.new_zeros(*t.shape[:2], room, t.shape[-1]) for t in new]
                self.is_initialized = True
            end = self.length + key_states.shape[2]
            for place, tensor in zip(self.rooms, new, strict=True):
                place[:, :, self.length : end] = tensor
            self.length = end
            self.keys, self.values = (place[:, :, : _reach(end)] for place in self.rooms)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return _reach(self.length + query_length), 0

        def get_seq_length(self) -> int:
            return self.length

    return Cache(layers=[Room() for _ in range(layers)])  # type: ignore[no-untyped-call]
