r"""Write a checkpoint of Llama shape with random bfloat16 weights, as large as one likes.

    python benchmarks/synthetic.py OUT --blocks 32          # Llama-7B: 13.5 GB, under a minute
    python benchmarks/synthetic.py OUT --blocks 8 --hidden 1024 --intermediate 2816 --heads 16

Nothing is held but a pool of random numbers, from which every tensor is copied, each from another
place. What is made of such a model is worthless; how much memory that took is not.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

POOL = 2**25 + 12_345  # numbers; no multiple of a width, so that rows begin at different places
SHARD_BYTES = 2 * 10**9
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")
Shapes = Mapping[str, tuple[int, ...]]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the defaults are Llama-2-7B's."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights.")
    add = parser.add_argument
    add("out", type=Path, help="new folder")
    add("--blocks", type=int, default=32)
    add("--hidden", type=int, default=4096)
    add("--intermediate", type=int, default=11_008)
    add("--heads", type=int, default=32)
    add("--kv-heads", type=int, help="default: as many as heads")
    add("--vocab", type=int, default=32_000)
    add("--positions", type=int, default=4096)
    return parser.parse_args(argv)


def config(given: argparse.Namespace) -> dict[str, object]:
    """The ``config.json`` of the model."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": given.hidden, "intermediate_size": given.intermediate,
        "num_hidden_layers": given.blocks, "num_attention_heads": given.heads,
        "num_key_value_heads": given.kv_heads or given.heads, "vocab_size": given.vocab,
        "max_position_embeddings": given.positions, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 257, "eos_token_id": 258,
    }  # fmt: skip


def shapes(given: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by its name, in the order of the model."""
    hidden, inner = given.hidden, given.intermediate
    shared = hidden // given.heads * (given.kv_heads or given.heads)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (given.vocab, hidden)}
    for index in range(given.blocks):
        block = f"model.layers.{index}"
        for name, rows in (("q", hidden), ("k", shared), ("v", shared), ("o", hidden)):
            found[f"{block}.self_attn.{name}_proj.weight"] = (rows, hidden)
        found[f"{block}.mlp.gate_proj.weight"] = (inner, hidden)
        found[f"{block}.mlp.up_proj.weight"] = (inner, hidden)
        found[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}.{name}.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    found["lm_head.weight"] = (given.vocab, hidden)
    return found


def write(folder: Path, given: argparse.Namespace, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config, tokenizer, shards and index into `folder`, which is made."""
    folder.mkdir(parents=True)
    files = list(_files(shapes(given), shard_bytes))
    pool = _pool()
    where: dict[str, str] = {}
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write_shard(folder / name, tensors, pool)
        where.update(dict.fromkeys(tensors, name))
    total = sum(2 * math.prod(shape) for tensors in files for shape in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (folder / "config.json").write_text(json.dumps(config(given), indent=2), "utf-8")
    _write_tokenizer(folder)


def _files(found: Shapes, shard_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    pending: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        if pending and 2 * sum(map(math.prod, (*pending.values(), shape))) > shard_bytes:
            yield pending
            pending = {}
        pending[name] = shape
    yield pending


def _pool() -> np.ndarray:
    """Normal numbers of standard deviation 0.02, as bfloat16: the upper halves of float32."""
    numbers = np.random.default_rng(0).standard_normal(POOL, dtype=np.float32) * np.float32(0.02)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _write_shard(path: Path, tensors: Shapes, pool: np.ndarray) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            if len(shape) == 1:
                file.write(np.full(shape, 0x3F80, np.uint16).tobytes())  # norms: 1.0
                continue
            start = zlib.crc32(name.encode()) % POOL
            left = math.prod(shape)
            while left:
                piece = pool[start : start + left]
                file.write(piece.data)
                left, start = left - len(piece), 0


def _write_tokenizer(folder: Path) -> None:
    """A token for each byte, and three more: enough to read any text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": SPECIAL[0],
        "bos_token": SPECIAL[1], "eos_token": SPECIAL[2],
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


if __name__ == "__main__":
    chosen = arguments()
    write(chosen.out, chosen)
