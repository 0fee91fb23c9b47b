"""Which outputs matter: gradients against autograd through a whole model; what it gains."""

import pytest
import torch
from conftest import CONFIGS
from students import IDS, begin, run

from compress.kernels import fisher
from compress.plan import work
from compress.recipe.schema import Quantize
from compress.stages import curvature
from compress.stages.backward import Backward
from compress.stages.context import Context
from compress.stages.curvature import output_curvature
from compress.surgery.load import materialize
from compress.teacher.folder import open_folder


@pytest.fixture
def context(tmp_path):
    return Context(IDS, "cpu", torch.float32, tmp_path)


def test_it_is_the_second_moment_of_gradients_through_the_whole_model(
    tiny_llama, context, tmp_path
):
    weights, ids = open_folder(tiny_llama), context.ids
    drawn = Backward(weights, ids, context, 1, "").drawn
    model = materialize(weights, torch.float32).eval().requires_grad_()
    linear = model.model.layers[1].self_attn.v_proj
    seen = []
    linear.register_forward_hook(lambda _m, _a, out: (out.retain_grad(), seen.append(out))[0])
    log_p = model(ids).logits.log_softmax(-1)
    log_p.gather(-1, drawn.tokens[0].view(*ids.shape, 1)).sum().backward()
    g = seen[0].grad[:, 2:].flatten(0, 1)
    (asked,) = [x for x in weights.anatomy.blocks[1].linears if x.role == "v"]
    found = output_curvature(weights, [asked], context, skipped=2)[asked.name].float()
    assert torch.allclose(found, g.T @ g / len(g), rtol=0.02, atol=1e-3 * float(found.max()))


def test_what_is_rounded_with_known_outputs_costs_less_in_their_measure(
    tiny_llama, context, tmp_path
):
    plain, _ = run(tiny_llama, tmp_path / "plain", bits=3, sweeps=2)
    known, _ = run(tiny_llama, tmp_path / "known", bits=3, output_curvature=True)
    weights = open_folder(tiny_llama)
    asked = [x for x in weights.anatomy.blocks[0].linears if x.role in ("q", "k", "v")]
    curved = output_curvature(weights, asked, context, skipped=2)
    seen = []
    model = materialize(weights, torch.float32).eval()
    q = model.model.layers[0].self_attn.q_proj
    q.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1)))
    model(IDS)
    hessian = seen[0].T @ seen[0]
    for linear in asked:
        dense = weights.block(0)[linear.name + ".weight"].float()
        errors = [dense - student.rounded(linear.name).dequantize() for student in (known, plain)]
        costs = [(curved[linear.name].float() @ e @ hessian).mul(e).sum() for e in errors]
        assert costs[0] < costs[1]


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_can_be_walked_back(tiny_model, tmp_path, family):
    _, result = run(tiny_model(family), tmp_path, output_curvature=True)
    assert {linear.outcome for linear in result.linears} == {"solved"}


def test_going_on_and_slices_of_rows_change_nothing(tiny_llama, tmp_path):
    asked = {"output_curvature": True, "error_correction": 0.25}
    whole, _ = run(tiny_llama, tmp_path / "whole", **asked)
    begin(tmp_path / "whole", tmp_path / "begun")
    resumed, _ = run(tiny_llama, tmp_path / "begun", **asked)
    for linear in whole.anatomy.linears:
        assert torch.equal(whole.rounded(linear.name).codes, resumed.rounded(linear.name).codes)


def test_only_gptq_knows_outputs():
    with pytest.raises(ValueError, match="rtn does not use this field"):
        Quantize(method="rtn", output_curvature=True)


def test_plans_count_the_windows_that_are_read():
    assert work.CURVATURE_WINDOWS == curvature.WINDOWS


def test_draws_are_those_of_the_model_itself(tiny_llama, context):
    back = Backward(open_folder(tiny_llama), context.ids, context, 1, "")
    again = fisher.draw(back.final, back.head, draws=1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.tokens, back.drawn.tokens)
