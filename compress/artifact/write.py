"""Write an artifact: parts in, shards out, one at a time; config.json last, the sign of whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.anatomy import Anatomy, Linear
from compress.artifact.formats import BESIDE, FORMATS, gguf, kv, packed, sparse
from compress.artifact.formats.matrix import Scheme, scheme_of
from compress.artifact.gguf_file import GgufShard
from compress.errors import ArtifactError
from compress.storage import INDEX, SINGLE, ShardWriter, copy_file, write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.kernels.grid import Rounded
    from compress.kernels.kv import KVScales

COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "generation_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt",  # most ask to go along
)  # fmt: skip
_LEFTOVER = re.compile(r"shard-\d{5}\.part|.+\.tmp|model-\d{5}-of-\d{5}\.safetensors")


def companions(folder: Path) -> tuple[Path, ...]:
    """The files of a model folder that every copy of the model needs beside its weights."""
    return tuple(folder / name for name in COMPANIONS if (folder / name).is_file())


def write(
    folder: Path,
    parts: Iterable[tuple[str, Tensor | Rounded | KVScales]],
    *,
    anatomy: Anatomy,
    config: Mapping[str, Any],
    tokenizer_files: Sequence[Path],
    format: str,
    max_shard_bytes: int = 2 * 1024**3,
    kept: Mapping[str, int] | None = None,
) -> None:
    """Write an artifact into `folder`, which belongs to the caller's run.

    Tensors of one shard are held at a time. ``config.json`` is written last: a folder that has it
    is whole, and is refused; without it, weights that a killed write left are replaced.

    Args:
        folder: made when missing.
        parts: plain tensors by full name, quantized matrices by module name, scales of keys and
            values by the module that attends, in any order; together exactly the tensors of
            `anatomy`, and scales for every block or for none.
        anatomy: of the teacher; also of the student, as long as no shape changes.
        config: the teacher's ``config.json``; a `quantization_config` in it is replaced.
        tokenizer_files: copied as they are; `companions` finds them.
        format: a key of `FORMATS`.
        max_shard_bytes: a shard is closed before it would grow past this.
        kept: of linears that were pruned, how many weights stay.

    Raises:
        ArtifactError: an unknown format, a finished artifact in the way, parts that are not those
            of the anatomy, or something that the format cannot hold.
        StorageError: the disk refused.
    """
    if format not in FORMATS:
        raise ArtifactError(f"artifact.format: {format!r} is unknown. Use {', '.join(FORMATS)}.")
    _make_room(folder)
    writer: ShardWriter | GgufShard = ShardWriter(folder, max_shard_bytes)
    if format == "gguf":
        writer = GgufShard(folder, anatomy, config, tokenizer_files)
    dtype, caches = dtype_of(config), dict[str, kv.KVScheme]()
    rest = _without_caches(writer, parts, caches, format, dtype)
    encode = partial(_encoded, format=format, dtype=dtype, kept=kept or {})
    schemes = _add_parts(writer, rest, anatomy, encode)
    cached = _one_scheme(caches, anatomy)
    if refusals := FORMATS[format].refusals(anatomy, schemes):
        raise ArtifactError("\n".join(refusals))
    writer.close()
    for path in tokenizer_files:
        copy_file(path, folder / path.name)
    quantization = kv.describe(format, FORMATS[format].config(anatomy, schemes), cached, anatomy)
    for name, text in beside(format, quantization).items():
        write_text(folder / name, text)
    write_text(folder / "config.json", config_text(config, quantization))


def _make_room(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        raise ArtifactError(f"{folder}: holds a finished model. Choose another folder.")
    for path in folder.iterdir():
        if path.name in (SINGLE, INDEX, gguf.FILE) or _LEFTOVER.fullmatch(path.name):
            path.unlink()


def _without_caches(
    writer: ShardWriter | GgufShard,
    parts: Iterable[tuple[str, Tensor | Rounded | KVScales]],
    caches: dict[str, kv.KVScheme],
    format: str,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Tensor | Rounded]]:
    """Queue the scales of keys and values and note their scheme in `caches`; yield all else."""
    from compress.kernels.kv import KVScales

    for name, part in parts:
        if isinstance(part, KVScales):
            caches[name] = kv.scheme_of(part)
            for stored_name, tensor in kv.encode(format, name, part, dtype):
                writer.add(stored_name, tensor)
        else:
            yield name, part


def _one_scheme(caches: Mapping[str, kv.KVScheme], anatomy: Anatomy) -> kv.KVScheme | None:
    """How all blocks cache their keys and values; None where none rounds them."""
    if not caches:
        return None
    if len(set(caches.values())) > 1 or caches.keys() != {b.attention for b in anatomy.blocks}:
        raise ArtifactError(
            f"{min(caches)}: scales of keys and values were handed over for {len(caches)} of "
            f"{len(anatomy.blocks)} blocks, or unlike ones. Every block needs them, all alike."
        )
    return next(iter(caches.values()))


def _add_parts(
    writer: ShardWriter | GgufShard,
    parts: Iterable[tuple[str, Tensor | Rounded]],
    anatomy: Anatomy,
    encode: Callable[[str, Tensor | Rounded, Linear | None], Iterable[tuple[str, Tensor]]],
) -> dict[str, Scheme]:
    """Encode and queue every part; return the scheme of each quantized matrix."""
    from compress.kernels.grid import Rounded

    linears = {linear.name: linear for linear in (*anatomy.linears, anatomy.head)}
    schemes: dict[str, Scheme] = {}
    awaited = set(anatomy.tensors)
    for name, part in parts:
        full_name = f"{name}.weight" if isinstance(part, Rounded) else name
        if full_name not in awaited:
            raise ArtifactError(f"{full_name}: handed over twice, or no tensor of this model.")
        awaited.remove(full_name)
        if isinstance(part, Rounded):
            schemes[name] = scheme_of(part)
        for stored_name, tensor in encode(name, part, linears.get(name.removesuffix(".weight"))):
            writer.add(stored_name, tensor)
    if awaited:
        raise ArtifactError(f"{min(awaited)} and {len(awaited) - 1} more: not handed over.")
    return schemes


def _encoded(
    name: str,
    part: Tensor | Rounded,
    linear: Linear | None,
    *,
    format: str,
    dtype: torch.dtype,
    kept: Mapping[str, int],
) -> Iterable[tuple[str, Tensor]]:
    """The stored tensors of one part; `packed` alone knows of masks."""
    from compress.kernels.grid import Rounded

    count = kept.get(linear.name, 0) if linear is not None and format == "packed" else 0
    if isinstance(part, Rounded):
        if count:
            return packed.encode_pruned(name, part, linear, dtype, kept=count)
        return FORMATS[format].encode(name, part, linear, dtype)
    if count and linear is not None and name == f"{linear.name}.weight":
        return sparse.encode_where_it_pays(linear, part, count)
    return [(name, part)]


def dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that a config names for what is dense; bfloat16 where it names none."""
    import torch

    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return names.get(str(config.get("dtype", config.get("torch_dtype"))), torch.bfloat16)


def beside(format: str, quantization: Mapping[str, Any] | None) -> dict[str, str]:
    """Files that old readers of a format want beside ``config.json``: text by name."""
    if quantization is None or format not in BESIDE:
        return {}
    return {BESIDE[format]: json.dumps(quantization, indent=2) + "\n"}


def config_text(config: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> str:
    """The ``config.json`` of an artifact: the teacher's, with what its format says of itself."""
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    if quantization is not None:
        plain["quantization_config"] = quantization
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
