"""What is written is what is read back, in every format and for every family."""

import json
import math
import shutil
from typing import get_args, get_type_hints

import pytest
import torch
from conftest import CONFIGS, imported_by

from compress.artifact.layout import PARTS, open_artifact
from compress.errors import ArtifactError
from compress.kernels.grid import Rounded
from compress.results import SizePart
from compress.storage import INDEX, SINGLE, read_file, write_file

MIXED = {
    "q_proj": (4, 32, True), "k_proj": (4, 32, True), "v_proj": (4, 32, True),
    "o_proj": (3, 16, False), "gate_proj": (2, 64, False), "up_proj": (2, 64, False),
    "down_proj": (8, -1, True), "embed_tokens": (8, 32, True),
}  # fmt: skip


def mixed(name):
    """Every width, both grids, several groups, a quantized embedding, a dense head."""
    return MIXED.get(name.rpartition(".")[2])


def assert_same(artifact, student):
    dense = student.dense()
    assert set(artifact.names()) == set(dense)
    for name, expected in dense.items():
        assert torch.equal(artifact.tensor(name), expected), name
    for name, part in student.parts():
        if isinstance(part, Rounded):
            found = artifact.rounded(name)
            assert torch.equal(found.codes, part.codes), name
            assert torch.equal(found.scale, part.scale), name
            assert torch.equal(found.zero, part.zero), name
            assert (found.bits, found.group_size, found.sym) == (
                part.bits,
                part.group_size,
                part.sym,
            )
        else:
            assert artifact.rounded(name.removesuffix(".weight")) is None


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("format", ["packed", "dense"])
def test_every_family_reads_back_equal(student, tmp_path, family, format, every_linear):
    made = student(family, every_linear(4, 32, False))
    artifact = open_artifact(made.write(tmp_path / "a", format))
    assert artifact.format == format
    if format == "packed":
        assert_same(artifact, made)
    else:
        dense = made.dense()  # the tiny models are float32: no second rounding
        assert all(torch.equal(artifact.tensor(name), dense[name]) for name in artifact.names())


@pytest.mark.parametrize("tied", [True, False])
def test_packed_mixes_everything(student, tmp_path, tied):
    made = student("llama", mixed, tied=tied)
    artifact = open_artifact(made.write(tmp_path / "a", "packed"))
    assert_same(artifact, made)
    assert artifact.anatomy.tied == tied
    assert artifact.rounded("model.embed_tokens").bits == 8
    assert artifact.anatomy == made.anatomy


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_compressed_tensors_reads_back_equal(
    student, tmp_path, bits, group_size, sym, every_linear
):
    made = student("qwen2", every_linear(bits, group_size, sym))
    artifact = open_artifact(made.write(tmp_path / "a", "compressed-tensors"))
    assert artifact.format == "compressed-tensors"
    assert_same(artifact, made)


def test_blocks_and_outside_are_the_whole_model(student, tmp_path, every_linear):
    made = student("gpt2", every_linear(8, 64, True))
    artifact = open_artifact(made.write(tmp_path / "a", "packed"))
    found = {**artifact.block(0), **artifact.block(1), **artifact.outside()}
    dense = made.dense()
    assert set(found) == set(dense)
    assert all(torch.equal(found[name], dense[name]) for name in dense)


def test_a_teacher_folder_opens_as_dense(tiny_llama):
    artifact = open_artifact(tiny_llama)
    assert artifact.format == "dense"
    assert artifact.bits_per_weight == 32
    assert "quantization_config" not in artifact.config


def test_sizes_add_up_and_bits_count_every_byte(student, tmp_path, every_linear):
    made = student("llama", every_linear(4, 32, False))
    folder = made.write(tmp_path / "a", "packed")
    (folder / "results.json").write_text("{}")
    artifact = open_artifact(folder)
    sizes = artifact.parts_sizes()
    counted = sum(p.stat().st_size for p in folder.iterdir() if p.name != "results.json")
    assert sum(sizes.values()) == artifact.size_bytes == counted
    # 4 bits, 16 bits of scale and 4 of zero per 32 weights; all rows and groups fill whole words
    assert artifact.bits_per_weight == 4 + 20 / 32
    weights = artifact.parts_weights()
    assert weights["block linears"] == made.anatomy.weights
    assert sum(weights.values()) == sum(map(math.prod, made.anatomy.tensors.values()))
    assert sizes["head"] == weights["head"] * 4
    assert sizes["embedding"] == weights["embedding"] * 4


def test_a_tied_quantized_embedding_counts_as_embedding(student, tmp_path):
    made = student("llama", mixed, tied=True)
    sizes = open_artifact(made.write(tmp_path / "a", "packed")).parts_sizes()
    assert sizes["head"] == 0
    assert sizes["embedding"] == 320 * 64 + 320 * 2 * 2


def test_parts_are_those_of_the_results():
    assert get_args(get_type_hints(SizePart)["part"]) == PARTS


# --- what is broken is named -------------------------------------------------------------------


@pytest.fixture
def folder(student, tmp_path, every_linear):
    return student("llama", every_linear(4, 32, False)).write(tmp_path / "a", "packed")


def change(folder, edit):
    tensors = read_file(folder / SINGLE)
    edit(tensors)
    write_file(folder / SINGLE, {name: tensor.clone() for name, tensor in tensors.items()})


