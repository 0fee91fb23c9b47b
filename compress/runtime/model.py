"""Llama-family decoders as plain functions on tensors: llama, mistral, qwen2, qwen3.

    ids ─ embedding ─▶ blocks ─▶ norm ─▶ head ─▶ logits
    a block:  x + o(attention(rope(qkv(norm(x)))));  x + down(silu(gate) · up), both of norm(x)

Hidden states are [N, hidden], tokens of all requests of a step: only attention tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from compress.anatomy import Anatomy, Block
from compress.errors import ModelError
from compress.kernels.grid import Rounded
from compress.kernels.kv import KVScales
from compress.runtime import rope
from compress.runtime.batch import Batch
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.linear import FEW_ROWS, Linear, Matrix, linear
from compress.runtime.native.decoder import Decoder, refusal
from compress.runtime.pages import Pages
from compress.runtime.settings import Settings, read_settings


class Stored(Protocol):
    """What is read of an artifact."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``."""

    @property
    def anatomy(self) -> Anatomy:
        """The picture of the dense model."""

    def rounded(self, name: str) -> Rounded | None:
        """A quantized matrix by its module name, None when it is stored dense."""

    def tensor(self, name: str) -> Tensor:
        """A tensor by its full name."""

    def kv(self, index: int) -> KVScales | None:
        """How one block rounds the keys and values that it caches; None: it does not."""


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm. `gain` is the weight times √D, float32; `floor` is √(eps·D)."""

    gain: Tensor
    floor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize the last dimension, in three passes; torch's own makes eight on a CPU."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.div(x, torch.hypot(length, self.floor)).mul_(self.gain).to(x.dtype)


@dataclass(frozen=True)
class Fan:
    """Linears that read the same input."""

    names: tuple[str, ...]
    linears: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [N, I] to all outputs side by side."""
        return torch.cat([one(x) for one in self.linears], dim=-1)


@dataclass(frozen=True)
class BlockWeights:
    """One decoder block."""

    attention_norm: Norm
    qkv: Fan
    qk_norm: Norm | None  # Qwen3; gain [H + KV, D], one row a head
    o: Fan
    mlp_norm: Norm
    gate_up: Fan
    down: Fan


