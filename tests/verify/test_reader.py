"""The independent reader reads what the page says, bit by bit."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import ArtifactError
from compress.kernels.pack import pack
from compress.verify.bits import spare_bits, unpack
from compress.verify.layout import open_folder
from compress.verify.reader import read_entries, read_json


def words_of(text):
    return np.frombuffer(bytes.fromhex(text.replace(" ", "")), "<i4")


def test_the_worked_example_of_the_page():
    codes = unpack(words_of("10 32 54 76 98 ba dc fe").reshape(2, 1), 4, 8)
    assert codes.tolist() == [[*range(8)], [*range(8, 16)]]
    zeros = unpack(words_of("88 00 00 00 03 00 00 00").reshape(1, 2).T.copy(), 4, 2).T
    assert zeros.tolist() == [[8, 3], [8, 0]]


@given(
    st.sampled_from([2, 3, 4, 8]),
    st.integers(1, 5),
    st.integers(1, 70),
    st.integers(0, 2**31),
)
def test_it_reads_what_is_packed(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).byte()
    words = pack(codes, bits).numpy()
    assert unpack(words, bits, columns).tolist() == codes.tolist()
    assert not spare_bits(words, bits, columns)
    if columns * bits % 32:
        words[-1, -1] |= np.int32(-(2**31))
        assert spare_bits(words, bits, columns)


def test_rows_are_read_in_slices(monkeypatch):
    codes = torch.arange(40).view(10, 4).byte() % 8
    monkeypatch.setattr("compress.verify.bits._CODES_AT_ONCE", 12)
    assert unpack(pack(codes, 3).numpy(), 3, 4).tolist() == codes.tolist()


def shard(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


BROKEN = {
    "promised": ({}, {"length": 10**9}, "a header of 1,000,000,000 promised"),
    "not json": (b"{", {}, "not JSON"),
    "no object": (b"[]", {}, "holds no JSON object"),
    "twice": (b'{"a": 1, "a": 2}', {}, "a name occurs twice"),
    "deep": (b"[" * 100_000, {}, "not JSON"),
    "no entry": ({"a": 1}, {}, "entry of a is malformed"),
    "dtype": ({"a": entry(0, 8, dtype="F3")}, {}, "entry of a is malformed"),
    "size": ({"a": entry(0, 8, (3,))}, {}, r"a is F32 \[3\], 12 bytes, and spans 8"),
    "negative": ({"a": entry(0, 8, (-1, -2))}, {}, "and spans"),
    "gap": ({"a": entry(0, 4, (1,)), "b": entry(5, 9, (1,))}, {}, "b begins at byte"),
    "short": ({"a": entry(0, 16, (4,))}, {}, "truncated"),
    "long": ({"a": entry(0, 4, (1,))}, {}, "too long"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_shards_are_refused(tmp_path, case):
    header, options, message = BROKEN[case]
    shard(tmp_path / "model.safetensors", header, **options)
    with pytest.raises(ArtifactError, match=message):
        read_entries(tmp_path)


INDEXES = {
    "no map": ({}, "does not name"),
    "outside": ({"weight_map": {"a": "../x.safetensors"}}, "does not name"),
    "pickle": ({"weight_map": {"a": "x.bin"}}, "does not name"),
    "no shard": ({"weight_map": {"a": "x.safetensors"}}, "cannot be read"),
    "elsewhere": ({"weight_map": {"b": "s.safetensors"}}, "promises a in no file, it lies in s"),
    "lost": (
        {"weight_map": {"a": "s.safetensors", "b": "s.safetensors"}},
        "promises b in s.safetensors, not found",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
def test_broken_indexes_are_refused(tmp_path, case):
    index, message = INDEXES[case]
    shard(tmp_path / "s.safetensors", {"a": entry(0, 8)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=message):
        read_entries(tmp_path)


def test_a_single_file_beside_an_index_is_one_too_many(artifact, tmp_path):
    shard(tmp_path / "s.safetensors", {"a": entry(0, 8)})
    shard(tmp_path / "model.safetensors", {"a": entry(0, 8)})
    index = {"weight_map": {"a": "s.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="holds both"):
        read_entries(tmp_path)


def test_no_weights_and_no_config(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_entries(tmp_path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_float_is_read_exactly(artifact, dtype):
    from compress.artifact.layout import open_artifact

    folder = artifact("packed", dtype=dtype)
    mine, theirs = open_folder(folder), open_artifact(folder)
    for name in theirs.names():
        assert torch.equal(mine.tensor(name), theirs.tensor(name).float()), name