Q = "model.layers.1.self_attn.q_proj"
BROKEN = {
    "codes missing": (lambda t: t.pop(f"{Q}.codes"), f"{Q}.scales, {Q}.zeros: extra"),
    "scales missing": (lambda t: t.pop(f"{Q}.scales"), f"{Q}.scales: missing"),
    "zeros missing": (lambda t: t.pop(f"{Q}.zeros"), f"{Q}.zeros: missing"),
    "whole linear missing": (
        lambda t: [t.pop(f"{Q}.{end}") for end in ("codes", "scales", "zeros")],
        f"{Q}.weight is missing",
    ),
    "norm missing in one block": (
        lambda t: t.pop("model.layers.0.input_layernorm.weight"),
        "model.layers.0.input_layernorm.weight: missing",
    ),
    "final norm missing": (lambda t: t.pop("model.norm.weight"), "model.norm.weight: missing"),
    "head missing": (lambda t: t.pop("lm_head.weight"), "lm_head.weight: missing"),
    "embedding missing": (
        lambda t: t.pop("model.embed_tokens.weight"),
        "model.embed_tokens.weight is missing",
    ),
    "weight beside codes": (
        lambda t: t.update({f"{Q}.weight": torch.zeros(64, 64)}),
        f"{Q}.weight: extra",
    ),
    "from a newer version": (
        lambda t: t.update({f"model.layers.{i}.mlp.up_proj.mask": torch.zeros(1) for i in (0, 1)}),
        "model.layers.0.mlp.up_proj.mask, model.layers.1.mlp.up_proj.mask: extra",
    ),
    "orphan": (lambda t: t.update({"model.x.zeros": torch.zeros(1)}), "model.x.zeros: extra"),
    "codes cut": (
        lambda t: t.update({f"{Q}.codes": t[f"{Q}.codes"][:, :-1]}),
        f"{Q}.codes: found I32 [64, 7], the scheme in config.json needs I32 [64, 8]",
    ),
    "scales of another dtype": (
        lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].float()}),
        f"{Q}.scales: found F32",
    ),
    "zeros cut": (lambda t: t.update({f"{Q}.zeros": t[f"{Q}.zeros"][:-1]}), f"{Q}.zeros: found"),
    "rows cut": (
        lambda t: t.update(
            {f"model.layers.1.mlp.down_proj.{e}": t[f"model.layers.1.mlp.down_proj.{e}"][:32]
             for e in ("codes", "scales")}
            | {"model.layers.1.mlp.down_proj.zeros": t["model.layers.1.mlp.down_proj.zeros"][:4]}
        ),
        "model.layers.1.mlp.down_proj.weight: out_features 32, the model's width is 64",
    ),
    "embedding rows cut": (
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:100]}),
        "model.embed_tokens.weight: has 100 rows, config.json promises 320",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_named(folder, case):
    edit, message = BROKEN[case]
    change(folder, edit)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(folder)
    assert message in str(caught.value)


def test_a_truncated_file_names_the_tensor(folder):
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match=r"truncated: .+ ends at byte"):
        open_artifact(folder)


def test_a_missing_shard_is_named(student, tmp_path, every_linear):
    made = student("llama", every_linear(4, 32, True))
    folder = made.write(tmp_path / "a", "packed", max_shard_bytes=40_000)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ArtifactError, match=shard.name):
        open_artifact(folder)


def test_an_index_that_promises_too_much_is_named(student, tmp_path, every_linear):
    made = student("llama", every_linear(4, 32, True))
    folder = made.write(tmp_path / "a", "packed", max_shard_bytes=40_000)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"promises model\.extra\.weight"):
        open_artifact(folder)


BROKEN_CONFIGS = {
    "newer version": (lambda q: q.update(version=2), "packed version 2"),
    "unknown method": (lambda q: q.update(quant_method="awq"), "quant_method 'awq' is not read"),
    "bits": (lambda q: q["default"].update(bits=5), "the scheme {'bits': 5"),
    "unknown field": (lambda q: q["default"].update(mask=1), "'mask': 1"),
    "no default": (lambda q: q.pop("default"), "the scheme {}"),
    "lost exception": (
        lambda q: q["exceptions"].update({"model.x": {"bits": 8}}),
        "model.x.codes: missing",
    ),
    "wrong group": (lambda q: q["default"].update(group_size=64), ".codes: found I32 [64, "),
    "wrong grid": (lambda q: q["default"].update(sym=True), ".zeros: extra"),
}


@pytest.mark.parametrize("case", BROKEN_CONFIGS)
def test_a_broken_config_is_explained(folder, case):
    edit, message = BROKEN_CONFIGS[case]
    config = json.loads((folder / "config.json").read_text())
    edit(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as caught:
        open_artifact(folder)
    assert message in str(caught.value)


def test_no_folder_no_config_no_json(folder, tmp_path):
    with pytest.raises(ArtifactError, match=r"config.json: cannot be read \(No such file"):
        open_artifact(tmp_path / "nowhere")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a JSON object"):
        open_artifact(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        open_artifact(folder)


def test_opening_needs_neither_transformers_nor_torch(folder):
    program = (
        "import pathlib, sys; from compress.artifact.layout import open_artifact\n"
        "artifact = open_artifact(pathlib.Path(sys.argv[1])); artifact.bits_per_weight\n"
        "assert 'torch' not in sys.modules; artifact.block(0)"
    )
    assert "transformers" not in imported_by(program, folder)


def test_a_copy_of_an_artifact_opens(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    assert open_artifact(tmp_path / "b").names() == open_artifact(folder).names()
