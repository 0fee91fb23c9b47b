"""What a GGUF file says of a model before its tensors: sizes, rotation, and the whole vocabulary.

Only what llama.cpp computes alike is written; `flaws` names the rest beforehand.

Source: llama.cpp, convert_hf_to_gguf.py; ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy
from compress.artifact.formats.gguf import FAMILIES
from compress.artifact.vocabulary import Vocabulary, read_vocabulary
from compress.errors import ArtifactError
from compress.storage.gguf_writing import GgufWriter, Value

if TYPE_CHECKING:
    from torch import Tensor

ROTATIONS = ("default", "linear", "llama3")
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # llama_ftype


def flaws(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a model llama.cpp computes otherwise, or not at all."""
    if (activation := config.get("hidden_act", "silu")) != "silu":
        yield f"the activation {activation}; written is silu"
    if (kind := rotation(config)["rope_type"]) not in ROTATIONS:
        yield f"the rotation {kind}; written are {', '.join(ROTATIONS)}"
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings", 0)
    if window and window < longest and config.get("use_sliding_window", True):
        yield f"attention within a window of {window} tokens; llama.cpp attends to all"


def rotation(config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are turned, old spelling or new: rope_type, rope_theta and more."""
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = {"rope_theta": config.get("rope_theta", 10000.0), **told}
    return {**found, "rope_type": told.get("rope_type") or told.get("type") or "default"}


def fields(
    architecture: str, config: Mapping[str, Any], anatomy: Anatomy, kind: str
) -> dict[str, Value]:
    """The fields that llama.cpp builds a model from.

    Args:
        architecture: one of llama.cpp's.
        config: config.json of the model.
        anatomy: of the model.
        kind: the type of most of its weights.
    """
    count, turned = int(config["num_attention_heads"]), rotation(config)
    width = int(config.get("head_dim") or anatomy.hidden_size // count)
    sizes: dict[str, Value] = {
        "block_count": len(anatomy.blocks),
        "context_length": int(config.get("max_position_embeddings", 2048)),
        "embedding_length": anatomy.hidden_size,
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": count,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or count),
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "vocab_size": anatomy.vocab_size,
        "rope.dimension_count": width,
        "rope.freq_base": float(turned["rope_theta"]),
    }
    if turned["rope_type"] == "linear":
        sizes |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(turned["factor"])}
    return {
        "general.type": "model",
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        **{f"{architecture}.{key}": value for key, value in sizes.items()},
    }


def frequencies(config: Mapping[str, Any], anatomy: Anatomy) -> Tensor | None:
    """By what llama3's rotation divides the frequency of each pair: [head_dim/2] float32."""
    import torch

    told = rotation(config)
    if told["rope_type"] != "llama3":
        return None
    width = config.get("head_dim") or anatomy.hidden_size // config["num_attention_heads"]
    factor, low, high = (told[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = []  # how often each pair turns within the context that it was trained on
    for pair in range(0, width, 2):
        length = 2 * math.pi * told["rope_theta"] ** (pair / width)
        turns.append(told["original_max_position_embeddings"] / length)
    share = [min(max((turn - low) / (high - low), 0.0), 1.0) for turn in turns]
    return torch.tensor([1 / ((1 - s) / factor + s) for s in share])


def vocabulary_fields(found: Vocabulary, size: int) -> dict[str, Value]:
    """The fields that llama.cpp's tokenizer is made of, filled up to the rows of the embedding.

    Raises:
        ArtifactError: more tokens than rows.
    """
    if len(found.tokens) > size:
        raise ArtifactError(
            f"tokenizer.json: {len(found.tokens):,} tokens, the embedding has {size:,} rows; "
            "llama.cpp wants as many of one as of the other. Export to another format."
        )
    missing = range(len(found.tokens), size)
    told: dict[str, Value] = {
        "tokenizer.ggml.model": found.model,
        "tokenizer.ggml.pre": found.pre,
        "tokenizer.ggml.tokens": [*found.tokens, *(f"[PAD{number}]" for number in missing)],
        "tokenizer.ggml.token_type": [*found.types, *(5 for _ in missing)],
        "tokenizer.ggml.add_space_prefix": found.space_prefix,
        "tokenizer.ggml.add_bos_token": False,  # unless its own rules say otherwise, see below
    }
    if found.scores is not None:
        told["tokenizer.ggml.scores"] = [*found.scores, *(-1e4 for _ in missing)]
    return told


def start(path: Path, anatomy: Anatomy, config: Mapping[str, Any], home: Path) -> GgufWriter:
    """A writer of GGUF that knows of the model all but its tensors and the type of most of them.

    Args:
        path: of the file.
        anatomy: of the model.
        config: its config.json.
        home: the folder that holds its tokenizer's files.

    Raises:
        ArtifactError: something of the model that llama.cpp computes otherwise.
        ModelError: a tokenizer that llama.cpp does not have.
    """
    if found := list(flaws(config)):
        raise ArtifactError(f"artifact.format gguf: {found[0]}. Use artifact.format: packed.")
    writer = GgufWriter(path, FAMILIES[anatomy.model_type])
    words = read_vocabulary(home)
    for key, value in vocabulary_fields(words, anatomy.vocab_size).items():
        writer.set(key, value)
    merges = words.model == "gpt2"
    writer.add_special_tokens(home, anatomy.vocab_size, merges=merges)
    return writer
