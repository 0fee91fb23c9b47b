"""Recipes of int8 products held against a model: what they take, who opens them, what is wrong."""

from pathlib import Path

import pytest

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.errors import RecipeError
from compress.plan import mistakes, sizes
from compress.plan.consumers import consumers
from compress.recipe.load import load
from compress.teacher import headers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))

    def make(folder, fields, format):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "version: 1\n"
            f"teacher: {{model: {folder}, dtype: bfloat16}}\n"
            f"calibration: {{set: {ROOT}/eval/texts/heldout.txt, samples: 4, seq_len: 32}}\n"
            f"stages:\n  - quantize: {fields}\n"
            "evaluate: {suite: none}\n"
            f"artifact: {{format: {format}}}\n"
        )
        return load(str(path))

    return make


CASES = [
    ("{scheme: W8A8}", "packed"),
    ("{scheme: W8A8, smooth: 0.5}", "compressed-tensors"),
    ("{method: w8a8, ignore: ['*.down_proj']}", "compressed-tensors"),
    ("{method: llm_int8}", "packed"),
    ("{method: llm_int8, threshold: 2.5}", "bnb-int8"),
]


@pytest.mark.parametrize(("fields", "format"), CASES)
def test_every_byte_is_foretold(tiny_llama, recipe, tmp_path, fields, format):
    made = recipe(tiny_llama, fields, format)
    pipeline.compress_only(made, out=tmp_path / "out")
    artifact = open_artifact(tmp_path / "out")
    found = sizes.size(made, headers.read(str(tiny_llama)))
    assert found.size_bytes == artifact.size_bytes
    assert found.bits_per_weight == artifact.bits_per_weight


@pytest.mark.parametrize(
    ("fields", "format", "what"),
    [
        ("{method: llm_int8}", "compressed-tensors", "threshold: compressed-tensors has no outl"),
        ("{method: rtn, bits: 8}", "bnb-int8", "method: bnb-int8 holds w8a8 and llm_int8, not rtn"),
        ("{method: llm_int8, outliers: static}", "bnb-int8", "outliers: bnb-int8 lists no columns"),
        ("{method: llm_int8, head: 8}", "bnb-int8", "head: bnb-int8 holds no rounded head"),
    ],
)
def test_what_a_format_cannot_hold_is_told_before_anything_runs(
    tiny_llama, recipe, fields, format, what
):
    with pytest.raises(RecipeError, match=what):
        mistakes.check(recipe(tiny_llama, fields, format), headers.read(str(tiny_llama)).anatomy)


def test_no_threshold_means_that_compressed_tensors_holds_it(tiny_llama, recipe):
    made = recipe(tiny_llama, "{method: llm_int8, threshold: 0}", "compressed-tensors")
    mistakes.check(made, headers.read(str(tiny_llama)).anatomy)


def test_consumers_are_told(tiny_llama, recipe):
    head = headers.read(str(tiny_llama))

    def opening(fields, format):
        made = recipe(tiny_llama, fields, format)
        matrices = sizes.matrices(head.anatomy, sizes.schemes(made, head.anatomy))
        found = consumers(head.anatomy, head.config, matrices, format)
        return {one.name for one in found if one.loads}

    engines = {"compress", "transformers", "vLLM on CUDA", "vLLM on a CPU"}
    assert opening("{scheme: W8A8}", "compressed-tensors") == engines
    assert opening("{method: llm_int8}", "bnb-int8") == {"compress", "transformers"}
    assert opening("{method: llm_int8}", "packed") == {"compress"}
