"""Products of int8 in every format, read by the page alone and held to what was meant."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from compress.artifact.layout import open_artifact
from compress.artifact.manifest import write_manifest
from compress.artifact.write import companions, write
from compress.errors import ArtifactError
from compress.kernels.activations import Inputs
from compress.kernels.grid import Rounded
from compress.kernels.int8 import product, round_rows
from compress.surgery.load import tokenizer
from compress.teacher.folder import open_folder
from compress.verify import checks, layout, reference
from compress.verify.run import verify

CASES = {
    "packed": Inputs("int8", columns=torch.tensor([0, 5, 9])),
    "compressed-tensors": Inputs("int8"),
    "bnb-int8": Inputs("int8", threshold=1.5),
}


class Rounding:
    """A student whose block linears multiply int8, or just its teacher where `given` is None."""

    def __init__(self, folder, given):
        self.teacher, self.given = open_folder(folder).cast("float32"), given
        self.config, self.anatomy = self.teacher.config, self.teacher.anatomy
        self.outside, self.kv = self.teacher.outside, self.teacher.kv

    def parts(self):
        yield from self.outside().items()
        for block in self.anatomy.blocks:
            yield from self._parts(block.index)

    def _parts(self, index):
        names = set() if self.given is None else self.anatomy.linear_names
        for name, tensor in self.teacher.block(index).items():
            module = name.removesuffix(".weight")
            if module in names:
                yield module, replace(round_rows(tensor), inputs=self.given)
            else:
                yield name, tensor

    def block(self, index):
        return {
            f"{n}.weight" if isinstance(p, Rounded) else n: p.dequantize()
            if isinstance(p, Rounded)
            else p
            for n, p in self._parts(index)
        }

    def inputs(self, index):
        return {n: product(p) for n, p in self._parts(index) if isinstance(p, Rounded)}


@pytest.fixture(scope="module", params=CASES)
def made(request, tiny_model, tmp_path_factory):
    student = Rounding(tiny_model("llama"), CASES[request.param])
    folder = tmp_path_factory.mktemp("int8") / "a"
    source = student.teacher.folder
    write(
        folder, student.parts(), anatomy=student.anatomy, config=student.config,
        tokenizer_files=companions(source), format=request.param,
    )  # fmt: skip
    write_manifest(folder, {"seed": 0}, reference.record(student, tokenizer(source)))
    return student, folder


def test_the_independent_reader_computes_what_was_meant_bit_for_bit(made):
    student, folder = made
    reading = layout.open_folder(folder)
    ids = list(range(1, 25))
    hashes, logits = reference.observe(reading, ids)
    expected_hashes, expected = reference.observe(student, ids)
    assert hashes == expected_hashes
    assert torch.equal(logits, expected)
    plain = reference.observe(Rounding(student.teacher.folder, None), ids)
    assert not torch.allclose(logits, plain[1], atol=1e-3)


def test_an_artifact_is_verified(made):
    _, folder = made
    found = verify(folder, consumers=("compress",))
    assert found.passed, found.failures
    assert [one.outcome for one in found.consumers] == ["passed", "passed"]


def test_what_the_runtime_reads_is_what_the_reader_reads(made):
    _, folder = made
    artifact, reading = open_artifact(folder), layout.open_folder(folder)
    for linear in artifact.anatomy.linears:
        weight = torch.from_numpy(reading.dequantized(linear.name))
        assert torch.equal(artifact.rounded(linear.name).dequantize(), weight)


def changed(folder, tmp_path, **fields):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] |= fields
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_a_threshold_that_was_changed_is_noticed(made, tmp_path):
    student, folder = made
    if layout.open_folder(folder).format != "bnb-int8":
        pytest.skip("has no threshold")
    with pytest.raises(ArtifactError, match="is no threshold"):
        layout.open_folder(changed(folder, tmp_path, llm_int8_threshold=-1))
    shutil.rmtree(tmp_path / "copy")
    reading = layout.open_folder(changed(folder, tmp_path, llm_int8_threshold=0.0))
    ids = list(range(1, 25))
    assert not torch.equal(reference.observe(reading, ids)[1], reference.observe(student, ids)[1])
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(ArtifactError, match="skip_modules"):
        layout.open_folder(changed(folder, tmp_path, llm_int8_skip_modules=[]))


def test_numbers_are_checked(made):
    assert not list(checks.numbers(layout.open_folder(made[1])))