class Model:
    """A decoder ready to run."""

    def __init__(self, stored: Stored, dtype: torch.dtype) -> None:
        """Load the weights of an artifact for activations of `dtype` (bfloat16 or float32).

        Raises:
            ModelError: a family, an activation or a rotation that is not run here.
        """
        anatomy = stored.anatomy
        self.dtype = dtype
        self.vocab_size = anatomy.vocab_size
        try:
            self.settings = read_settings(stored.config, anatomy)
            self._frequencies = rope.frequencies(stored.config, self.settings.head_dim)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise ModelError(
                f"config.json: a value is of a kind that cannot be computed with ({error}). Fetch "
                "the config again."
            ) from error
        read = _Reader(stored, self.settings, dtype)
        self.blocks = tuple(read.block(block) for block in anatomy.blocks)
        told = [stored.kv(block.index) for block in anatomy.blocks]
        self.kv_scales = tuple(scales for scales in told if scales is not None)
        self.norm = read.norm(anatomy.final_norm)
        head = anatomy.embedding if anatomy.tied else anatomy.head.name
        self.head = read.fan([head])
        self.embedding = self.head if anatomy.tied else read.fan([anatomy.embedding])
        self._decoder: tuple[Pages, Decoder | None] | None = (
            None  # for the pages that were last read
        )

    def pages(self, tokens: int, scales: Sequence[KVScales] | None = None) -> Pages:
        """Room for the keys and values of so many tokens, cached as the artifact says, or so."""
        pages = -(-tokens // PAGE_TOKENS)
        shape = (len(self.blocks), pages, self.settings.kv_heads, self.settings.head_dim)
        return Pages(shape, dtype=self.dtype, scales=self.kv_scales if scales is None else scales)

    @torch.inference_mode()
    def forward(self, batch: Batch, pages: Pages) -> Tensor:
        """Read the tokens of a batch; return the final hidden states [M, hidden] of wanted rows."""
        turn = rope.angles(self._frequencies, batch.positions, self.dtype)
        x = self.embedding.linears[0].rows(batch.ids)
        for index, block in enumerate(self.blocks):
            x = x + self._attention(index, block.attention_norm(x), turn, batch, pages)
            x = x + _mlp(block, block.mlp_norm(x))
        return self.norm(x[batch.wanted])

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] float32 of hidden states [N, hidden]."""
        return self.head(hidden).float()

    @torch.inference_mode()
    def next_logits(self, batch: Batch, pages: Pages) -> Tensor:
        """Read the tokens of a batch; return logits [M, V] float32 of wanted rows.

        A few tokens are read by one compiled step, where the model and its pages allow; see
        `compress.runtime.native.decoder.refusal`.
        """
        decoder = self._decoder_of(pages) if len(batch.ids) <= FEW_ROWS else None
        if decoder is None:
            return self.logits(self.forward(batch, pages))
        x = self.embedding.linears[0].rows(batch.ids).float()
        angle = torch.outer(batch.positions.float(), self._frequencies)
        return decoder.logits(x, (angle.cos(), angle.sin()), batch)

    def _decoder_of(self, pages: Pages) -> Decoder | None:
        if self._decoder is None or self._decoder[0] is not pages:
            made = Decoder(self, pages) if refusal(self, pages) is None else None
            self._decoder = pages, made
        return self._decoder[1]

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Every linear under its name."""
        fans = [fan for b in self.blocks for fan in (b.qkv, b.o, b.gate_up, b.down)]
        for fan in (*fans, self.head, *([] if self.embedding is self.head else [self.embedding])):
            yield from zip(fan.names, fan.linears, strict=True)

    def _attention(
        self, index: int, x: Tensor, turn: tuple[Tensor, Tensor], batch: Batch, pages: Pages
    ) -> Tensor:
        block, s = self.blocks[index], self.settings
        heads = block.qkv(x).view(len(x), s.heads + 2 * s.kv_heads, s.head_dim)
        turned, values = heads[:, : -s.kv_heads], heads[:, -s.kv_heads :]
        if block.qk_norm is not None:
            turned = block.qk_norm(turned)
        turned = rope.rotate(turned, *turn)
        queries, keys = turned[:, : s.heads], turned[:, s.heads :]
        pages.write(index, batch.slots, keys, values)
        steps = pages.steps(index)
        if steps is None:
            return block.o(paged_attention(queries, index, pages, batch, s.windows[index]))
        queries = _scaled(queries, steps[0])
        mixed = paged_attention(queries, index, pages, batch, s.windows[index])
        return block.o(_scaled(mixed.view_as(queries), steps[1]).flatten(1))


def _scaled(heads: Tensor, steps: Tensor) -> Tensor:
    """Query heads [N, H, D] times the steps [1 or KV, 1, 1 or D] of the keys that each reads."""
    grouped = heads.unflatten(1, (len(steps), -1))  # [N, 1 or KV, H / KV, D]
    scaled: Tensor = grouped * steps
    return scaled.to(heads.dtype).flatten(1, 2)


def paged_attention(
    queries: Tensor, layer: int, pages: Pages, batch: Batch, window: int | None
) -> Tensor:
    """Causal attention of each token to those of its request up to itself, read from pages.

    Args:
        queries: [N, H, D].
        layer: whose keys and values are read.
        pages: where they are, those of the queries' own tokens too.
        batch: which rows belong to which request, and where its tokens lie.
        window: each query sees this many keys, itself included; None for all.

    Returns:
        [N, H·D], of codes whose steps all tokens share: still to be scaled, see `Pages.steps`.
    """
    starts, lengths = batch.starts.tolist(), batch.lengths.tolist()
    mixed = []
    for request, tokens in enumerate(lengths):
        rows = queries[starts[request] : starts[request + 1]].transpose(0, 1)
        keys, values = (
            half.read(layer, batch.tables[request], tokens) for half in (pages.keys, pages.values)
        )
        mixed.append(attend(rows, keys, values, window))
    return torch.cat(mixed)


