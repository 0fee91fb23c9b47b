"""The manifest names every file and tensor, and every change to them."""

import hashlib
import json

import pytest
import torch

from compress.artifact.manifest import LEFT_OUT, check_manifest, write_manifest
from compress.errors import ArtifactError
from compress.storage import SINGLE, read_file, write_file

FACTS = {"seed": 0, "versions": {"torch": "2.13.0"}}


@pytest.fixture
def folder(student, every_linear, tmp_path):
    folder = student("llama", every_linear(4, 32, False)).write(tmp_path / "a", "packed")
    write_manifest(folder, FACTS)
    return folder


def test_it_holds_every_file_tensor_and_fact(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = read_file(folder / SINGLE)
    assert manifest["facts"] == FACTS
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    assert set(manifest["tensors"]) == set(tensors)
    whole = hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest()
    assert manifest["files"][SINGLE] == whole
    for name, tensor in tensors.items():
        raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        assert manifest["tensors"][name] == hashlib.sha256(raw).hexdigest(), name


def test_an_untouched_folder_has_no_problems(folder):
    assert check_manifest(folder) == []


def test_what_may_differ_between_runs_is_left_out(folder):
    for name in LEFT_OUT - {"manifest.json"}:
        (folder / name).write_text("another time")
    (folder / ".lock").touch()
    (folder / "journal").mkdir()
    (folder / "journal" / "0.safetensors").touch()
    assert check_manifest(folder) == []


def test_changes_are_named(folder):
    tensors = {name: tensor.clone() for name, tensor in read_file(folder / SINGLE).items()}
    tensors["model.norm.weight"][0] += 1
    write_file(folder / SINGLE, tensors)
    (folder / "tokenizer.json").unlink()
    (folder / "extra.txt").touch()
    assert check_manifest(folder) == [
        "file tokenizer.json: missing",
        f"file {SINGLE}: changed",
        "file extra.txt: not in the manifest",
        "tensor model.norm.weight: changed",
    ]


def test_a_truncated_file_is_a_problem_not_a_crash(folder):
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-10])
    problems = check_manifest(folder)
    assert problems[0] == f"file {SINGLE}: changed"
    assert "truncated" in problems[1]


def test_no_manifest_and_no_json(folder):
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not a manifest"):
        check_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        check_manifest(folder)
