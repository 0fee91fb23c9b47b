"""fp8, nvfp4 and mxfp4 as the independent reader finds them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.floats import FloatGrid, fit
from compress.verify import checks, floats
from compress.verify.layout import open_folder, told_scheme
from compress.verify.run import verify
from tests.oracles import small_floats

GRIDS = {
    "FP8_DYNAMIC": FloatGrid("fp8_e4m3", "float", -1),
    "FP8_BLOCK": FloatGrid("fp8_e4m3", "float", 128, scale_rows=128),
    "FP8": FloatGrid("fp8_e4m3", "float", -1, scale_rows=0),
    "NVFP4A16": FloatGrid("fp4_e2m1", "e4m3", 16, over=2.0**10),
    "NVFP4": FloatGrid("fp4_e2m1", "e4m3", 16, over=2.0**10),
    "MXFP4": FloatGrid("fp4_e2m1", "e8m0", 32),
}
INPUTS = {
    "FP8_DYNAMIC": Inputs("fp8_e4m3"),
    "FP8_BLOCK": Inputs("fp8_e4m3", group_size=128),
    "FP8": Inputs("fp8_e4m3", scale=2.0**-5),
    "NVFP4": Inputs("fp4_e2m1", group_size=16, scale=2.0**-8),
    "MXFP4": Inputs("fp4_e2m1", group_size=32),
}
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
DOWN = "model.layers.0.mlp.down_proj"
each = pytest.mark.parametrize("name", GRIDS)
both = pytest.mark.parametrize("format", ["packed", "compressed-tensors"])


def rounder(name):
    grid = GRIDS[name]

    def rounded(weight):
        scale = torch.full_like(fit(weight, grid), 2.0**-8) if grid.scale_rows == 0 else None
        found = grid.round(weight, fit(weight, grid) if scale is None else scale)
        return dataclasses.replace(found, inputs=INPUTS.get(name))

    return rounded


ROUNDERS = {name: rounder(name) for name in GRIDS}


@pytest.fixture
def folder(artifact, tmp_path):
    """A copy of an artifact, to be changed."""

    def make(name, format):
        made = artifact(format, ROUNDERS[name], head_dim=32, **SIZES)
        return shutil.copytree(made, tmp_path / "copy")

    return make


def changed(folder, tensors):
    """Store other tensors."""
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})
    return open_folder(folder)


@both
@pytest.mark.parametrize("name", ["FP8_BLOCK", "NVFP4"])
def test_every_check_passes(artifact, name, format):
    folder = artifact(format, ROUNDERS[name], head_dim=32, **SIZES)
    report = verify(folder, consumers=())
    assert {check.outcome for check in report.checks} <= {"passed", "not applicable", "not run"}, [
        check for check in report.checks if check.outcome == "failed"
    ]


@both
@each
def test_weights_are_those_of_the_other_reader(artifact, name, format):
    folder = artifact(format, ROUNDERS[name], head_dim=32, **SIZES)
    reading, other = open_folder(folder), open_artifact(folder)
    assert not [*checks.numbers(reading), *checks.fused(reading)]
    for tensor_name, tensor in other.block(0).items():
        assert torch.equal(reading.tensor(tensor_name), tensor.float()), tensor_name


@both
@each
def test_inputs_are_read_as_they_were_given(artifact, name, format):
    reading = open_folder(artifact(format, ROUNDERS[name], head_dim=32, **SIZES))
    x = torch.randn(4, 256)
    wanted, found = INPUTS.get(name), reading.inputs(0).get(DOWN)
    if wanted is None:
        assert found is None
    else:
        assert torch.equal(round_inputs(x, wanted), round_inputs(x, found))


def test_tables_are_what_the_definitions_say():
    for table, wanted in (
        (floats._e4m3(), small_floats(4, 3)),
        (floats._e2m1(), small_floats(2, 1)),
    ):
        assert np.array_equal(table, np.array(wanted, np.float32), equal_nan=True)


@both
@pytest.mark.parametrize(
    ("name", "ending", "value", "told"),
    [
        ("FP8_DYNAMIC", "codes", 0x7F, "codes are no number"),
        ("NVFP4A16", "codes", 0x08, "negative zeros"),
        ("NVFP4A16", "scales", 0, "not above zero"),
        ("MXFP4", "scales", 255, "no exponent"),
    ],
)
def test_numbers_that_no_writer_means(folder, format, name, ending, value, told):
    copy = folder(name, format)
    matrix = open_folder(copy).matrices[DOWN]
    which = getattr(matrix, ending)
    tensor = load_file(copy / "model.safetensors")[which]
    tensor.view(torch.uint8).view(-1)[7] = value
    assert any(told in problem for problem in checks.numbers(changed(copy, {which: tensor})))


@both
def test_a_global_scale_that_is_no_power_of_two(folder, format):
    copy = folder("NVFP4A16", format)
    which = f"{DOWN}." + ("global_scale" if format == "packed" else "weight_global_scale")
    reading = changed(copy, {which: torch.tensor([1000.0])})
    assert any("not a power of two" in problem for problem in checks.numbers(reading))


@both
def test_fused_linears_share_the_global_scale(folder, format):
    copy = folder("NVFP4A16", format)
    which = "model.layers.0.mlp.up_proj."
    which += "global_scale" if format == "packed" else "weight_global_scale"
    reading = changed(copy, {which: torch.tensor([2.0**11])})
    assert "up_proj nvfp4 g16 / 2048" in next(checks.fused(reading))
    assert told_scheme(reading, DOWN) == "nvfp4 g16 / 1024"


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_bits", 8), ("strategy", "group"), ("group_size", 32), ("scale_dtype", None),
     ("dynamic", True), ("type", "int")],
)  # fmt: skip
def test_a_group_that_says_something_else_is_refused(folder, field, value):
    copy = folder("NVFP4", "compressed-tensors")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"][field] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"group_0|format"):
        open_folder(copy)


@pytest.mark.parametrize("field", ["numbers", "scale_rows", "inputs"])
def test_a_scheme_that_does_not_go_together_is_refused(folder, field):
    copy = folder("FP8", "packed")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["default"][field] = {"numbers": "int", "scale_rows": -1}.get(
        field, {"numbers": "fp8_e5m2"}
    )
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"config\.json"):
        open_folder(copy)
