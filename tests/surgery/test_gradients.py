import pytest
import torch
from conftest import CONFIGS
from transformers import AutoModelForCausalLM

from compress.surgery import gradients
from compress.surgery.walk import Walk
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def walked_back(folder, above):
    """Gradients by what enters each block, and by the outputs of every linear."""
    walk = Walk(open_folder(folder), device="cpu", dtype=torch.float32)
    gradients.prepare(walk, IDS.shape[1])
    entering = [walk.embed(IDS).clone()]
    blocks = walk.anatomy.blocks
    for block in blocks:
        with walk.filled(block.index) as module:
            entering.append(walk.call(block.index, module, entering[-1]).clone())
    above = gradients.through_norm(walk, entering[-1], above)
    outputs, inputs = {}, {}
    for block in reversed(blocks):
        with walk.filled(block.index) as module:
            slopes = gradients.through_block(walk, block, module, entering[block.index], above)
        above = slopes.hidden
        outputs |= slopes.outputs
        inputs |= slopes.inputs
    return above, outputs, inputs


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_walk_backwards_gives_the_gradients_of_the_whole_model(tiny_model, family):
    folder = tiny_model(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inner = model.base_model
    inner = getattr(inner, "decoder", inner)  # opt's
    weighing = torch.randn(2, *IDS.shape, 64, generator=torch.Generator().manual_seed(1))
    _, outputs, inputs = walked_back(folder, weighing)
    hidden = inner(input_ids=IDS).last_hidden_state
    anatomy = open_folder(folder).anatomy
    for number, one in enumerate(weighing):
        model.zero_grad()
        (hidden * one).sum().backward(retain_graph=True)
        for linear in anatomy.linears:
            expected = model.get_submodule(linear.name).weight.grad
            expected = expected.T if linear.transposed else expected
            found = torch.einsum("bto,bti->oi", outputs[linear.name][number], inputs[linear.name])
            assert torch.allclose(found, expected, atol=2e-3, rtol=1e-3), linear.name


def test_a_moved_embedding_moves_what_enters_the_first_block(tiny_model):
    teacher = open_folder(tiny_model("gemma2", tied=True))  # it scales what it embeds
    walk = Walk(teacher, device="cpu", dtype=torch.float32)
    weight = teacher.outside()["model.embed_tokens.weight"].float()
    moved = gradients.moved_embedding(walk, IDS, 1.5 * weight)
    assert torch.allclose(moved, 0.5 * walk.embed(IDS), atol=1e-4)
    assert torch.equal(gradients.moved_embedding(walk, IDS, weight), torch.zeros_like(moved))
