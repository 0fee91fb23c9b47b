"""AWQ: columns enlarged before they are rounded, the block the same function."""

import shutil

import pytest
import torch
from conftest import CONFIGS
from students import IDS, run

from compress.journal import Journal
from compress.kernels.grid import storable
from compress.recipe.schema import Quantize
from compress.recipe.scheme import scheme_for
from compress.results import Limits
from compress.stages import awq, quantize
from compress.stages.awq import Enlarging
from compress.stages.blockwise import solve_blocks
from compress.stages.context import Context
from compress.stages.drift import Sinks
from compress.stages.gate import Gated
from compress.stages.rounding import Rounder
from compress.student import Student
from compress.surgery.load import materialize
from compress.surgery.walk import Walk
from compress.teacher.folder import open_folder

_ALL, _LINEARS, _NORMS = "q k v o gate up down", "v o up down", "qkv up"
FOLDED = {  # roles whose weights change
    "llama": _ALL, "mistral": _ALL, "qwen2": _ALL, "qwen3": _ALL,
    "gemma": _LINEARS, "gemma2": _LINEARS, "gemma3_text": _LINEARS, "opt": "q k v o up",
    "gpt2": _NORMS, "gpt_neox": _NORMS,
}  # fmt: skip


class Solves(Gated):
    """Finds codes and keeps them to itself: all of a block stays plain."""

    def __call__(self, linears, weights, hessian, peaks=None, lacks=None):
        _, records = super().__call__(linears, weights, hessian, peaks, lacks)
        return {}, records


@pytest.fixture
def any_factors(monkeypatch):
    """Factors that were drawn, not found."""
    draw = torch.Generator().manual_seed(0)

    def powers(magnitudes, _):
        return torch.exp2(torch.randint(-3, 4, magnitudes.shape, generator=draw).float())

    monkeypatch.setattr(awq, "grown", powers)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_folding_changes_no_bit_of_what_a_block_computes(tiny_model, tmp_path, family, any_factors):
    teacher = open_folder(tiny_model(family)).cast("bfloat16")
    student = Student(teacher, tmp_path, Journal(tmp_path / "journal.jsonl", {}))
    context = Context(IDS, "cpu", torch.bfloat16, tmp_path, limits=Limits(64))
    spec = Quantize(bits=3, group_size=32, smooth="awq")
    schemes = {x.name: scheme_for(spec, x.name) for x in teacher.anatomy.linears}
    enlarging = Enlarging(Solves(Rounder(schemes, "fail"), schemes), student)
    solve_blocks(
        student, context, enlarging, wanted=lambda _: True, true_sequential=True,
        sinks=Sinks(0, 0.0), step="quantize", finish=enlarging.folded,
    )  # fmt: skip
    before, after = (walked(weights) for weights in (teacher, student))
    assert torch.equal(before, after)
    changed = {n for n, t in student.block(1).items() if not torch.equal(t, teacher.block(1)[n])}
    for linear in teacher.anatomy.blocks[1].linears:
        assert (f"{linear.name}.weight" in changed) == (linear.role in FOLDED[family].split()), (
            linear.name
        )


def walked(weights):
    walk = Walk(weights, device="cpu", dtype=torch.bfloat16)
    x = walk.embed(IDS)
    for block in weights.anatomy.blocks:
        with walk.filled(block.index) as module:
            x = walk.call(block.index, module, x)
    return x


