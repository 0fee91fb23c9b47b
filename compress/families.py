"""How families of models name their parts; nothing else knows these names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "down", "head"]

SHARED_INPUT: dict[str, str] = {
    **dict.fromkeys(("q", "k", "v", "qkv"), "attention_input"),
    "o": "attention_output",
    **dict.fromkeys(("gate", "up"), "mlp_input"),
    "down": "mlp_hidden",
    "head": "head_input",
}
FUSED: dict[str, str] = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}


@dataclass(frozen=True)
class Family:
    """How one family of models names its parts; `{i}` stands for the block index."""

    block: str
    linears: Mapping[str, Role]
    embedding: str
    final_norm: str
    head: str = "lm_head"
    transposed: bool = False  # Conv1D: weights lie [in, out]
    # what linears share an input → the norm that makes it, and multiplies it by its weight last
    norms: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False  # what down reads is an activation of gate times up
    # every norm lies before linears and divides by a root mean square, whatever the basis
    turns: bool = False


_GATED: dict[str, Role] = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
_NORMS = {"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"}
_GEMMA = Family("model.layers.{i}", _GATED, "model.embed_tokens", "model.norm", gated=True)
# Gemma's norms multiply by one more than their weight
_LLAMA = replace(_GEMMA, norms=_NORMS, turns=True)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA),
    "gpt2": Family(
        "transformer.h.{i}",
        {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
        "transformer.wte", "transformer.ln_f", transposed=True,
        norms={"attention_input": "ln_1", "mlp_input": "ln_2"},
    ),
    "opt": Family(
        "model.decoder.layers.{i}",
        {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v",
         "self_attn.out_proj": "o", "fc1": "up", "fc2": "down"},
        "model.decoder.embed_tokens", "model.decoder.final_layer_norm",
        norms={"attention_input": "self_attn_layer_norm", "mlp_input": "final_layer_norm"},
    ),
    "gpt_neox": Family(
        "gpt_neox.layers.{i}",
        {"attention.query_key_value": "qkv", "attention.dense": "o",
         "mlp.dense_h_to_4h": "up", "mlp.dense_4h_to_h": "down"},
        "gpt_neox.embed_in", "gpt_neox.final_layer_norm", head="embed_out", norms=_NORMS,
    ),
}  # fmt: skip
