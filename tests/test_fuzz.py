"""Readers of strangers' files, given anything: they accept it or refuse it in their own words."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from pathlib import Path

from hostile import entry, gguf_file, gguf_tensor, safetensors, word
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compress import results, storage
from compress.anatomy import read as read_anatomy
from compress.artifact import manifest
from compress.artifact.formats import compressed_tensors, packed
from compress.errors import ArtifactError, ModelError, RecipeError, RequestError
from compress.journal import Journal
from compress.recipe.load import load
from compress.recipe.resolve import lock
from compress.storage.headers import TensorInfo, parse_header

QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NUMBERS = st.integers(-(2**64), 2**64) | st.booleans() | st.text(max_size=3)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a few bytes changed, and cut somewhere."""
    changes = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)
    return st.builds(
        lambda found, end: bytes(dict(found).get(i, b) for i, b in enumerate(data))[:end],
        changes,
        st.integers(0, len(data)),
    )


@QUICK
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_recipes(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_bytes(data)
        with contextlib.suppress(RecipeError):
            load(str(path))


GOOD = {
    "version": 1, "teacher": {"model": "m"}, "calibration": {"set": "self", "samples": 8},
    "stages": [{"quantize": {"method": "gptq", "bits": 4, "overrides": {"*.down_proj": {}}}}],
    "evaluate": {"suite": "none"}, "artifact": {"format": "packed"}, "seed": 0,
}  # fmt: skip


@QUICK
@given(st.sampled_from(list(GOOD)), JSON, st.text(max_size=6), JSON)
def test_recipes_of_other_values(section, value, name, other):
    """What is accepted can be locked, and the lock loads as the same recipe."""
    changed = {**GOOD, section: value}
    if isinstance(value, dict) and isinstance(GOOD[section], dict):
        changed[section] = {**GOOD[section], **value, name: other}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(RecipeError):
        path = Path(folder) / "a.yaml"
        path.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")
        recipe = load(str(path))
        path.write_text(lock(recipe, {}), encoding="utf-8")
        assert load(str(path)) == recipe


@QUICK
@given(JSON | st.dictionaries(st.text(max_size=4), JSON), st.integers(0, 64))
def test_safetensors_headers(header, size):
    with contextlib.suppress(ModelError):
        parse_header(Path("x"), json.dumps(header).encode(), size)


@QUICK
@given(st.lists(st.tuples(st.lists(NUMBERS, max_size=4), NUMBERS, NUMBERS), max_size=3))
def test_safetensors_offsets(entries):
    """A header that is accepted describes tensors that fill the data, each as large as it says."""
    text = ",".join(f'"{i}": {entry(*one)}' for i, one in enumerate(entries))
    with contextlib.suppress(ModelError):
        found = parse_header(Path("x"), f"{{{text}}}".encode(), 16)
        assert sum(info.nbytes for info in found.values()) == 16


@QUICK
@given(damaged(safetensors(f'{{"a": {entry([2, 2], 0, 16)}}}', b"0" * 16)))
def test_safetensors_files(data):
    """What our own check accepts, the library reads."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ModelError):
        path = Path(folder) / "model.safetensors"
        path.write_bytes(data)
        shapes = storage.Checkpoint(path.parent).shapes()
        assert {name: tuple(t.shape) for name, t in storage.read_file(path).items()} == shapes


FIELD = word("general.name") + b"\x08\0\0\0" + word("x")
ARRAY = word("a") + b"\x09\0\0\0" + b"\x08\0\0\0" + b"\x02" + b"\0" * 7 + word("b") + word("c")
GGUF = gguf_file(FIELD + ARRAY, 2, gguf_tensor("t", [4, 2]), 1, b"0" * 32)


@QUICK
@given(damaged(GGUF) | st.binary(max_size=100).map(lambda tail: b"GGUF\3\0\0\0" + tail))
@example(GGUF)
def test_gguf_files(data):
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ModelError):
        path = Path(folder) / "a.gguf"
        path.write_bytes(data)
        header = storage.read_gguf(path)
        assert all(0 <= extent <= len(data) for shape in header.shapes.values() for extent in shape)


CONFIG = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 16, "vocab_size": 32,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "num_experts": 0,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,),
    **{f"model.layers.0.self_attn.{p}_proj.weight": (8, 8) for p in "qo"},
    **{f"model.layers.0.self_attn.{p}_proj.weight": (4, 8) for p in "kv"},
    **{f"model.layers.0.mlp.{p}_proj.weight": (16, 8) for p in ("gate", "up")},
    "model.layers.0.mlp.down_proj.weight": (8, 16),
}  # fmt: skip


@QUICK
@given(st.sampled_from(list(CONFIG)), JSON)
def test_configs(key, value):
    from compress.artifact.whole import flaws

    changed = {**CONFIG, key: value}
    with contextlib.suppress(ModelError):
        list(flaws(read_anatomy(changed, SHAPES), changed))


class Stored:
    """A checkpoint of one quantized matrix, as formats look at it."""

    def __init__(self, **tensors: tuple[str, tuple[int, ...]]) -> None:
        self.tensors = {n: TensorInfo(Path("x"), d, s, 0) for n, (d, s) in tensors.items()}

    def read_many(self, names):
        import torch

        return {name: torch.tensor([8, 64]) for name in names}


CODES = Stored(**{"m.codes": ("I32", (8, 8)), "m.scales": ("F16", (8, 2))})
PACKED = {"quant_method": "compress", "version": 1, "exceptions": {},
          "default": {"bits": 4, "group_size": 32, "sym": True}}  # fmt: skip


@QUICK
@given(st.sampled_from(list(PACKED)), JSON | st.dictionaries(st.sampled_from(["m", "bits"]), JSON))
def test_schemes_of_packed(key, value):
    with contextlib.suppress(ArtifactError):
        packed.matrices(CODES, {**PACKED, key: value})


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}


@QUICK
@given(
    st.sampled_from(["targets", "weights"]), JSON, st.text(alphabet="re:(a|.)*+$[\\", max_size=12)
)
def test_schemes_of_compressed_tensors(key, value, target):
    stored = Stored(**{"m.weight_packed": ("I32", (8, 8)), "m.weight_shape": ("I64", (2,))})
    for group in ({**GROUP, key: value}, {**GROUP, "targets": [target]}):
        with contextlib.suppress(ArtifactError):
            compressed_tensors.matrices(
                stored, {"format": "pack-quantized", "config_groups": {"g": group}}
            )


@QUICK
@given(JSON)
def test_records(value):
    for kind in (results.Results, results.Measured):
        with contextlib.suppress(ValueError):
            results.from_json(kind, json.dumps(value))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ArtifactError):
        (Path(folder) / manifest.NAME).write_text(json.dumps(value))
        manifest.read_manifest(Path(folder))


IDENTITY = {"seed": 0}


@functools.cache
def journal() -> bytes:
    """A journal of three units, as it lies on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        written = Journal(path, IDENTITY)
        for number in range(3):
            written.add(f"unit {number}", {"number": number})
        return path.read_bytes()


@QUICK
@given(st.data())
def test_journals(data):
    """Of a damaged journal what is read is a beginning of what was written, or nothing is."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(RequestError):
        path = Path(folder) / "journal"
        path.write_bytes(data.draw(damaged(journal())))
        found = Journal(path, IDENTITY)
        assert found.finished == tuple(f"unit {n}" for n in range(len(found.finished)))
        assert [found.get(unit) for unit in found.finished] == [
            {"number": number} for number in range(len(found.finished))
        ]
