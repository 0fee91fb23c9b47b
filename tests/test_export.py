"""One set of integers, many formats: what each means is the same, or it is told by how much."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from verify.conftest import artifact, linears  # noqa: F401 - a fixture

from compress.artifact.layout import open_artifact
from compress.artifact.manifest import read_manifest
from compress.errors import ArtifactError, CompressError
from compress.export import export
from compress.kernels.activations import Inputs
from compress.kernels.int8 import round_rows
from compress.verify.layout import open_folder

EXACT = ("packed", "compressed-tensors", "gptq", "gguf")


@pytest.fixture(scope="module")
def source(artifact):  # noqa: F811
    """The dense parts in bfloat16, so that `dense` has to round."""
    return artifact("packed", 4, 64, True, tied=True, dtype="bfloat16")


@pytest.fixture(scope="module")
def exports(source, tmp_path_factory):
    home = tmp_path_factory.mktemp("exports")
    return {name: export(source, format=name, out=home / name) for name in EXACT}


def test_every_format_carries_the_same_weights(exports, source):
    """By the independent reader of each, bit for bit."""
    wanted = open_folder(source)
    for name, made in exports.items():
        found = open_folder(made.folder)
        assert found.format == made.format == name
        assert made.difference.exact
        for tensor in wanted.anatomy.tensors:
            assert torch.equal(found.tensor(tensor), wanted.tensor(tensor)), (name, tensor)


def test_every_export_is_held_to_the_student_that_was_solved(exports, source):
    known = read_manifest(source)["reference"]
    for made in exports.values():
        assert read_manifest(made.folder)["reference"] == known
        found = json.loads((made.folder / "verification.json").read_text())
        assert {one["outcome"] for one in found["checks"]} == {"passed"}
        told = json.loads((made.folder / "export.json").read_text())
        assert (told["exact"], told["source"]["format"]) == (True, "packed")
        assert made.size_bytes == open_artifact(made.folder).size_bytes


def test_an_export_can_be_exported(exports, tmp_path):
    back = export(exports["gptq"].folder, format="packed", out=tmp_path / "a")
    assert (back.source_format, back.difference.exact) == ("gptq", True)


def test_dense_is_rounded_and_told(source, tmp_path):
    made = export(source, format="dense", out=tmp_path / "a")
    found = made.difference
    assert 0 < found.mean < found.largest < 1e-2
    assert 0 < found.changed_weights < found.weights
    assert found.worst in open_artifact(source).matrices
    told = json.loads((tmp_path / "a" / "manifest.json").read_text())["facts"]["export"]
    assert told["difference"]["largest"] == found.largest


def test_a_minimum_in_float16_is_told(artifact, tmp_path):  # noqa: F811
    source = artifact("packed", 4, 32, False)
    made = export(source, format="gguf", out=tmp_path / "a")
    found = made.difference
    assert 0 < found.mean < found.largest < 1e-3
    before, after = open_folder(source), open_folder(tmp_path / "a")
    name = f"{found.worst}.weight"
    assert float((before.tensor(name) - after.tensor(name)).abs().max()) == found.largest
    with pytest.raises(ArtifactError, match="its minima were rounded to float16"):
        export(tmp_path / "a", format="packed", out=tmp_path / "b")


def test_mixed_widths_and_a_quantized_head(artifact, tmp_path):  # noqa: F811
    def plan(name):
        if "embed" in name:
            return 8, 64, True
        return (3 if name.endswith("down_proj") else 4, 64, True)

    source = artifact("packed", plan=plan, tied=True)
    made = export(source, format="gguf", out=tmp_path / "a")
    assert made.difference.exact
    with pytest.raises(ArtifactError) as caught:
        export(source, format="gptq", out=tmp_path / "b")
    told = str(caught.value).splitlines()
    assert "3 bits; its readers take 4 and 8" in told[0]
    assert "a quantized embedding (tied to the head)" in told[1]
    assert told[2].endswith("nothing was exported.")
    assert not list(tmp_path.glob("b*"))


def test_dense_folders_hold_no_integers(tiny_llama, tmp_path):
    with pytest.raises(ArtifactError, match="dense, holds weights and no integers"):
        export(tiny_llama, format="gptq", out=tmp_path / "a")


def test_what_is_there_is_not_written_over(source, exports):
    with pytest.raises(ArtifactError, match="exists"):
        export(source, format="gptq", out=exports["gptq"].folder)


def test_an_artifact_without_a_manifest_is_written_down_anew(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "a")
    (folder / "manifest.json").unlink()
    made = export(folder, format="gptq", out=tmp_path / "b")
    assert read_manifest(made.folder)["reference"] == read_manifest(source)["reference"]


def test_a_broken_source_is_one_clear_error(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "a")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CompressError, match="truncated"):
        export(folder, format="gguf", out=tmp_path / "b")
    assert not list(tmp_path.glob("b*"))


def test_what_rounds_its_inputs_has_no_dense_copy(artifact, tmp_path):  # noqa: F811
    plan = linears(lambda weight: replace(round_rows(weight), inputs=Inputs("int8")))
    source = artifact("packed", plan=plan)
    with pytest.raises(ArtifactError, match="rounds inputs, and nothing there tells readers to"):
        export(source, format="dense", out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_never_cleared_away(source, tmp_path):
    work = tmp_path / "a.partial" / ".work"
    work.mkdir(parents=True)
    (work / "journal.jsonl").write_text("hours\n")
    with pytest.raises(ArtifactError, match=r"a\.partial: holds an unfinished run"):
        export(source, format="gguf", out=tmp_path / "a")
    assert (work / "journal.jsonl").read_text() == "hours\n"
