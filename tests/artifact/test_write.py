"""Writing: in shards, durably, config.json last, nothing lost and nothing written over."""

import itertools
import json

import pytest
import torch

from compress.artifact.layout import open_artifact
from compress.artifact.write import companions
from compress.errors import ArtifactError, StorageError
from compress.storage import INDEX, ShardWriter


@pytest.fixture
def made(student, every_linear):
    return student("llama", every_linear(4, 32, True))


@pytest.mark.parametrize("max_shard_bytes", [1, 10_000, 50_000])
def test_shards_stay_under_the_limit_and_read_back(made, tmp_path, max_shard_bytes):
    folder = made.write(tmp_path / "a", "packed", max_shard_bytes=max_shard_bytes)
    artifact, dense = open_artifact(folder), made.dense()
    biggest = max(info.nbytes for info in artifact.checkpoint.tensors.values())
    held: dict[str, int] = {}
    for info in artifact.checkpoint.tensors.values():
        held[info.file.name] = held.get(info.file.name, 0) + info.nbytes
    assert len(held) > 1
    assert max(held.values()) <= max(max_shard_bytes, biggest)
    assert all(torch.equal(artifact.tensor(name), dense[name]) for name in dense)


def test_two_writes_are_identical(made, tmp_path):
    one, two = made.write(tmp_path / "1", "packed"), made.write(tmp_path / "2", "packed")
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert all(p.read_bytes() == (two / p.name).read_bytes() for p in one.iterdir())


def test_parts_are_taken_one_at_a_time(made, tmp_path, monkeypatch):
    """No part is asked for before the one before it is queued, and full shards leave memory."""
    events = []
    add, parts = ShardWriter.add, list(made.parts())
    monkeypatch.setattr(ShardWriter, "add", lambda w, n, t: (events.append(n), add(w, n, t))[1])

    def watched():
        for name, part in parts:
            events.append(f"asked {name}")
            yield name, part

    made.parts = watched
    made.write(tmp_path / "a", "packed")
    asked = [number for number, event in enumerate(events) if event.startswith("asked")]
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(asked))


def test_companions_are_copied(made, tmp_path):
    folder = made.write(tmp_path / "a", "packed")
    names = {path.name for path in companions(made.teacher)}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    for path in companions(made.teacher):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_config_keeps_the_teacher_and_replaces_its_quantization(made, tmp_path):
    made.config["quantization_config"] = {"quant_method": "old"}
    config = json.loads((made.write(tmp_path / "a", "packed") / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert quantization == {
        "quant_method": "compress",
        "format": "packed",
        "version": 1,
        "default": {"bits": 4, "group_size": 32, "sym": True},
        "exceptions": {},
    }
    made.config.pop("quantization_config")
    assert config == made.config


def test_a_finished_model_is_not_written_over(made, tmp_path):
    folder = made.write(tmp_path / "a", "packed")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ArtifactError, match="holds a finished model"):
        made.write(folder, "dense")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_killed_write_left_is_replaced(made, tmp_path):
    folder = made.write(tmp_path / "a", "packed", max_shard_bytes=20_000)
    (folder / "config.json").unlink()
    for name in ("shard-00001.part", "config.json.tmp"):
        (folder / name).write_bytes(b"half")
    (folder / "journal.jsonl").write_text("kept")
    made.write(folder, "packed")
    assert not (folder / INDEX).exists()
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(folder.glob("*.part")) + list(folder.glob("*.tmp"))
    assert (folder / "journal.jsonl").read_text() == "kept"
    assert open_artifact(folder).format == "packed"


def test_a_lost_part_stops_the_write(made, tmp_path):
    whole = list(made.parts())
    made.parts = lambda: iter(whole[:-1])
    with pytest.raises(ArtifactError, match=r"not handed over"):
        made.write(tmp_path / "a", "packed")
    made.parts = lambda: iter([*whole, whole[0]])
    with pytest.raises(ArtifactError, match="handed over twice"):
        made.write(tmp_path / "b", "packed")
    assert not (tmp_path / "a" / "config.json").exists()
    assert not list((tmp_path / "a").glob("*.safetensors"))


def test_an_unknown_format_is_refused_before_anything_is_written(made, tmp_path):
    with pytest.raises(ArtifactError, match=r"'onnx' is unknown\. Use packed, compressed-tensors"):
        made.write(tmp_path / "a", "onnx")
    assert not (tmp_path / "a").exists()


def test_a_refusing_disk_is_a_storage_error(made, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        made.write(tmp_path / "a", "packed")
    assert not list((tmp_path / "a").iterdir())


def test_dense_rounds_once_more_to_the_dtype_of_the_config(made, tmp_path):
    made.config["dtype"] = "bfloat16"
    artifact = open_artifact(made.write(tmp_path / "a", "dense"))
    name = artifact.anatomy.linears[0].name + ".weight"
    assert torch.equal(artifact.tensor(name), made.dense()[name].bfloat16())
