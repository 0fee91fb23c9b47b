"""What a GGUF file calls the tensors of a model, and in which order it keeps their rows.

The architecture `llama` turns pairs of neighbouring values where transformers turns value i with
value i + d/2 of a head, so the rows of queries and keys lie interleaved there.

Source: llama.cpp, convert_hf_to_gguf.py (LlamaModel.permute) and gguf-py, tensor_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_OUTSIDE = {there: here for here, there in OUTSIDE.items()}
_INSIDE = {there: here for here, there in INSIDE.items()}
_HERE = re.compile(r"model\.layers\.([0-9]{1,6})\.(.+)")
_THERE = re.compile(r"blk\.([0-9]{1,6})\.(.+)")


def there(module: str) -> str | None:
    """The file's name of a module; None where it has none."""
    if found := _HERE.fullmatch(module):
        part = INSIDE.get(found[2])
        return None if part is None else f"blk.{found[1]}.{part}"
    return OUTSIDE.get(module)


def here(module: str) -> str | None:
    """Undo `there`."""
    if found := _THERE.fullmatch(module):
        part = _INSIDE.get(found[2])
        return None if part is None else f"model.layers.{found[1]}.{part}"
    return _OUTSIDE.get(module)


def heads(module: str, config: Mapping[str, Any], architecture: str) -> int | None:
    """In how many heads the rows of a module lie interleaved; None where they lie as they are."""
    part = module.rpartition(".")[2]
    if architecture != "llama" or part not in ("q_proj", "k_proj"):
        return None
    queries = config.get("num_attention_heads") or 0  # a config of strangers may not say
    return int(queries if part == "q_proj" else config.get("num_key_value_heads") or queries)


def interleaved(rows: Tensor, count: int) -> Tensor:
    """Rows [O, …] of `count` heads as the architecture `llama` keeps them."""
    found: Tensor = rows.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
    return found


def straightened(rows: Tensor, count: int) -> Tensor:
    """Undo `interleaved`."""
    found: Tensor = rows.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
    return found
