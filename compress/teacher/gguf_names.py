"""What the header of a GGUF file tells of the dense folder that it would become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.anatomy import Shape
from compress.teacher import gguf

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_GATED = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_GEMMA = {
    **_GATED, "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_GPT2_OUTSIDE = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
}  # fmt: skip
_GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
}  # fmt: skip
_TURNED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")  # of GPT-2: Conv1D keeps [I, O]
_KINDS = {"gemma3": "gemma3_text"}
_TOLD = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}  # fmt: skip


def announced(path: Path) -> tuple[dict[str, Any], dict[str, Shape]]:
    """Read config and tensor shapes of the dense folder from the header of a GGUF file.

    Returns:
        The fields of its ``config.json`` that decide sizes, and the shape of every tensor by the
        name that transformers gives it.

    Raises:
        ModelError: the file is broken, a mixture of experts, or of an architecture not supported.
    """
    header = gguf.checked(path)
    architecture = str(header.fields["general.architecture"])
    shapes: dict[str, Shape] = {}
    for stored, extents in header.shapes.items():
        module, _, ending = stored.rpartition(".")
        turned = architecture == "gpt2" and module.rpartition(".")[2] in _TURNED
        if (name := _dense_name(architecture, module)) is not None:
            shapes[f"{name}.{ending}"] = extents if turned else extents[::-1]
    told = {key: header.fields.get(f"{architecture}.{name}") for key, name in _TOLD.items()}
    config = {
        "model_type": _KINDS.get(architecture, architecture),
        "tie_word_embeddings": architecture == "gpt2" or "output.weight" not in header.shapes,
        **{key: value for key, value in told.items() if value is not None},
    }
    return config, shapes


def _dense_name(architecture: str, module: str) -> str | None:
    """What transformers calls a module of a GGUF file; None where it makes it anew."""
    outside, inside, prefix = _OUTSIDE, _GATED, "model.layers."
    if architecture == "gpt2":
        outside, inside, prefix = _GPT2_OUTSIDE, _GPT2, "transformer.h."
    elif architecture.startswith("gemma"):
        inside = _GEMMA
    if not module.startswith("blk."):
        return outside.get(module)
    block, _, part = module.removeprefix("blk.").partition(".")
    return f"{prefix}{block}.{inside[part]}" if part in inside else None
