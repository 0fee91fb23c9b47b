import pytest
from conftest import imported_by

from compress import plan
from compress.errors import RecipeError
from compress.teacher import headers


def made(recipe, folder, **options):
    return plan.make(recipe, headers.read(str(folder)), cache=folder / "none", **options)


def test_a_plan_says_everything(tiny_tied, recipe_for):
    found = made(recipe_for(tiny_tied, "quantize.ignore=['*.o_proj']"), tiny_tied)
    assert (found.model_type, found.blocks, found.tied) == ("llama", 2, True)
    rows = {row.linears: row for row in found.linears}
    assert rows["q_proj"].count == 2
    assert rows["q_proj"].scheme == "rtn, 4 bits, groups of 32, symmetric"
    assert rows["q_proj"].bits_per_weight == 4.5
    assert rows["q_proj"].group_sizes == (32, 64)
    assert rows["o_proj"].scheme == rows["lm_head"].scheme == "dense"
    assert found.seconds is None
    assert found.peak_memory_bytes == max(found.memory_bytes.values())
    assert [one.name for one in found.consumers] == [
        "compress", "transformers", "vLLM on CUDA", "vLLM on a CPU", "llama.cpp",
    ]  # fmt: skip
    assert any("one matrix" in note for note in found.notes)


def test_all_mistakes_come_at_once(tiny_llama, recipe_for):
    recipe = recipe_for(
        tiny_llama, "quantize={method: gptq, group_size: 128}", "calibration.seq_len=512",
        "evaluate.suite=quick",
    )  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        made(recipe, tiny_llama)
    text = str(caught.value)
    assert "calibration.seq_len: 512 tokens, and the teacher has 256 positions" in text
    assert "evaluate.suite: perplexity: 512 tokens" in text
    assert "128 does not divide in_features 64" in text
    assert "4 mistakes; nothing was run" in text


def test_a_plan_tells_how_kinds_of_text_share_the_windows(tiny_tied, recipe_for):
    sets = ["quantize.method=gptq", "calibration={set: [smoke, self], samples: 7, seq_len: 32}"]
    found = made(recipe_for(tiny_tied, *sets), tiny_tied)
    assert "calibration: 4 of smoke, 3 of self; windows take turns" in found.notes


def test_planning_needs_no_torch(tiny_llama, recipe_for, tmp_path):
    recipe_for(tiny_llama)
    program = (
        "import sys; from compress.cli.app import run; "
        f"assert run(['plan', {str(tmp_path / 'mine.yaml')!r}, '--max-memory', '4GiB']) == 0"
    )
    heavy = {"torch", "transformers", "lm_eval", "datasets", "matplotlib"}
    assert not heavy & imported_by(program)
