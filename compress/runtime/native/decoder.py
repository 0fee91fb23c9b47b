"""A decoder whose steps are compiled: where its weights lie, and the buffers of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from compress.kernels.activations import Inputs
from compress.runtime.batch import Batch
from compress.runtime.linear import Linear
from compress.runtime.native import attention, layout, products, step
from compress.runtime.native.attention import parts
from compress.runtime.native.lanes import kernels, reading
from compress.runtime.native.team import Team
from compress.runtime.packed import LANES, Packed
from compress.runtime.pages import Pages
from compress.runtime.settings import Ways
from compress.runtime.weights import Norm

if TYPE_CHECKING:
    from compress.runtime.model import Model

STEP_ROWS = 512  # tokens of a step at most
_ROWS = STEP_ROWS + products.SPARE


def refusal(model: Model, pages: Pages) -> str | None:
    """Why a model's steps are not compiled; None when they are."""
    other = next(
        ((name, x) for name, x in model.linears.items() if not isinstance(x.weight, Packed)), None
    )
    settings, numbers = model.settings, pages.keys.numbers
    if model.dtype is not torch.bfloat16:
        return "float32 is computed by torch, weight by weight"
    if settings.ways != Ways() or settings.activation != "silu":
        return "only what Llama, Mistral and Qwen do is compiled"
    if other is not None:
        return f"{other[0]} is multiplied another way ({other[1].path})"
    if settings.head_dim % LANES or cast(Norm, model.norm).gain.shape[-1] % LANES:
        return f"heads or hidden states of a width that is no multiple of {LANES}"
    if max(STEP_ROWS * settings.kv_heads, model.vocab_size) >> step.STEP:
        return "more heads or tokens than threads can count"
    return None if numbers in (None, "int8") else f"keys and values are cached as {numbers}"


