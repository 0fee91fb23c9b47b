"""docs/formats.md says what the code does: its examples are run, its numbers computed."""

import json
import re
from pathlib import Path

import pytest
import torch

from compress.artifact.formats import compressed_tensors, packed
from compress.artifact.formats.matrix import Matrix, Scheme, scheme_of
from compress.kernels.grid import Rounded
from compress.kernels.pack import pack, words

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_examples_run(number):
    exec(compile(EXAMPLES[number], f"docs/formats.md[{number}]", "exec"), {})


def test_the_example_lies_in_compressed_tensors_as_the_page_says():
    names: dict = {}
    exec(EXAMPLES[0], names)
    stored = dict(compressed_tensors.encode("M", names["matrix"], None, torch.float16))
    for ours, theirs in (("codes", "packed"), ("scales", "scale"), ("zeros", "zero_point")):
        assert torch.equal(names["stored"][f"M.{ours}"], stored[f"M.weight_{theirs}"])
    shape = bytes(stored["M.weight_shape"].view(torch.uint8).tolist()).hex(" ")
    assert shape in PAGE.replace("\n", " ")


def test_the_config_example_is_what_is_written():
    block = re.search(r"```json\n(.+?)```", PAGE, re.DOTALL)[1]
    shown = json.loads("{" + block + "}")["quantization_config"]
    names = {f"model.layers.{i}.mlp.up_proj": Scheme(4, 64, True) for i in range(3)}
    names["model.embed_tokens"] = Scheme(8, 64, True)
    names["model.layers.0.mlp.down_proj"] = Scheme(4, 1536, True)
    assert packed.config(None, names) == shown


def test_three_bit_codes_cross_words_where_the_page_says():
    crossing = []
    for code in range(32):
        row = torch.zeros(1, 32, dtype=torch.uint8)
        row[0, code] = 7
        if (pack(row, 3) != 0).sum() == 2:
            crossing.append(code)
    assert crossing == [10, 21]


def test_zero_bytes_are_counted_right():
    matrix = Matrix(Scheme(4, 64, False), 576, 576)
    rows, groups = matrix.zero_words
    counted = (576 * 9, 576 * words(9, 4) * 4, rows * groups * 4)
    assert counted == (5184, 4608, 2592)
    assert all(f"{count:,}" in PAGE for count in counted)


@pytest.mark.parametrize(
    ("scheme", "columns", "shown"),
    [
        (Scheme(4, 64, True), 576, 4.25),
        (Scheme(4, 64, False), 576, 4.3125),
        (Scheme(3, 128, True), 1024, 3.125),
        (Scheme(8, 576, True), 576, 8.028),
    ],
)
def test_bits_per_weight_are_those_of_the_page(scheme, columns, shown):
    shape = (64, columns)
    rounded = Rounded(
        torch.zeros(shape, dtype=torch.uint8),
        torch.ones(64, columns // scheme.group_size),
        torch.full((64, columns // scheme.group_size), 1 << (scheme.bits - 1)).byte(),
        scheme.bits,
        scheme.group_size,
        scheme.sym,
    )
    assert scheme_of(rounded) == scheme
    tensors = dict(packed.encode("M", rounded, None, torch.bfloat16)).values()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert round(stored * 8 / (64 * columns), 3) == round(shown, 3)
    assert f"= {shown} |" in PAGE
