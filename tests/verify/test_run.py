"""Clean artifacts pass; every fault that is planted is caught, by the check that should."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from verify.faults import FAULTS, PRUNED, PRUNED_CODES, Folder

from compress.artifact import manifest
from compress.errors import ArtifactError
from compress.results import Verification, from_json
from compress.verify import checks
from compress.verify.run import verify

GROUPS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def outcomes(found):
    return {check.name: check.outcome for check in found.checks}


def assert_clean(folder):
    found = verify(folder, consumers=())
    assert found.passed, found.failures
    assert set(outcomes(found).values()) == {"passed"}
    assert len(found.checks) == 9
    return found


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_passes(artifact, bits, sym):
    assert_clean(artifact("packed", bits, 32, sym))


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, -1)])
@pytest.mark.parametrize("tied", [True, False])
def test_compressed_tensors_passes(artifact, bits, group_size, sym, tied):
    assert_clean(artifact("compressed-tensors", bits, group_size, sym, tied=tied))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, -1)])
@pytest.mark.parametrize("tied", [True, False])
def test_gptq_passes(artifact, bits, group_size, tied):
    assert_clean(artifact("gptq", bits, group_size, True, tied=tied))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, -1)])
def test_gguf_passes(artifact, bits, group_size, family):
    assert_clean(artifact("gguf", bits, group_size, True, family=family, tied=bits == 8))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("format", ["packed", "compressed-tensors", "gptq", "gguf", "dense"])
def test_every_dtype_passes(artifact, format, dtype):
    assert_clean(artifact(format, dtype=dtype))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2", "gemma3_text", "opt", "gpt_neox"])
@pytest.mark.parametrize("format", ["packed", "compressed-tensors"])
def test_every_family_passes(artifact, format, family):
    assert_clean(artifact(format, family=family))


@pytest.mark.parametrize("format", ["packed", "dense"])
def test_conv1d_passes(artifact, format):
    assert_clean(artifact(format, 3, 32, False, family="gpt2", tied=True))


def test_a_quantized_tied_head_passes(artifact):
    def plan(name):
        return (8, 32, True) if "embed" in name else (4, 32, False)

    assert_clean(artifact("packed", plan=plan, tied=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("of", [PRUNED, PRUNED_CODES], ids=["weights", "codes"])
def test_masks_pass(artifact, of, family):
    found = assert_clean(artifact(*of, family=family))
    assert found.format == "packed"


def test_rows_that_end_inside_a_word_pass(artifact):
    assert_clean(artifact("packed", 3, -1, False, intermediate_size=136))


def test_shards_pass(artifact):
    folder = artifact("packed", max_shard_bytes=20_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_clean(folder)


def test_mixed_schemes_pass_and_are_told(artifact):
    def plan(name):
        if name.endswith(GROUPS):
            return (8 if name.endswith("k_proj") else 4, 32, True)
        return None

    found = assert_clean(artifact("packed", plan=plan))
    (fused,) = (check for check in found.checks if check.name == "fused linears")
    assert "model.layers.0: q_proj 4 bits g32 sym, k_proj 8 bits g32 sym" in fused.detail


def test_both_rooms_leave_the_same_files_out_of_the_manifest():
    assert checks.LEFT_OUT == manifest.LEFT_OUT


def test_what_was_found_is_written_and_no_part_of_the_manifest(artifact):
    folder = artifact()
    found = assert_clean(folder)
    assert from_json(Verification, (folder / "verification.json").read_text()) == found
    assert_clean(folder)


def test_a_model_folder_that_no_run_left_has_nothing_to_be_held_against(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "a")
    found = verify(folder, consumers=())
    assert found.passed
    told = outcomes(found)
    assert [name for name, how in told.items() if how == "not applicable"] == [
        "manifest", "files", "tensors", "weights", "logits"
    ]  # fmt: skip


def test_an_older_manifest_without_a_reference_is_told(artifact, tmp_path):
    folder = Folder(shutil.copytree(artifact(), tmp_path / "a"))
    told = folder.json("manifest.json")
    del told["reference"]
    folder.write_json("manifest.json", told)
    found = verify(folder.path, consumers=())
    assert found.passed
    assert outcomes(found)["weights"] == "not applicable"


def test_no_folder_is_a_wrong_request(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        verify(tmp_path / "none")


@pytest.mark.parametrize("rehashed", [False, True], ids=["", "rehashed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(artifact, tmp_path, fault, rehashed):
    """Also when whoever made the fault has made the manifest's hashes fit."""
    planted = FAULTS[fault]
    folder = Folder(shutil.copytree(artifact(*planted.of, **planted.options), tmp_path / "a"))
    planted.plant(folder)
    if rehashed:
        folder.rehash()
    found = verify(folder.path, consumers=())
    failed = {check.name for check in found.failures}
    assert planted.caught_by in failed, (failed, found.checks)
    if not rehashed:
        assert failed & {"files", "manifest"}
    elif planted.caught_by not in ("files", "manifest"):
        assert not failed & {"files", "tensors", "manifest"}


def test_every_problem_of_a_check_is_counted_and_some_are_told(artifact, tmp_path):
    folder = Folder(shutil.copytree(artifact(), tmp_path / "a"))
    tensors = folder.tensors()
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name][0, 0] = torch.nan
    folder.write(tensors)
    (numbers,) = (c for c in verify(folder.path, consumers=()).checks if c.name == "numbers")
    assert numbers.detail.count("NaN or infinity") == 3
    assert numbers.detail.endswith("and 11 more")


@pytest.mark.parametrize(
    "edit",
    [
        lambda known: known.update(version=2),
        lambda known: known.pop("ids"),
        lambda known: known.update(logits=[{"ids": [0]}] * 4),
        lambda known: known.update(ids=["a"]),
    ],
)
def test_a_reference_that_cannot_be_read_is_a_failure(artifact, tmp_path, edit):
    folder = Folder(shutil.copytree(artifact(), tmp_path / "a"))
    told = folder.json("manifest.json")
    edit(told["reference"])
    folder.write_json("manifest.json", told)
    found = verify(folder.path, consumers=())
    assert {check.name for check in found.failures} & {"manifest", "weights", "tokenizer"}
    json.loads((folder.path / "verification.json").read_text())
