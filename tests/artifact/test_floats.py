"""fp8, nvfp4 and mxfp4 in both formats, against compressed-tensors' own decompression."""

import dataclasses
import json

import pytest
import torch

from compress.artifact.formats import compressed_tensors, packed
from compress.artifact.formats.floats import kind_of
from compress.artifact.formats.matrix import Matrix, scheme_of
from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.floats import FloatGrid, fit, global_scale
from compress.kernels.grid import Rounded
from compress.surgery.walk import hidden_states, logits

WEIGHT = torch.randn(192, 256, generator=torch.Generator().manual_seed(3)) * 0.1
OVER = global_scale([WEIGHT])
GRIDS = {
    "FP8_DYNAMIC": FloatGrid("fp8_e4m3", "float", -1),
    "FP8_BLOCK": FloatGrid("fp8_e4m3", "float", 128, scale_rows=128),
    "FP8": FloatGrid("fp8_e4m3", "float", -1, scale_rows=0),
    "NVFP4A16": FloatGrid("fp4_e2m1", "e4m3", 16, over=OVER),
    "NVFP4": FloatGrid("fp4_e2m1", "e4m3", 16, over=OVER),
    "MXFP4A16": FloatGrid("fp4_e2m1", "e8m0", 32),
    "MXFP4": FloatGrid("fp4_e2m1", "e8m0", 32),
}
INPUTS = {
    "FP8_DYNAMIC": Inputs("fp8_e4m3"),
    "FP8_BLOCK": Inputs("fp8_e4m3", group_size=128),
    "FP8": Inputs("fp8_e4m3", scale=2.0**-5),
    "NVFP4": Inputs("fp4_e2m1", group_size=16, scale=2.0**-8),
    "MXFP4": Inputs("fp4_e2m1", group_size=32),
}
FORMATS = {"packed": packed, "compressed-tensors": compressed_tensors}
each_preset = pytest.mark.parametrize("name", GRIDS)
each_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


def matrix(name, weight=WEIGHT):
    grid = GRIDS[name]
    return dataclasses.replace(grid.round(weight, fit(weight, grid)), inputs=INPUTS.get(name))


def group_of(rounded):
    """The group of `config_groups` that a scheme becomes."""

    class Anatomy:
        linears, tensors, embedding = (), {}, "e"
        head = type("Head", (), {"name": "M", "in_features": rounded.codes.shape[1]})

    told = compressed_tensors.config(Anatomy, {"M": scheme_of(rounded)})
    return told["format"], told["config_groups"]["group_0"]


@each_format
@each_preset
def test_what_is_stored_is_read_back(name, form):
    rounded = matrix(name)
    stored = dict(form.encode("M", rounded, None, torch.bfloat16))
    known = Matrix(scheme_of(rounded), 192, 256)
    specs = form.stored("M", known)
    assert {n: tuple(t.shape) for n, t in stored.items()} == {n: s for n, (_, s) in specs.items()}
    found = form.decode("M", known, stored)
    for field in dataclasses.fields(Rounded):
        wanted, got = getattr(rounded, field.name), getattr(found, field.name)
        same = torch.equal(wanted, got) if isinstance(wanted, torch.Tensor) else wanted == got
        assert same, field.name


@each_preset
def test_both_formats_hold_the_same_bytes_of_codes(name):
    rounded = matrix(name)
    ours = dict(packed.encode("M", rounded, None, torch.bfloat16))["M.codes"]
    theirs = dict(compressed_tensors.encode("M", rounded, None, torch.bfloat16))
    codes = theirs.get("M.weight", theirs.get("M.weight_packed"))
    assert torch.equal(ours.view(torch.uint8), codes.view(torch.uint8))


