import json
import os
import struct

import pytest
import torch

from compress.errors import ModelError, StorageError
from compress.storage import Checkpoint, ShardWriter, mapped, read_header, write_file, write_text

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "model.safetensors"
    write_file(path, TENSORS)
    return path


def rewrite(path, change):
    """Replace the header of a shard by what `change` makes of it."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_what_is_written_is_read_back(shard):
    found = Checkpoint(shard.parent)
    assert found.shapes() == {"a": (2, 3), "b": (4,)}
    assert all(torch.equal(found.read(name), tensor) for name, tensor in TENSORS.items())


def test_files_have_the_mode_that_the_users_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "x.safetensors", TENSORS)
        write_text(tmp_path / "x.txt", "text")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_shards_are_cut_where_they_are_full_and_indexed(tmp_path):
    writer = ShardWriter(tmp_path, max_bytes=24)
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    writer.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "model-00001-of-00002.safetensors"
    assert Checkpoint(tmp_path).shapes() == {"a": (2, 3), "b": (4,)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "belong to no tensor"),
        (lambda path: path.write_bytes(b"\x00\x01"), "not a whole safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 64), "not a whole safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 4) + b"nope"), "not JSON"),
        (lambda path: rewrite(path, lambda h: h["a"].update(shape=[2, 4])), "a says F32"),
        (lambda path: rewrite(path, lambda h: h["a"].update(dtype="F99")), "a says F99"),
        (lambda path: rewrite(path, lambda h: h["a"].pop("shape")), "'a' is malformed"),
        (lambda path: path.unlink(), "holds neither"),
    ],
)
def test_a_corrupt_file_is_one_clear_error(shard, damage, message):
    damage(shard)
    with pytest.raises(ModelError, match=message) as caught:
        Checkpoint(shard.parent)
    assert caught.value.exit_code == 2


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_may_name_only_shards_beside_it(tmp_path, name):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="same folder"):
        Checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "kept.txt"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"kept\.txt.*No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_a_header_alone_needs_no_torch(shard):
    assert read_header(shard)["b"].nbytes == 8


def test_a_shard_in_the_making_waits_in_files_that_have_no_name(tmp_path, monkeypatch):
    tensors = {**TENSORS, "c": torch.arange(9, dtype=torch.int32), "d": torch.zeros(0)}
    for folder, held in ((tmp_path / "few", 20), (tmp_path / "all", 1 << 20)):
        monkeypatch.setattr("compress.storage.writing._HELD_BYTES", held)
        folder.mkdir()
        writer = ShardWriter(folder)
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        assert not list(folder.iterdir())
        writer.close()
    first, second = (next(folder.iterdir()) for folder in (tmp_path / "few", tmp_path / "all"))
    assert first.read_bytes() == second.read_bytes()


def test_a_mapped_tensor_on_a_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match="no room for 64 bytes"):
        mapped(tmp_path / "x.bin", (4, 4), torch.float32)
    assert not list(tmp_path.iterdir())
