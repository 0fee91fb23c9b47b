"""GGUF as docs/formats.md tells it: the file's header, the blocks of its tensors, what they mean.

A header is magic, version, two counts, fields (key, type, value), tensors (name, extents, type,
offset), all little-endian; the bytes of tensors begin at the next multiple of 32.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import ArtifactError, shown
from compress.verify.entry import Entry

if TYPE_CHECKING:
    from compress.verify.reader import Matrix

FILE = "model.gguf"
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
SIZES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # bytes of a block of 32
_TYPES = {0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}  # ggml's numbers
_NUMBERS = {4: "I", 5: "i", 6: "f", 7: "?"}  # of fields: no other types are written here
_TEXT, _ARRAY, _ALIGNED = 8, 9, 32
_MAX_COUNT = 4_000_000
_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
Expected = dict[str, tuple[tuple[str, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Interleaved(Entry):
    """Queries or keys of the architecture llama: pairs that turn together lie side by side."""

    heads: int = 1

    def array(self) -> NDArray[Any]:
        """Its values, rows of a head in transformers' order: all first halves, then all second."""
        rows = super().array()
        halves = rows.reshape(self.heads, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(np.moveaxis(halves, 2, 1)).reshape(rows.shape)


def read_file(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Tensors by transformers' names (``M.Q4_0`` and the like for blocks), and the fields.

    Raises:
        ArtifactError: the file is not whole, or holds what the page does not describe.
    """
    path = folder / FILE
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = _Place(data)
            fields, described = _header(at)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error
    except (struct.error, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: no whole GGUF header ({error}).") from error
    begin = -(-at.byte // _ALIGNED) * _ALIGNED
    entries: dict[str, Entry] = {}
    for called, extents, kind, offset in described:
        if called != "rope_freqs.weight":
            name, entry = _entry(path, config, called, extents, kind, begin + offset)
            entries[name] = entry
    _check_tiled(path, described, begin)
    return entries, fields


@dataclass
class _Place:
    data: mmap.mmap
    byte: int = 0

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self.data, self.byte)
        self.byte += struct.calcsize(f"<{kind}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        raw = self.data[self.byte : self.byte + length]
        if len(raw) < length:
            raise ValueError("it ends inside a text")
        self.byte += length
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if count > _MAX_COUNT or inner == _ARRAY:
            raise ValueError(f"an array of {count:,}")
        return [self.value(inner) for _ in range(count)]


def _header(at: _Place) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], str, int]]]:
    if at.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    at.byte = 4
    if (version := at.number("I")) != 3:
        raise ValueError(f"version {version}")
    tensors, count = at.number("Q"), at.number("Q")
    if max(tensors, count) > _MAX_COUNT:
        raise ValueError(f"{tensors:,} tensors and {count:,} fields")
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = at.text()
        if key in fields or key == "general.alignment":
            raise ValueError(f"{key!r} twice, or no field that is written here")
        fields[key] = at.value(at.number("I"))
    described = []
    for _ in range(tensors):
        name, rank = at.text(), at.number("I")
        if rank not in (1, 2):
            raise ValueError(f"{name} of rank {rank}")
        extents = tuple(at.number("Q") for _ in range(rank))[::-1]
        described.append((name, extents, _TYPES[at.number("I")], at.number("Q")))
    if len({name for name, *_ in described}) < len(described):
        raise ValueError("a tensor twice")
    return fields, described


def _entry(
    path: Path, config: Mapping[str, Any], called: str, extents: tuple[int, ...], kind: str,
    start: int,
) -> tuple[str, Entry]:  # fmt: skip
    inner = _INNER.fullmatch(called)
    module, _, ending = called.rpartition(".")
    part = _PARTS.get(inner[2]) if inner else None
    name = f"model.layers.{inner[1]}.{part}" if inner and part else _OUTER.get(module)
    if name is None or (not inner and ending != "weight"):
        raise ArtifactError(f"{path}: {shown(called)}: no tensor that is written here.")
    told, dtype, shape = f"{name}.{ending}", kind, extents
    if kind in SIZES:
        row_bytes = extents[-1] // 32 * SIZES[kind]
        told, dtype, shape = f"{name}.{kind}", "U8", (*extents[:-1], row_bytes)
    entry = Entry(path, dtype, shape, start, start + _bytes(extents, kind))
    turned = ARCHITECTURES.get(str(config.get("model_type"))) == "llama"
    if turned and part and part in ("self_attn.q_proj", "self_attn.k_proj"):
        queries = config.get("num_attention_heads") or 0
        heads = queries if part.endswith("q_proj") else config.get("num_key_value_heads") or queries
        if not isinstance(heads, int) or heads < 1 or extents[0] % (2 * heads):
            raise ArtifactError(f"{path}: {called}: {extents[0]} rows for {shown(heads)} heads.")
        entry = Interleaved(path, dtype, shape, entry.start, entry.stop, heads=heads)
    return told, entry


def _bytes(extents: tuple[int, ...], kind: str) -> int:
    if kind in SIZES:
        return math.prod(extents) // 32 * SIZES[kind]
    return math.prod(extents) * (4 if kind == "F32" else 2)


def _check_tiled(
    path: Path, described: Iterable[tuple[str, tuple[int, ...], str, int]], begin: int
) -> None:
    """Check that tensors lie in order, each at the next multiple of 32, to the end of the file."""
    end = 0
    for name, extents, kind, offset in described:
        if offset != end or (kind in SIZES and extents[-1] % 32):
            raise ArtifactError(f"{path}: {shown(name)} begins at {offset:,}, not at {end:,}.")
        end = -(-(offset + _bytes(extents, kind)) // _ALIGNED) * _ALIGNED
    if begin + end != (size := path.stat().st_size):
        raise ArtifactError(f"{path}: {size:,} bytes, its tensors end at {begin + end:,}.")


def schemes(quantization: Mapping[str, Any], stored: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Bits, group size and symmetry of every module of blocks.

    Raises:
        ArtifactError: another version.
    """
    if quantization != {"quant_method": "gguf", "version": 1, "file": FILE}:
        raise ArtifactError(f"config.json: {shown(quantization)}; gguf version 1 is verified.")
    kinds = [name.rpartition(".") for name in stored if name.rpartition(".")[2] in SIZES]
    return {
        module: {"bits": 8 if kind == "Q8_0" else 4, "group_size": 32, "sym": kind != "Q4_1"}
        for module, _, kind in kinds
    }


def endings(bits: int, *, sym: bool) -> tuple[str, str, str]:
    """Where codes, scales and zeros of a scheme lie: in one tensor of blocks."""
    kind = "Q8_0" if bits == 8 else "Q4_0" if sym else "Q4_1"
    return kind, kind, kind


def expected(name: str, matrix: Matrix) -> Expected:
    """The stored tensor of one matrix."""
    kind = matrix.codes.rpartition(".")[2]
    return {matrix.codes: (("U8",), (matrix.rows, matrix.columns // 32 * SIZES[kind]))}


def _blocks(entries: Mapping[str, Entry], matrix: Matrix) -> NDArray[np.uint8]:
    size = SIZES[matrix.codes.rpartition(".")[2]]
    return entries[matrix.codes].array().reshape(matrix.rows, -1, size)


def _half(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float16 from two bytes each."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)


def scales(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The scales [O, I/32]."""
    return _half(_blocks(entries, matrix)[..., :2])


def weights(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> NDArray[np.float32]:
    """The weights [O, I], as llama.cpp's loops compute them."""
    blocks, kind = _blocks(entries, matrix), matrix.codes.rpartition(".")[2]
    scale = _half(blocks[..., :2])[..., None]
    if kind == "Q8_0":
        weight = blocks[..., 2:].view(np.int8).astype(np.float32) * scale
    else:
        halves = blocks[..., -16:]
        codes = np.concatenate([halves & 15, halves >> 4], axis=-1).astype(np.float32)
        if kind == "Q4_0":
            weight = (codes - 8) * scale
        else:
            weight = codes * scale + _half(blocks[..., 2:4])[..., None]
    return weight.reshape(matrix.rows, matrix.columns)


def problems(entries: Mapping[str, Entry], name: str, matrix: Matrix) -> Iterator[str]:
    """Minima that are no number."""
    if matrix.zeros and not np.isfinite(_half(_blocks(entries, matrix)[..., 2:4])).all():
        yield f"{matrix.codes}: a minimum that is NaN or infinity"


def misdescribed(
    fields: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Mapping[str, Any], rows: int
) -> Iterator[str]:
    """Fields that say otherwise than config.json and tokenizer.json; `rows` of the embedding."""
    family = ARCHITECTURES.get(str(config.get("model_type")))
    rope = config.get("rope_parameters") or {}
    heads = config.get("num_attention_heads")
    wanted = {
        "block_count": config.get("num_hidden_layers"),
        "embedding_length": config.get("hidden_size"),
        "feed_forward_length": config.get("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "rope.freq_base": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        "vocab_size": rows,
    }
    if fields.get("general.architecture") != family:
        yield f"{FILE}: architecture {shown(fields.get('general.architecture'))}, not {family}"
        return
    for key, value in wanted.items():
        found = fields.get(f"{family}.{key}")
        if found != (np.float32(value) if isinstance(value, float) else value):
            yield f"{FILE}: {family}.{key} is {shown(found)}, by config.json {shown(value)}"
    yield from _other_words(fields, tokenizer, rows)


def _other_words(
    fields: Mapping[str, Any], tokenizer: Mapping[str, Any], rows: int
) -> Iterator[str]:
    """Tokens of the file against those of tokenizer.json."""
    tokens, words = fields.get("tokenizer.ggml.tokens"), dict[int, str]()
    if not isinstance(tokens, list) or len(tokens) != rows:
        yield f"{FILE}: no tokens, or not as many as the {rows:,} rows of the embedding"
        return
    try:
        words |= {number: word for word, number in tokenizer["model"]["vocab"].items()}
        words |= {one["id"]: one["content"] for one in tokenizer["added_tokens"]}
    except (AttributeError, KeyError, TypeError):
        yield "tokenizer.json: no vocabulary that can be read"
    other = [n for n, word in words.items() if not 0 <= n < rows or tokens[n] != word]
    if other:
        yield f"{FILE}: {len(other):,} tokens are others than in tokenizer.json, first {other[0]}"