@each_preset
def test_the_group_is_what_the_library_means_by_the_preset(name):
    schemes = pytest.importorskip("compressed_tensors.quantization")
    preset = schemes.preset_name_to_scheme(name, ["M"])
    format, group = group_of(matrix(name))
    read = schemes.QuantizationScheme(**group)
    for part in ("weights", "input_activations"):
        wanted, found = getattr(preset, part), getattr(read, part)
        assert (wanted is None) == (found is None)
        for field in ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic",
                      "block_structure", "scale_dtype"):  # fmt: skip
            assert getattr(wanted, field, None) == getattr(found, field, None), (part, field)
    assert format == {
        "F": "float-quantized", "N": "nvfp4-pack-quantized", "M": "mxfp4-pack-quantized",
    }[name[0]]  # fmt: skip


@each_preset
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_decompresses_to_the_same_bits(name, dtype):
    library = pytest.importorskip("compressed_tensors.compressors.base")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    rounded = matrix(name)
    format, group = group_of(rounded)
    stored = dict(compressed_tensors.encode("M", rounded, None, dtype))
    compressor = library.BaseCompressor.get_value_from_registry(format)
    state = {n.removeprefix("M."): tensor for n, tensor in stored.items()}
    dense = compressor.decompress(state, schemes.QuantizationScheme(**group))["weight"]
    wanted = rounded.dequantize()
    if dense.dtype != torch.bfloat16:
        assert torch.equal(dense, wanted)
    else:
        assert torch.equal(dense, wanted.bfloat16())
    if kind_of(scheme_of(rounded)) != "fp8":  # exact in bfloat16, in which the library computes
        assert torch.equal(dense.float(), wanted)


@each_preset
def test_what_the_library_compresses_is_read(name):
    """The reader owes nothing to our writer: the library compresses a matrix itself."""
    library = pytest.importorskip("compressed_tensors.compressors.base")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    rounded = matrix(name)
    format, group = group_of(rounded)
    scale = rounded.scale[:: rounded.scale_rows or 192]
    state = {"weight": rounded.dequantize(), "weight_scale": scale}
    if rounded.scale_rows == 0:
        state["weight_scale"] = scale.flatten()
    if rounded.global_scale:
        state |= {"weight_scale": scale * OVER, "weight_global_scale": torch.tensor([OVER])}
    compressor = library.BaseCompressor.get_value_from_registry(format)
    compressed = compressor.compress(state, schemes.QuantizationScheme(**group))
    found = compressed_tensors.decode(
        "M", Matrix(scheme_of(dataclasses.replace(rounded, inputs=None)), 192, 256),
        {f"M.{n}": tensor for n, tensor in compressed.items()},
    )  # fmt: skip
    assert torch.equal(found.dequantize(), rounded.dequantize())


@each_preset
@pytest.mark.parametrize("format", FORMATS)
def test_an_artifact_stands_for_the_student(student, every_linear, tmp_path, name, format):
    grid = dataclasses.replace(GRIDS[name], group_size=min(GRIDS[name].group_size, 64))
    if grid.group_size == 64 and name == "FP8_BLOCK":
        grid = dataclasses.replace(grid, scale_rows=64)
    made = student("llama", every_linear(grid))
    artifact = open_artifact(made.write(tmp_path / "a", format))
    dense = made.dense()
    for block in artifact.anatomy.blocks:
        for tensor_name, tensor in artifact.block(block.index).items():
            assert torch.equal(tensor.float(), dense[tensor_name].float()), tensor_name
    assert artifact.rounded("model.layers.0.mlp.up_proj").numbers == grid.numbers


def test_floats_and_integers_of_one_artifact(student, tmp_path):
    """Attention in nvfp4, the rest in fp8 or in integers."""
    ends = {"gate_proj": GRIDS["FP8_DYNAMIC"], "up_proj": GRIDS["FP8_DYNAMIC"]}
    ends |= {"down_proj": (4, 32, True)}
    ends |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), GRIDS["NVFP4A16"])
    made = student("llama", lambda n: ends.get(n.rpartition(".")[2]))
    for format in FORMATS:
        folder = made.write(tmp_path / format, format)
        artifact, dense = open_artifact(folder), made.dense()
        for name, tensor in artifact.block(1).items():
            assert torch.equal(tensor.float(), dense[name].float()), name
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["format"] == "mixed-precision"
    assert {group["format"] for group in told["config_groups"].values()} == {
        "nvfp4-pack-quantized", "float-quantized", "pack-quantized",
    }  # fmt: skip


