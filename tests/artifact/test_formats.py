"""What each format says it cannot hold, and the tensors it makes of one matrix."""

import json

import pytest
import torch

from compress.artifact.formats import FORMATS, METHODS
from compress.artifact.formats import compressed_tensors as ct
from compress.artifact.formats.matrix import Matrix, Scheme, scheme_of
from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.kernels.grid import Rounded

W4 = Scheme(4, 32, True)


def example(bits=4, sym=False, rows=6, columns=64, group_size=32):
    generator = torch.Generator().manual_seed(bits)
    top, groups = 1 << bits, columns // group_size
    codes = torch.randint(0, top, (rows, columns), generator=generator).byte()
    zero = torch.randint(0, top, (rows, groups), generator=generator).byte()
    scale = (torch.rand(rows, groups, generator=generator) + 0.5).bfloat16().float()
    middle = torch.full_like(zero, top // 2)
    return Rounded(codes, scale, middle if sym else zero, bits, group_size, sym)


@pytest.mark.parametrize("format", ["packed", "compressed-tensors"])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_decode_undoes_encode_and_stored_foretells_it(format, sym, bits, rows):
    form, rounded = FORMATS[format], example(bits, sym, rows)
    tensors = dict(form.encode("m", rounded, None, torch.bfloat16))
    matrix = Matrix(scheme_of(rounded), rows, 64)
    foretold = {name: shape for name, (_, shape) in form.stored("m", matrix).items()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == foretold
    found = form.decode("m", matrix, tensors)
    assert torch.equal(found.codes, rounded.codes)
    assert torch.equal(found.zero, rounded.zero)
    assert torch.equal(found.dequantize(), rounded.dequantize())


@pytest.mark.parametrize("format", ["packed", "compressed-tensors"])
def test_scales_that_two_bytes_cannot_hold_are_refused(format):
    rounded = example(sym=True)
    rounded.scale[0, 0] = 1 + 2.0**-9
    with pytest.raises(ArtifactError, match="m: some of its scales are not exact"):
        list(FORMATS[format].encode("m", rounded, None, torch.bfloat16))


def test_a_zero_off_the_middle_is_not_symmetric():
    rounded = example(sym=True)
    rounded.zero[0, 0] = 3
    with pytest.raises(ArtifactError, match="called symmetric, but some zeros are not 8"):
        list(FORMATS["packed"].encode("m", rounded, None, torch.bfloat16))


def test_dense_has_no_codes():
    with pytest.raises(ArtifactError, match="holds weights, not codes"):
        FORMATS["dense"].decode("m", Matrix(W4, 1, 32), {})


def refusals(made, schemes):
    return ct.refusals(made.anatomy, schemes)


def all_linears(made, scheme=W4):
    return {linear.name: scheme for linear in made.anatomy.linears}


def test_what_every_format_holds_is_not_refused(student, every_linear):
    made = student("llama", every_linear(4, 32, True))
    held = ("packed", "compressed-tensors", "gptq", "gguf", "dense")
    assert not any(FORMATS[name].refusals(made.anatomy, all_linears(made)) for name in held)
    assert not refusals(made, {**all_linears(made), "lm_head": Scheme(8, 64, False)})


def test_compressed_tensors_refuses_widths(student, every_linear):
    made = student("llama", every_linear(3, 32, True))
    (message,) = refusals(made, all_linears(made, Scheme(3, 32, True)))
    assert message == (
        "artifact.format compressed-tensors: model.layers.0.self_attn.q_proj and 13 more: 3 bits; "
        "its readers take 4 and 8. Use artifact.format: packed, or change the recipe."
    )


def test_compressed_tensors_refuses_a_tied_quantized_head(student, every_linear):
    made = student("llama", every_linear(4, 32, True), tied=True)
    (message,) = refusals(made, {**all_linears(made), "model.embed_tokens": W4})
    assert "model.embed_tokens: a quantized embedding (tied to the head)" in message


def test_compressed_tensors_refuses_conv1d(student, every_linear, tmp_path):
    made = student("gpt2", every_linear(4, 32, True))
    with pytest.raises(ArtifactError, match="gpt2 keeps its weights in Conv1D modules"):
        made.write(tmp_path / "a", "compressed-tensors")
    assert not (tmp_path / "a" / "config.json").exists()


@pytest.mark.parametrize("other", [Scheme(8, 32, True), Scheme(4, 64, True), None])
def test_compressed_tensors_refuses_unequal_fused_linears(student, every_linear, other):
    made = student("llama", every_linear(4, 32, True))
    schemes = {**all_linears(made), "model.layers.1.self_attn.k_proj": other}
    found = refusals(made, {name: scheme for name, scheme in schemes.items() if scheme})
    (message,) = found
    assert "model.layers.1: q_proj, k_proj, v_proj are fused by serving engines" in message


def test_compressed_tensors_says_every_reason(student, every_linear):
    made = student("llama", every_linear(4, 32, True), tied=True)
    schemes = {"model.layers.0.mlp.up_proj": Scheme(2, 32, True), "model.embed_tokens": W4}
    assert len(refusals(made, schemes)) == 3


def test_compressed_tensors_ignores_every_dense_linear_by_name(student):
    ends = ("q_proj", "k_proj", "v_proj")
    made = student("llama", lambda n: (4, 32, True) if n.endswith(ends) else None, tied=True)
    schemes = {n: W4 for n in all_linears(made) if n.endswith(ends)}
    config = ct.config(made.anatomy, schemes)
    dense = [n for n in all_linears(made) if not n.endswith(ends)]
    assert set(config["ignore"]) == {*dense, "lm_head"}  # a tied head is a module all the same
    (group,) = config["config_groups"].values()
    assert group["targets"] == list(schemes)
    assert group["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
        "dynamic": False, "actorder": None,
    }  # fmt: skip


def test_one_group_a_row_is_the_channel_strategy(student, every_linear):
    made = student("llama", every_linear(8, -1, True))
    schemes = {n.name: Scheme(8, n.in_features, True) for n in made.anatomy.linears}
    (group,) = ct.config(made.anatomy, schemes)["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    assert group["weights"]["group_size"] is None


def test_nothing_quantized_is_no_scheme(student, tmp_path):
    made = student("llama", lambda name: None)
    for format, reads_as in (("compressed-tensors", "dense"), ("packed", "packed")):
        assert open_artifact(made.write(tmp_path / format, format)).format == reads_as


FOREIGN = {
    "other format": (lambda q: q.update(format="marlin-24"), "format marlin-24"),
    "groups of another": (
        lambda q: group(q).update(format="int-quantized"),
        "but one of its groups says int-quantized",
    ),
    "no groups": (lambda q: q.update(config_groups=None), "config_groups is not a table"),
    "no target": (lambda q: group(q).update(targets=["Conv2d"]), "no group of config_groups"),
    "width": (lambda q: group(q)["weights"].update(num_bits=3), "is not one that is read"),
    "act order with an index": (
        lambda q: group(q)["weights"].update(actorder="group"),
        "is not one that is read",
    ),
    "group that does not divide": (
        lambda q: group(q)["weights"].update(group_size=48),
        "is not one that is read",
    ),
    "another group": (lambda q: group(q)["weights"].update(group_size=64), "weight_scale: found"),
    "another grid": (lambda q: group(q)["weights"].update(symmetric=False), "_zero_point: missing"),
}


def group(quantization):
    return quantization["config_groups"]["group_0"]


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_compressed_tensors_are_refused_with_the_reason(
    student, every_linear, tmp_path, case
):
    folder = student("llama", every_linear(4, 32, True)).write(tmp_path, "compressed-tensors")
    config = json.loads((folder / "config.json").read_text())
    edit, message = FOREIGN[case]
    edit(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message):
        open_artifact(folder)


@pytest.mark.parametrize("targets", [["Linear"], [r"re:.*layers\.\d+\..*_proj$"]])
def test_targets_by_class_and_by_pattern_are_read(student, every_linear, tmp_path, targets):
    folder = student("llama", every_linear(4, 32, True)).write(tmp_path, "compressed-tensors")
    before = open_artifact(folder).matrices
    config = json.loads((folder / "config.json").read_text())
    group(config["quantization_config"])["targets"] = targets
    (folder / "config.json").write_text(json.dumps(config))
    assert open_artifact(folder).matrices == before


def test_every_method_that_is_read_is_written():
    assert set(METHODS.values()) == set(FORMATS) - {"dense"}
