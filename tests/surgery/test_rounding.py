"""Linears that round their inputs: walked, whole, and while forwards wait before them."""

from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS
from torch import nn

from compress.kernels.activations import Inputs, round_inputs
from compress.surgery.inputs import Forwards, module_of, replace
from compress.surgery.load import materialize
from compress.surgery.rounding import attach, attached, detach
from compress.surgery.walk import Walk, hidden_states, logits
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
INT8 = Inputs("int8")


def rounding(folder, inputs=INT8):
    """A teacher all of whose linears round their inputs."""
    teacher = open_folder(folder)

    def told(index):
        return {linear.name: inputs for linear in teacher.anatomy.blocks[index].linears}

    return SimpleNamespace(
        config=teacher.config, anatomy=teacher.anatomy, block=teacher.block,
        outside=teacher.outside, inputs=told, kv=teacher.kv,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_rounded_inputs(dtype):
    linear = nn.Linear(32, 8).to(dtype)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = round_inputs(x, INT8).double() @ linear.weight.double().T + linear.bias
    attach(linear, INT8, transposed=False)
    found = linear(x)
    assert found.dtype == dtype
    near = {"atol": 1e-5, "rtol": 0} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
    torch.testing.assert_close(found, exact.to(dtype), **near)
    detach(linear)
    assert not attached(linear)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_walked_and_whole_models_round_alike(tiny_model, family):
    weights = rounding(tiny_model(family))
    with torch.no_grad():
        whole = materialize(weights, torch.float32)(IDS).logits.flatten(0, 1)
    walked = hidden_states(weights, IDS, device="cpu", dtype=torch.float32)
    assert torch.allclose(logits(weights, walked.flatten(0, 1)), whole, atol=1e-4)
    dense = hidden_states(open_folder(tiny_model(family)), IDS, device="cpu", dtype=torch.float32)
    assert not torch.allclose(walked, dense, atol=1e-4)


def test_a_block_rounds_no_longer_than_it_is_filled(tiny_llama):
    weights = rounding(tiny_llama)
    walk = Walk(weights, device="cpu", dtype=torch.bfloat16)
    with walk.filled(0) as module:
        assert attached(module.self_attn.q_proj)
    assert not attached(module.self_attn.q_proj)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forwards_that_wait_before_a_linear_round_what_they_hand_to_it(tiny_model, family, dtype):
    walk = Walk(open_folder(tiny_model(family)), device="cpu", dtype=dtype)
    block = walk.anatomy.blocks[0]
    stored = walk.weights.block(0)
    parts = [walk.embed(part) for part in IDS.split(2)]
    with walk.filled(0) as module:
        forwards = Forwards(walk, block, module, parts)
        seen, first = [], []
        for linear in {one.shares: one for one in reversed(block.linears)}.values():
            first.insert(0, linear)
        for linear in first:
            forwards.to(linear, lambda x: seen.append(x.dtype))
            for same in (one for one in block.linears if one.shares == linear.shares):
                weight = stored[same.name + ".weight"]
                replace(module, block, same, weight.T if same.transposed else weight, INT8)
        forwards.finish()
        again = [walk.call(0, module, walk.embed(part)) for part in IDS.split(2)]
    assert set(seen) == {dtype}
    for found, wanted in zip(parts, again, strict=True):
        assert torch.equal(found, wanted)


def test_what_waits_before_a_linear_that_rounds_already_is_seen_as_it_came(tiny_llama):
    weights = rounding(tiny_llama)
    walk = Walk(weights, device="cpu", dtype=torch.bfloat16)
    block, parts = walk.anatomy.blocks[0], [walk.embed(IDS)]
    with walk.filled(0) as module:
        expected = walk.call(0, module, parts[0].clone())
        forwards, seen = Forwards(walk, block, module, parts), []
        forwards.to(block.linears[0], lambda x: seen.append(x.clone()))
        forwards.finish()
        assert attached(module_of(module, block, block.linears[0]))
    assert seen[0].dtype == torch.bfloat16
    assert torch.equal(parts[0], expected)
