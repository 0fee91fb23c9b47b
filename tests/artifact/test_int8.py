"""Matrices of int8 products in every format that holds them, and in libraries that open them."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch

from compress.artifact.formats import FORMATS
from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.kernels.activations import Inputs
from compress.kernels.grid import Rounded
from compress.kernels.int8 import Int8Matrix, round_rows
from compress.storage import Checkpoint

W8A8, LLM_INT8 = Inputs("int8"), Inputs("int8", threshold=6.0)
STATIC = Inputs("int8", columns=torch.tensor([1, 7, 63]))
HELD = [
    ("packed", W8A8), ("packed", LLM_INT8), ("packed", STATIC),
    ("compressed-tensors", W8A8), ("bnb-int8", W8A8), ("bnb-int8", LLM_INT8),
]  # fmt: skip


class Rounding:
    """A student all of whose linears, but those left dense, multiply int8."""

    def __init__(self, made, inputs, dense=()):
        self.made, self.inputs, self.left = made, inputs, dense
        self.anatomy, self.teacher = made.anatomy, made.teacher

    def parts(self):
        names = {x.name for x in self.anatomy.linears if not x.name.endswith(tuple(self.left))}
        for name, part in self.made.parts():
            module = name.removesuffix(".weight")
            if module not in names:
                yield name, part
            else:
                weight = part.T if module in self.made.conv1d else part
                yield module, dataclasses.replace(round_rows(weight), inputs=self.inputs)


@pytest.fixture
def made(student):
    def make(inputs, family="llama", dense=(), **options):
        plain = student(family, lambda name: None, **options)
        found = Rounding(plain, inputs, dense)
        plain_parts = plain.parts
        found.made.parts = plain_parts
        found.write = partial(write, found)
        return found

    def write(found, folder, format):
        from compress.artifact.write import companions
        from compress.artifact.write import write as written

        config = json.loads((found.teacher / "config.json").read_text())
        written(
            folder, found.parts(), anatomy=found.anatomy, config=config,
            tokenizer_files=companions(found.teacher), format=format,
        )  # fmt: skip
        return folder

    return make


def same(found: Inputs, wanted: Inputs) -> bool:
    columns = [None if i.columns is None else i.columns.tolist() for i in (found, wanted)]
    plain = [dataclasses.replace(i, columns=None) for i in (found, wanted)]
    return columns[0] == columns[1] and plain[0] == plain[1]


@pytest.mark.parametrize(("format", "inputs"), HELD)
def test_what_is_written_is_read_back(made, tmp_path, format, inputs):
    student = made(inputs)
    artifact = open_artifact(student.write(tmp_path / "a", format))
    assert artifact.format == format
    for name, part in student.parts():
        if isinstance(part, Rounded):
            found = artifact.rounded(name)
            assert torch.equal(found.codes, part.codes)
            assert torch.equal(found.scale, part.scale)
            assert torch.equal(found.dequantize(), part.dequantize())
            assert same(found.inputs, inputs)
    for block in artifact.anatomy.blocks:
        rounding = artifact.inputs(block.index)
        assert set(rounding) == {linear.name for linear in block.linears}
        assert all(isinstance(one, Int8Matrix) for one in rounding.values())


def test_linears_that_stay_dense_are_told_to_every_reader(made, tmp_path):
    student = made(W8A8, dense=["down_proj"])
    for format, field in (("compressed-tensors", "ignore"), ("bnb-int8", "llm_int8_skip_modules")):
        folder = student.write(tmp_path / format, format)
        told = json.loads((folder / "config.json").read_text())["quantization_config"][field]
        assert set(told) == {"lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in range(2))}
        assert open_artifact(folder).rounded("model.layers.0.mlp.down_proj") is None


@pytest.mark.parametrize(
    ("format", "inputs", "family", "why"),
    [
        ("compressed-tensors", LLM_INT8, "llama", "outlier columns; bnb-int8 holds them"),
        ("compressed-tensors", STATIC, "llama", "a static set of outlier columns"),
        ("bnb-int8", STATIC, "llama", "a static set of outlier columns"),
        ("bnb-int8", None, "llama", "not of method llm_int8 or w8a8"),
        ("bnb-int8", W8A8, "gpt2", "Conv1D"),
        ("gptq", W8A8, "llama", "more than integer codes and scales"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(made, tmp_path, format, inputs, family, why):
    with pytest.raises(ArtifactError, match=why):
        made(inputs, family).write(tmp_path / "a", format)


def test_two_thresholds_are_refused(made):
    student = made(LLM_INT8)
    from compress.artifact.formats.matrix import scheme_of

    schemes = {n: scheme_of(p) for n, p in student.parts() if isinstance(p, Rounded)}
    first = next(iter(schemes))
    schemes[first] = dataclasses.replace(
        schemes[first], inputs=dataclasses.replace(schemes[first].inputs, threshold=5.0)
    )
    found = FORMATS["bnb-int8"].refusals(student.anatomy, schemes)
    assert found == [
        "artifact.format bnb-int8: the thresholds 5, 6; it holds one. "
        "Use artifact.format: packed, or change the recipe."
    ]


def change(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))


def test_strange_configs_are_refused(made, tmp_path):
    bnb = made(LLM_INT8).write(tmp_path / "bnb", "bnb-int8")
    change(bnb, llm_int8_threshold="six")
    with pytest.raises(ArtifactError, match="llm_int8_threshold 'six'"):
        open_artifact(bnb)
    change(bnb, llm_int8_threshold=6.0, load_in_8bit=False)
    with pytest.raises(ArtifactError, match="load_in_8bit False"):
        open_artifact(bnb)
    theirs = made(W8A8).write(tmp_path / "ct", "compressed-tensors")
    groups = json.loads((theirs / "config.json").read_text())["quantization_config"]
    groups["config_groups"]["group_0"]["input_activations"]["dynamic"] = False
    change(theirs, config_groups=groups["config_groups"])
    with pytest.raises(ArtifactError, match="strategy token, dynamic"):
        open_artifact(theirs)


def test_the_bytes_are_those_of_the_page(made, tmp_path):
    student = made(LLM_INT8)
    name = "model.layers.0.self_attn.q_proj"
    part = dict(student.parts())[name]
    stored = Checkpoint(student.write(tmp_path / "a", "bnb-int8"))
    weight, scb = stored.read(f"{name}.weight"), stored.read(f"{name}.SCB")
    assert (weight.dtype, scb.dtype) == (torch.int8, torch.float32)
    assert np.array_equal(weight.numpy(), part.codes.numpy().astype(np.int16) - 128)
    assert torch.equal(scb, part.scale[:, 0] * 127)
    assert torch.equal(weight.float() * scb[:, None] / 127, part.dequantize())
    form = stored.read(f"{name}.weight_format")
    assert (form.dtype, form.shape, int(form)) == (torch.uint8, (), 0)


def test_compressed_tensors_decompresses_to_our_weights(made, tmp_path):
    library = pytest.importorskip("compressed_tensors.compressors.naive_quantized.base")
    from compressed_tensors.quantization import QuantizationScheme

    student = made(W8A8)
    folder = student.write(tmp_path / "a", "compressed-tensors")
    group = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**group["config_groups"]["group_0"])
    assert scheme.input_activations.dynamic is True
    stored = Checkpoint(folder)
    for name, part in student.parts():
        if isinstance(part, Rounded):
            state = {
                "weight": stored.read(f"{name}.weight"),
                "weight_scale": stored.read(f"{name}.weight_scale").float(),
            }
            found = library.IntQuantizationCompressor.decompress(state, scheme)["weight"]
            assert torch.equal(found.float(), part.dequantize())


@pytest.mark.parametrize("inputs", [W8A8, LLM_INT8], ids=["w8a8", "llm_int8"])
def test_bitsandbytes_multiplies_as_we_do(made, tmp_path, inputs):
    """Linear by linear: over a whole model two exact engines part where an input is near a tie."""
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    folder = made(inputs).write(tmp_path / "a", "bnb-int8")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    artifact = open_artifact(folder)
    weights, generator = artifact.block(0), torch.Generator().manual_seed(0)
    for name, rounds in artifact.inputs(0).items():
        linear = model.get_submodule(name)
        x = torch.randn(16, linear.in_features, generator=generator)
        x[:, 3] = 7 + x[:, 3].abs()  # above the threshold in every row: see docs/formats.md
        x = x.half().float()  # to which bitsandbytes casts
        with torch.no_grad():
            found = linear(x)
        ours = rounds.multiply(x, weights[f"{name}.weight"])
        assert (found - ours).norm() < 3e-3 * ours.norm(), name
