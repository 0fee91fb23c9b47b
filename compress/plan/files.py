"""Bytes of the files that tensors are written into, from names, dtypes and shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

from compress.artifact import gguf_names
from compress.storage import ITEM_BITS, SINGLE

Tensor = tuple[str, str, tuple[int, ...]]  # name, dtype as safetensors spells it, shape
# In which safetensors lays tensors into a file: by falling order here, then by name.
_ORDER = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32",
    "F64", "I64", "U64",
)  # fmt: skip
_ALIGNED = 32  # where a tensor of a GGUF file may begin
_WORDS = 0.5  # of tokenizer.json is what a GGUF file keeps of it: 0.502 of SmolLM2's


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * ITEM_BITS[dtype] // 8


def shards(tensors: Iterable[Tensor], max_bytes: int) -> Iterator[list[Tensor]]:
    """Tensors by file, filled as `storage.ShardWriter` fills them."""
    pending: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        taken = nbytes(*tensor[1:])
        if pending and filled + taken > max_bytes:
            yield pending
            pending, filled = [], 0
        pending.append(tensor)
        filled += taken
    yield pending


def shard_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of a safetensors file: a length, a JSON header filled up to whole words, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in sorted(tensors, key=lambda t: (-_ORDER.index(t[1]), t[0])):
        begin, end = end, end + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return 8 + -(-len(text.encode()) // 8) * 8 + end


def index_bytes(files: list[list[Tensor]]) -> int:
    """Bytes of the index that several shards need."""
    if len(files) == 1:
        return 0
    names = {
        name: SINGLE.replace(".", f"-{number:05d}-of-{len(files):05d}.")
        for number, shard in enumerate(files, 1)
        for name, *_ in shard
    }
    total = sum(nbytes(dtype, shape) for shard in files for _, dtype, shape in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    return len(json.dumps(index, indent=2)) + 1


def gguf_bytes(tensors: Iterable[Tensor], tokenizer_bytes: int) -> int:
    """Bytes of a GGUF file: exact but for the vocabulary, which no header tells of."""
    header = data = 0
    for name, dtype, shape in tensors:
        called = gguf_names.there(name.rpartition(".")[0]) or name
        header += 8 + len(called) + len(".weight") + 4 + 8 * len(shape) + 4 + 8
        data += -(-nbytes(dtype, shape) // _ALIGNED) * _ALIGNED
    return header + data + int(_WORDS * tokenizer_bytes)
