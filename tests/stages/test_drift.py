import pytest
import torch
from conftest import CONFIGS
from students import IDS, begin, damage, run

from compress.anatomy import adds_plainly
from compress.kernels.hessian import mean
from compress.results import Limits
from compress.stages.blockwise import solve_blocks
from compress.stages.context import Context
from compress.stages.drift import Sinks, accumulate_windows, mean_of_pairs
from compress.surgery.load import materialize
from compress.teacher.folder import open_folder

NO_SINKS = Sinks(0, 0.0)


def inputs_and_outputs(weights, names):
    """What linears are given and give, over all tokens: two dicts of [N, I] and [N, O] float64."""
    model = materialize(weights, torch.float32).double()
    given, made = {}, {}

    def keep(name):
        def hook(module, args, out):
            given[name], made[name] = args[0].flatten(0, 1), out.flatten(0, 1)

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))
    with torch.inference_mode():
        model(IDS)
    return given, made


def seen(folder, scratch, share, *, block=1, sinks=NO_SINKS):
    """A student of which one of two blocks is rounded, and what the other lacks."""
    student, _ = run(folder, scratch, bits=2, targets=[f"*.{1 - block}.*"])
    student.enter(1)
    found = {}

    def solve(group, weights, hessian, peaks, lacks):
        found.update({name: (lack, hessian) for name, lack in lacks.items()})
        return {}, []

    context = Context(IDS, "cpu", torch.float32, scratch, limits=Limits(64, 1 << 30))
    solve_blocks(
        student, context, solve, wanted=lambda x: x.block == block, true_sequential=True,
        sinks=sinks, correction=share, step="quantize",
    )  # fmt: skip
    return student, found


def test_tokens_that_count_many_times_are_not_rounded_for_it():
    """The oracle: bfloat16 inputs, counted in float64."""
    sinks, seq_len, windows = Sinks(2, 25.0), 8, 6
    x = torch.randn(windows, seq_len, 24, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 100  # as first tokens are
    counts = torch.tensor([26.0, 26.0] + [1.0] * (seq_len - 2), dtype=torch.float64)
    x = x.bfloat16()
    exact = torch.einsum("wti,t,wtj->ij", x.double(), counts, x.double()) / (windows * counts.sum())
    parts = list(x.flatten(0, 1).split(2 * seq_len))
    total = torch.zeros(24, 24)
    for part in parts:
        accumulate_windows(total, part, seq_len, sinks)
    hessian = mean(total, sinks.counted(windows, seq_len))
    for found in (hessian, mean_of_pairs(parts, parts, seq_len, sinks)):
        assert (found.double() - exact).norm() < 1e-6 * exact.norm()


def test_what_is_solved_for_comes_nearest_to_the_teacher(tiny_llama, tmp_path):
    """The oracle: least squares in float64, with the residual stream's lack in o and down."""
    student, found = seen(tiny_llama, tmp_path, 1.0)
    names = [f"model.layers.1.{x}" for x in ("self_attn.v_proj", "self_attn.o_proj")]
    stream = "model.layers.1"
    teacher = open_folder(tiny_llama)
    theirs, made = inputs_and_outputs(teacher, [*names, stream + ".input_layernorm"])
    ours, _ = inputs_and_outputs(student, [*names, stream + ".input_layernorm"])
    lack_of_stream = theirs[stream + ".input_layernorm"] - ours[stream + ".input_layernorm"]
    for name, behind in zip(names, (0.0, lack_of_stream), strict=True):
        x, wanted = ours[name], made[name] + behind
        best = torch.linalg.lstsq(x, wanted).solution.T
        lack, hessian = found[name]
        dense = teacher.block(1)[name + ".weight"].double()
        target = dense + lack.double() @ torch.linalg.inv(hessian.double())
        missed = (x @ target.T - wanted).square().sum()
        least = (x @ best.T - wanted).square().sum()
        assert missed <= least * 1.01
        assert missed < 0.9 * (x @ dense.T - wanted).square().sum()


def test_nothing_is_lacking_where_nothing_is_rounded_yet(tiny_llama, tmp_path):
    _, found = seen(tiny_llama, tmp_path, 1.0, block=0)
    dense = open_folder(tiny_llama).block(0)
    lack, hessian = found["model.layers.0.self_attn.q_proj"]
    made = dense["model.layers.0.self_attn.q_proj.weight"].float() @ hessian
    assert lack.abs().max() < 1e-5 * made.abs().max()


def test_a_share_is_asked_for_and_sinks_count(tiny_llama, tmp_path):
    (_, whole), (_, half) = (seen(tiny_llama, tmp_path / str(s), s) for s in (1.0, 0.5))
    for name, (lack, _) in whole.items():
        assert torch.allclose(half[name][0] * 2, lack, atol=1e-7)
    _, sunk = seen(tiny_llama, tmp_path / "sinks", 1.0, sinks=Sinks(2, 25.0))
    assert not torch.allclose(sunk[name][0], lack, rtol=0.01)


def test_a_student_that_corrects_errors_ends_nearer_to_its_teacher(tiny_llama, tmp_path):
    plain, _ = run(tiny_llama, tmp_path / "plain", bits=3)
    corrected, _ = run(tiny_llama, tmp_path / "corrected", bits=3, error_correction=0.5)
    assert damage(corrected, tiny_llama) < 0.95 * damage(plain, tiny_llama)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_can_be_corrected(tiny_model, tmp_path, family):
    student, result = run(tiny_model(family), tmp_path, error_correction=0.5)
    assert {linear.outcome for linear in result.linears} == {"solved"}
    assert adds_plainly(student.config) == (family not in ("gemma2", "gemma3_text"))


def test_spilling_to_disk_and_going_on_change_nothing(tiny_llama, tmp_path):
    whole, _ = run(tiny_llama, tmp_path / "whole", error_correction=0.5)
    spilled, _ = run(tiny_llama, tmp_path / "spilled", error_correction=0.5, resident_bytes=0)
    begin(tmp_path / "whole", tmp_path / "begun")
    resumed, _ = run(tiny_llama, tmp_path / "begun", error_correction=0.5)
    for other in (spilled, resumed):
        for linear in whole.anatomy.linears:
            assert torch.equal(whole.rounded(linear.name).codes, other.rounded(linear.name).codes)


def test_correcting_needs_the_order_in_which_data_flows(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match="true_sequential is false"):
        run(tiny_llama, tmp_path, error_correction=0.5, true_sequential=False)