@each_format
@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        ("FP8", "scale", 0.3, "not exact as fp8"),
        ("NVFP4A16", "scale", 0.3, "not exact as nvfp4"),
        ("MXFP4A16", "scale", 0.3, "not exact as mxfp4"),
    ],
)
def test_scales_that_are_not_exact_are_refused(form, name, field, value, told):
    rounded = matrix(name)
    odd = dataclasses.replace(rounded, **{field: torch.full_like(rounded.scale, value)})
    with pytest.raises(ArtifactError, match=told):
        dict(form.encode("M", odd, None, torch.bfloat16))


@each_format
@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "NVFP4A16", "MXFP4A16"])
def test_a_scale_that_is_no_number_is_refused(form, name):
    rounded = matrix(name)
    stored = dict(form.encode("M", rounded, None, torch.bfloat16))
    scales = "M.scales" if form is packed else "M.weight_scale"
    bad = stored[scales].view(torch.uint8).view(-1)
    bad[5] = 255
    with pytest.raises(ArtifactError, match="1 of its scales"):
        form.decode("M", Matrix(scheme_of(rounded), 192, 256), stored)


def test_a_code_that_is_no_number_is_refused():
    rounded = matrix("FP8_DYNAMIC")
    rounded.codes[3, 4] = 255
    stored = dict(packed.encode("M", rounded, None, torch.bfloat16))
    with pytest.raises(ArtifactError, match="1 of its codes are no number"):
        packed.decode("M", Matrix(scheme_of(rounded), 192, 256), stored)


def ours(folder, ids):
    """Logits of an artifact, walked in float32: inputs are rounded as it says."""
    artifact = open_artifact(folder)
    hidden = hidden_states(artifact, ids, device="cpu", dtype=torch.float32)
    return logits(artifact, hidden.flatten(0, 1)).view(*ids.shape, -1)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "FP8", "NVFP4A16", "MXFP4A16"])
def test_transformers_computes_what_we_do(student, every_linear, tmp_path, name):
    """fp8 with its inputs rounded; 4-bit floats expanded on load, to float32 only then."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    made = student("llama", every_linear(GRIDS[name]))
    made.inputs = INPUTS.get(name)
    folder = made.write(tmp_path / "a", "compressed-tensors")
    told = transformers.CompressedTensorsConfig(dequantize=True)
    options = {"quantization_config": told} if GRIDS[name].numbers == "fp4_e2m1" else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **options
    )
    ids = torch.arange(2 * 24).view(2, 24) * 5 % 250
    with torch.no_grad():
        found = model.eval()(ids).logits
    torch.testing.assert_close(found, ours(folder, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", INPUTS)
def test_the_library_rounds_inputs_to_the_same_bits(name):
    """As it does when transformers runs a folder without kernels for it."""
    lifecycle = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    args = schemes.QuantizationScheme(**group_of(matrix(name))[1]).input_activations
    x = torch.randn(2, 7, 256, generator=torch.Generator().manual_seed(5)) * 3
    x[0, 0, :16], x[1, 2] = 0.0, x[1, 2] * 100
    scale, zero, over = torch.tensor([INPUTS[name].scale or 1.0]), None, None
    if args.dynamic == "local":
        over = scale.reciprocal()
    if args.dynamic:
        scale, zero = helpers.compute_dynamic_scales_and_zp(x, args, None, over)
    found = lifecycle.fake_quantize(x, scale, zero, args, over)
    wanted = round_inputs(x, INPUTS[name])
    assert torch.equal(found.abs(), wanted.abs())  # it keeps the sign of zeros
    assert torch.equal(found * wanted >= 0, torch.ones_like(x, dtype=torch.bool))
