"""Models that are nothing but shapes: anatomies, headers, and jobs on them."""

from __future__ import annotations

from compress.anatomy import read
from compress.plan.footprint import Job
from compress.recipe.load import load
from compress.recipe.suite import load_suite
from compress.teacher.headers import Headers

CONFIG = {
    "model_type": "llama", "hidden_act": "silu", "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}  # fmt: skip


def llama(width=576, hidden=1536, blocks=30, tied=True):
    """The anatomy of SmolLM2-135M, or of a sibling."""
    tensors = {"model.embed_tokens.weight": (49152, width), "model.norm.weight": (width,)}
    kv = width // 3
    for i in range(blocks):
        block = f"model.layers.{i}"
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            tensors[f"{block}.self_attn.{name}_proj.weight"] = (rows, width)
        tensors[f"{block}.mlp.gate_proj.weight"] = tensors[f"{block}.mlp.up_proj.weight"] = (
            hidden, width,
        )  # fmt: skip
        tensors[f"{block}.mlp.down_proj.weight"] = (width, hidden)
    if not tied:
        tensors["lm_head.weight"] = (49152, width)
    config = {"model_type": "llama", "num_hidden_layers": blocks, "hidden_size": width}
    return read(config, tensors)


def gpt2():
    tensors = {"transformer.wte.weight": (100, 64)}
    for name, shape in (("attn.c_attn", (64, 192)), ("attn.c_proj", (64, 64)),
                        ("mlp.c_fc", (64, 256)), ("mlp.c_proj", (256, 64))):  # fmt: skip
        tensors[f"transformer.h.0.{name}.weight"] = shape
    return read({"model_type": "gpt2", "n_layer": 1, "n_embd": 64}, tensors)


def headers(anatomy):
    dtypes = dict.fromkeys(anatomy.tensors, "BF16")
    return Headers("teacher", CONFIG, anatomy, dtypes, {}, 0)


def job(*sets, width=4096, hidden=11008, blocks=32, suite=None):
    recipe = load("w4g64-gptq", ["calibration.set=smoke", *sets])
    found = None if suite is None else load_suite(suite)
    return Job(recipe, headers(llama(width, hidden, blocks, tied=False)), found, 2)