def attend(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Causal attention with grouped queries; the queries are the last T of S positions.

    Args:
        queries: [H, T, D].
        keys: [KV, S, D]; query head h reads key head h // (H / KV).
        values: [KV, S, D].
        window: each query sees this many keys, itself included; None for all.

    Returns:
        [T, H·D].
    """
    heads, tokens, width = queries.shape
    kv_heads, total, _ = keys.shape
    if tokens == 1:
        # No mask: the queries of a group can stand as rows of one product, 3 to 7 times faster.
        first = 0 if window is None else max(0, total - window)
        rows = queries.reshape(1, kv_heads, -1, width)
        keys, values = keys[None, :, first:], values[None, :, first:]
        return scaled_dot_product_attention(rows, keys, values).reshape(1, -1)
    plain = tokens == total and (window is None or tokens <= window)
    mask = None if plain else visible(tokens, total, window)
    out = scaled_dot_product_attention(
        queries[None], keys[None], values[None], mask, is_causal=plain, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(tokens, heads * width)


def visible(tokens: int, total: int, window: int | None) -> Tensor:
    """Which of `total` keys each of the last `tokens` positions sees, [T, S] bool."""
    key, query = torch.arange(total), torch.arange(total - tokens, total)[:, None]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def _mlp(block: BlockWeights, x: Tensor) -> Tensor:
    gate, up = block.gate_up(x).chunk(2, dim=-1)
    return block.down(silu(gate).mul_(up))


class _Reader:
    """Reads the parts of a model from an artifact, in the dtype it will run in."""

    def __init__(self, stored: Stored, settings: Settings, dtype: torch.dtype) -> None:
        self._stored, self._settings, self._dtype = stored, settings, dtype

    def block(self, block: Block) -> BlockWeights:
        by_role = {one.role: one.name for one in block.linears}
        return BlockWeights(
            attention_norm=self.norm(f"{block.prefix}.input_layernorm"),
            qkv=self.fan([by_role["q"], by_role["k"], by_role["v"]]),
            qk_norm=self._qk_norm(f"{block.prefix}.self_attn"),
            o=self.fan([by_role["o"]]),
            mlp_norm=self.norm(f"{block.prefix}.post_attention_layernorm"),
            gate_up=self.fan([by_role["gate"], by_role["up"]]),
            down=self.fan([by_role["down"]]),
        )

    def fan(self, names: Sequence[str]) -> Fan:
        linears = (linear(self._matrix(name), self._bias(name), self._dtype) for name in names)
        return Fan(tuple(names), tuple(linears))

    def norm(self, name: str) -> Norm:
        return self._gain(self._stored.tensor(name + ".weight").float())

    def _qk_norm(self, prefix: str) -> Norm | None:
        if f"{prefix}.q_norm.weight" not in self._stored.anatomy.tensors:
            return None
        query, key = (
            self._stored.tensor(f"{prefix}.{which}_norm.weight").float() for which in "qk"
        )
        heads, kv_heads = self._settings.heads, self._settings.kv_heads
        return self._gain(torch.cat([query.expand(heads, -1), key.expand(kv_heads, -1)]))

    def _gain(self, weight: Tensor) -> Norm:
        width = weight.shape[-1]
        return Norm(weight * width**0.5, torch.tensor((self._settings.eps * width) ** 0.5))

    def _matrix(self, name: str) -> Matrix:
        rounded = self._stored.rounded(name)
        return self._stored.tensor(name + ".weight") if rounded is None else rounded

    def _bias(self, name: str) -> Tensor | None:
        known = name + ".bias" in self._stored.anatomy.tensors
        return self._stored.tensor(name + ".bias") if known else None


def resident_bytes(model: Model) -> int:
    """Bytes that the weights of all linears and the embedding hold in memory."""
    return sum({id(one): one.nbytes for _, one in model.linears()}.values())
