"""Decoders as plain functions on tensors.

    ids ─ embedding ─▶ blocks ─▶ norm ─▶ head ─▶ logits
    a block:  x + o(attention(rope(qkv(norm(x)))));  x + down(act(gate) · up), both of norm(x)

What families do otherwise is in `compress.runtime.settings.Ways`. Hidden states are [N, hidden],
tokens of all requests of a step: only attention tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from compress.errors import ModelError
from compress.kernels.kv import KVScales
from compress.machine import computing_with
from compress.runtime import rope
from compress.runtime.attention import paged_attention
from compress.runtime.batch import Batch
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.native.decoder import STEP_ROWS, Decoder, refusal
from compress.runtime.pages import Pages
from compress.runtime.settings import read_settings
from compress.runtime.weights import BlockWeights, Reader, Stored

Turns = dict[str, tuple[Tensor, Tensor]]  # by the kind of attention: cosine and sine of positions
_BENT = partial(gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu, "gelu": gelu, "gelu_new": _BENT, "gelu_pytorch_tanh": _BENT, "relu": relu,
}  # fmt: skip


class Model:
    """A decoder ready to run."""

    def __init__(self, stored: Stored, dtype: torch.dtype, device: str = "cpu") -> None:
        """Load the weights of an artifact for activations of `dtype` (bfloat16 or float32).

        Raises:
            ModelError: a family, an activation or a rotation that is not run here.
        """
        anatomy = stored.anatomy
        self.dtype, self.device = dtype, device
        self.threads = torch.get_num_threads()
        self.vocab_size = anatomy.vocab_size
        self.weights = anatomy.weights + anatomy.head.weights
        try:
            self.settings = read_settings(stored.config, anatomy)
            self._frequencies = {
                kind: rope.frequencies(stored.config, self.settings.head_dim, kind).to(device)
                for kind in (set() if self.settings.ways.positions else set(self.settings.kinds))
            }
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise ModelError(
                f"config.json: a value is of a kind that cannot be computed with ({error}). Fetch "
                "the config again."
            ) from error
        read = Reader(stored, self.settings, dtype, device)
        self.blocks = tuple(read.block(block) for block in anatomy.blocks)
        told = [stored.kv(block.index) for block in anatomy.blocks]
        self.kv_scales = tuple(scales for scales in told if scales is not None)
        self.positions = read.positions()
        self.norm = read.norm(anatomy.final_norm)
        self.head = read.linear(anatomy.embedding if anatomy.tied else anatomy.head.name)
        self.embedding = self.head if anatomy.tied else read.linear(anatomy.embedding)
        self.linears = read.linears  # by name
        self._decoder: tuple[Pages, Decoder | None] | None = None  # for the pages last read

    def pages(self, tokens: int, scales: Sequence[KVScales] | None = None) -> Pages:
        """Room for the keys and values of so many tokens, cached as the artifact says, or so."""
        pages = -(-tokens // PAGE_TOKENS)
        shape = (len(self.blocks), pages, self.settings.kv_heads, self.settings.head_dim)
        scales = self.kv_scales if scales is None else scales
        return Pages(shape, dtype=self.dtype, scales=scales, device=self.device)

    @torch.inference_mode()
    def forward(self, batch: Batch, pages: Pages) -> Tensor:
        """Read the tokens of a batch; return the final hidden states [M, hidden] of wanted rows."""
        batch = batch.on(self.device)
        x = self.embedding.rows(batch.ids)
        if self.positions is not None:
            x = x + self.positions[batch.positions]
        elif self.settings.embedding_scale != 1.0:
            x = x * torch.tensor(self.settings.embedding_scale, dtype=x.dtype)
        turns = {
            kind: rope.angles(frequency, batch.positions, self.dtype)
            for kind, frequency in self._frequencies.items()
        }
        for index, block in enumerate(self.blocks):
            mixed = x + self._attention(index, x, turns, batch, pages)
            x = mixed + self._mlp(block, x if self.settings.parallel else mixed)
        return self.norm(x[batch.wanted])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] float32 of hidden states [N, hidden]."""
        logits = self.head(hidden).float()
        cap = self.settings.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.inference_mode()
    def next_logits(self, batch: Batch, pages: Pages) -> Tensor:
        """Read the tokens of a batch; return logits [M, V] float32 of wanted rows, on its device.

        A few tokens are read by one compiled step, where the model and its pages allow; see
        `compress.runtime.native.decoder.refusal`.
        """
        decoder = self._decoder_of(pages) if len(batch.ids) <= STEP_ROWS else None
        if decoder is None:
            with computing_with(self.threads):
                return self.logits(self.forward(batch, pages))
        # torch's threads would wait, spinning, where those of the step are to compute
        with computing_with(1):
            x = self.embedding.rows(batch.ids).float()
            frequency = next(iter(self._frequencies.values()))
            angle = torch.outer(batch.positions.float(), frequency)
            return decoder.logits(x, (angle.cos(), angle.sin()), batch)

    def _decoder_of(self, pages: Pages) -> Decoder | None:
        if self._decoder is None or self._decoder[0] is not pages:
            compiled = self.device == "cpu" and refusal(self, pages) is None
            self._decoder = pages, Decoder(self, pages) if compiled else None
        return self._decoder[1]

    def _attention(self, index: int, x: Tensor, turns: Turns, batch: Batch, pages: Pages) -> Tensor:
        """What the attention of a block adds to x."""
        block, s = self.blocks[index], self.settings
        x = block.attention_norm(x)
        heads = torch.cat([one(x) for one in block.qkv], dim=-1)
        heads = heads.unflatten(-1, (-1, s.head_dim))  # [N, H + 2 KV, D]
        if s.ways.by_head:
            heads = heads.unflatten(1, (-1, 3)).transpose(1, 2).flatten(1, 2)
        turned, values = heads[:, : -s.kv_heads], heads[:, -s.kv_heads :]
        if block.qk_norm is not None:
            turned = block.qk_norm(turned)
        if turns:
            turned = rope.rotate(turned, *turns[s.kinds[index]])
        queries, keys = turned[:, : s.heads], turned[:, s.heads :]
        if s.query_scale != 1.0:
            queries = queries * s.query_scale
        pages.write(index, batch.slots, keys, values)
        steps = pages.steps(index)
        if steps is not None:
            queries = _scaled(queries, steps[0])
        mixed = paged_attention(queries, index, pages, batch, s.windows[index], s.score_cap)
        if steps is not None:
            mixed = _scaled(mixed.view_as(queries), steps[1]).flatten(1)
        mixed = block.o(mixed)
        return mixed if block.attention_sum is None else block.attention_sum(mixed)

    def _mlp(self, block: BlockWeights, x: Tensor) -> Tensor:
        """What the MLP of a block adds to x."""
        x, act = block.mlp_norm(x), ACTIVATIONS[self.settings.activation]
        *gate, up = (one(x) for one in block.gate_up)
        made = block.down(act(gate[0]).mul_(up) if gate else act(up))
        return made if block.mlp_sum is None else block.mlp_sum(made)


def _scaled(heads: Tensor, steps: Tensor) -> Tensor:
    """Query heads [N, H, D] times the steps [1 or KV, 1, 1 or D] of the keys that each reads."""
    grouped = heads.unflatten(1, (len(steps), -1))  # [N, 1 or KV, H / KV, D]
    scaled: Tensor = grouped * steps
    return scaled.to(heads.dtype).flatten(1, 2)