class Decoder:
    """Makes logits of the wanted rows of batches of up to `STEP_ROWS` tokens."""

    def __init__(self, model: Model, pages: Pages) -> None:
        """Lay out a model whose `refusal` is None, and start as many threads as torch uses."""
        self._kept: list[Any] = [pages]  # what addresses point to
        self._records: list[tuple[float, ...]] = []
        self._vocab_size = model.vocab_size
        blocks = [self._block(model, pages, index) for index in range(len(model.blocks))]
        states = np.zeros(1 + model.threads, layout.STATE)
        self._state = states[:1]  # the others are copies of the threads
        self._state["head"] = self._matrix(model.head)
        matrices = np.array(self._records, dtype=layout.MATRIX)
        self._fill(model, pages, matrices, np.array(blocks, dtype=layout.BLOCK))
        records = states, matrices, np.array(blocks, dtype=layout.BLOCK)
        control = np.zeros(layout.ASLEEP + layout.LINE * model.threads, np.int64)
        self._kept += [self._x, self._wanted]
        self._team = Team(records, control, model.threads, self._kept)

    def logits(self, x: Tensor, turn: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Walk one step.

        Args:
            x: embeddings [N, hidden].
            turn: cosine and sine of each token's angles, [N, D/2] float32.
            batch: whose tokens they are.

        Returns:
            [M, V] float32.
        """
        wide = int(self._state["logits_width"][0])
        made = torch.empty(len(batch.wanted), wide)
        # These two are read by whoever is late for an older step, so they stay where they are.
        self._x[: len(x)], self._wanted[: len(made)] = x, batch.wanted
        given = {
            "cosine": turn[0], "sine": turn[1], "logits": made,
            "starts": batch.starts.long(), "lengths": batch.lengths.long(),
            "tables": batch.tables.long(), "slots": batch.slots,
        }  # fmt: skip
        for name, part in given.items():
            self._state[name] = part.data_ptr()
        self._state["rows"], self._state["requests"] = len(x), len(batch.lengths)
        self._state["parts"] = int(parts.py_func(batch.starts.diff()).sum())
        self._state["wanted"], self._state["table_width"] = len(made), batch.tables.shape[1]
        self._team.walk()
        return made[:, : self._vocab_size]

    def _fill(self, model: Model, pages: Pages, matrices: Any, blocks: Any) -> None:
        """Fill in all that stays the same from step to step."""
        state, s = self._state, model.settings
        hidden, threads = cast(Norm, model.norm).gain.shape[-1], model.threads
        widths = {
            name: LANES * max(int(matrices[number]["blocks"]) for number in blocks[role])
            for name, role in (("q", "q"), ("k", "k"), ("v", "v"), ("mlp", "gate"))
        }
        for name, width in widths.items():
            state[name], state[f"{name}_width"] = self._buffer(_ROWS, width), width
        state["mixed"] = self._buffer(_ROWS, s.heads * s.head_dim)
        self._x, self._wanted = torch.zeros(_ROWS, hidden), torch.zeros(_ROWS, dtype=torch.int64)
        state["x"], state["wanted_rows"] = self._x.data_ptr(), self._wanted.data_ptr()
        state["logits_width"] = LANES * matrices[int(state["head"][0])]["blocks"]
        groups = int((matrices["groups"] * matrices["share"]).max())
        inputs = int(matrices["inputs"].max())
        group = s.heads // s.kv_heads
        own = _ROWS * hidden + max(
            3 * products.scratch_floats(STEP_ROWS, inputs, groups),
            attention.scratch_floats(group, s.head_dim),
        )
        own += -own % LANES
        state["own"], state["own_bytes"] = self._buffer(threads, own), 4 * own
        state["hidden"], state["head_dim"] = hidden, s.head_dim
        state["final_norm"] = self._floats(cast(Norm, model.norm).gain)
        state["hidden_floor"] = float(cast(Norm, model.norm).floor)
        state["head_floor"] = (s.eps * s.head_dim) ** 0.5
        state["cache_bits"] = bits = 8 * pages.keys.codes.itemsize
        state["cache_reads"] = reading(bits)
        state["cache_kernels"] = kernels(bits, reading(bits)).ctypes.data
        state["ones"] = self._keep(np.full(LANES, 0x3F80, np.uint16))
        state["middle"] = self._keep(np.full(LANES, 128, np.uint8))
        counters = np.zeros(2 * layout.LINE * (layout.OPERATIONS * len(blocks) + 1), np.int64)
        state["counters"] = self._keep(counters)

    def _block(self, model: Model, pages: Pages, index: int) -> tuple[int, ...]:
        """A block as `layout.BLOCK` describes it."""
        block, s = model.blocks[index], model.settings
        norms = [
            self._floats(cast(Norm, one).gain) for one in (block.attention_norm, block.mlp_norm)
        ]
        qk_norm = 0 if block.qk_norm is None else self._floats(block.qk_norm.gain)
        linears = (*block.qkv, block.o, *block.gate_up, block.down)
        numbers = [self._matrix(one) for one in linears]
        steps = pages.steps(index)
        shared = [torch.ones(1, 1, 1) for _ in range(2)] if steps is None else steps
        scales = [self._floats(one.expand(s.kv_heads, 1, s.head_dim)) for one in shared]
        halves = (pages.keys, pages.values)
        return (
            *norms, qk_norm, *numbers, s.heads, s.kv_heads, s.windows[index] or 0,
            *(half.codes[index].data_ptr() for half in halves),
            *(0 if half.steps is None else half.steps[index].data_ptr() for half in halves),
            *scales,
        )  # fmt: skip

    def _matrix(self, one: Linear) -> int:
        """Write down a linear, which is packed; returns its number."""
        self._kept.append(one.weight)
        rounds = cast("Inputs | None", one.rounds)
        made = products.record(cast(Packed, one.weight), rounds, self._keep, bias=one.bias)
        self._records.append(made)
        return len(self._records) - 1

    def _floats(self, values: Tensor) -> int:
        return self._keep(values.float().contiguous().numpy().copy())

    def _buffer(self, rows: int, width: int) -> int:
        return self._keep(np.zeros((rows, width), np.float32))

    def _keep(self, array: Any) -> int:
        """Keep an array as long as this lives; returns its address."""
        self._kept.append(array)
        return int(array.ctypes.data)