@pytest.fixture
def loud(tiny_llama, tmp_path):
    """A teacher in which some inputs of every linear are far larger than the others."""
    import shutil

    from safetensors.torch import load_file, save_file

    made = tmp_path / "loud"
    shutil.copytree(tiny_llama, made)
    tensors = load_file(made / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[::13] *= 20
        if name.endswith(("v_proj.weight", "up_proj.weight")):
            tensor[::9] *= 10
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_large_channels_lose_less(loud, tmp_path, method):
    fields = {"method": method, "bits": 3, "scale_search": "hessian"}
    (_, plain), (_, grown) = (
        run(loud, tmp_path / name, **fields, **more)
        for name, more in (("plain", {}), ("grown", {"smooth": "awq"}))
    )
    assert sum(shown(grown)) < 0.9 * sum(shown(plain))


def shown(result):
    """Errors of outputs, over those of the dense linears, in a block that is fed the same."""
    return [record.relative_error for record in result.linears if record.block == 0]


def logit_error(student, folder):
    """Over the squares of the logits."""
    with torch.inference_mode():
        ours, theirs = (
            materialize(x, torch.float32)(IDS).logits for x in (student, open_folder(folder))
        )
    return float((ours - theirs).square().mean() / theirs.square().mean())


@pytest.mark.parametrize(
    "fields",
    [{}, {"error_correction": 0.5}, {"true_sequential": False}, {"bits": 8}, {"sym": False},
     {"method": "rtn"}],
)  # fmt: skip
def test_a_run_that_was_cut_short_goes_on_to_the_same_student(loud, tmp_path, fields):
    """So the committed block computes, bit for bit, what the walk went on with."""
    fields = {"smooth": "awq", **fields}
    whole, expected = run(loud, tmp_path / "whole", **fields)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_text("\n".join(journal.read_text().splitlines()[:-1]) + "\n")
    again, result = run(loud, tmp_path / "cut", **fields)
    assert result == expected
    for name in again.anatomy.inside(1):
        assert torch.equal(again.block(1)[name], whole.block(1)[name])


def test_values_that_are_codes_already_keep_them_and_divide_their_scales(
    tiny_llama, tmp_path, any_factors
):
    name = "model.layers.0.self_attn.v_proj"
    fields = {"bits": 3, "targets": ["*.v_proj", "*.o_proj"], "smooth": "awq"}
    values = run(tiny_llama, tmp_path / "out", **fields)[0].rounded(name)
    dense = values.dequantize()
    exact = open_folder(tiny_llama).block(0)[name + ".weight"]
    by = (exact.square().mean(1) / dense.square().mean(1)).sqrt()
    assert by.max() / by.min() > 8
    assert torch.equal(storable(values.scale), values.scale)


def test_linears_that_are_left_alone_stay_dense_and_are_folded(loud, tmp_path, any_factors):
    student, result = run(
        loud, tmp_path / "part", bits=3, smooth="awq", targets=["*.down_proj", "*.q_proj"]
    )
    assert {r.role for r in result.linears} == {"down", "q"}
    before, now = open_folder(loud).block(0), dict(student.parts())
    for name in ("mlp.up_proj", "self_attn.k_proj", "input_layernorm"):
        full = f"model.layers.0.{name}.weight"
        assert not torch.equal(now[full], before[full])
    for name in ("mlp.gate_proj", "self_attn.o_proj", "post_attention_layernorm"):
        full = f"model.layers.0.{name}.weight"
        assert torch.equal(now[full], before[full])


@pytest.mark.parametrize("second", [{"smooth": "awq"}, {"method": "w8a8", "smooth": 0.5}])
def test_what_an_earlier_stage_made_codes_of_is_left_as_it_is(loud, tmp_path, second):
    student, _ = run(loud, tmp_path / "out", bits=8, targets=["*.up_proj", "*.v_proj"])
    before = {n: student.rounded(f"model.layers.0.{n}") for n in ("mlp.up_proj",)}
    student.enter(1)
    fields = {"ignore": ["*.up_proj", "*.v_proj"], **second}
    if "method" not in second:
        fields |= {"group_size": 32, "bits": 8}
    context = Context(IDS, "cpu", torch.float32, tmp_path / "out", limits=Limits(64))
    quantize.run(student, Quantize(**fields), context)
    for name, codes in before.items():
        assert torch.equal(student.rounded(f"model.layers.0.{name}").scale, codes.scale)
    assert logit_error(student, loud) < 0.1
