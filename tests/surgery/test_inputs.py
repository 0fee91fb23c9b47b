import pytest
import torch
from conftest import CONFIGS

from compress.surgery.inputs import Forwards, replace
from compress.surgery.walk import Walk
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
CASES = [(family, {}) for family in sorted(CONFIGS)] + [
    ("gpt_neox", {"use_parallel_residual": False})
]


def walk_of(folder):
    walk = Walk(open_folder(folder), device="cpu", dtype=torch.float32)
    return walk, [walk.embed(part) for part in IDS.split(2)]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_forwards_that_paused_at_every_linear_end_as_those_that_ran_through(
    tiny_model, family, changes
):
    walk, parts = walk_of(tiny_model(family, **changes))
    block = walk.anatomy.blocks[0]
    with walk.filled(0) as module:
        expected = [walk.call(0, module, part.clone()) for part in parts]
        forwards = Forwards(walk, block, module, parts)
        seen = []
        for linear in {linear.shares: linear for linear in reversed(block.linears)}.values():
            seen.insert(0, linear)
        for linear in seen:
            forwards.to(linear, lambda x: None)
        forwards.finish()
    for found, wanted in zip(parts, expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_weight_replaced_while_forwards_wait_is_the_one_they_use(tiny_llama):
    walk, parts = walk_of(tiny_llama)
    block = walk.anatomy.blocks[0]
    down = block.linears[-1]
    with walk.filled(0) as module:
        forwards = Forwards(walk, block, module, parts)
        shapes = []
        forwards.to(down, lambda x: shapes.append(tuple(x.shape)))
        replace(module, block, down, torch.zeros(down.out_features, down.in_features))
        forwards.finish()
        expected = [walk.call(0, module, walk.embed(part)) for part in IDS.split(2)]
    assert shapes == [(64, down.in_features)] * 2
    for found, wanted in zip(parts, expected, strict=True):
        assert torch.equal(found, wanted)
