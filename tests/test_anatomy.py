import json

import pytest
from conftest import CONFIGS

from compress import anatomy
from compress.errors import ModelError
from compress.teacher.folder import open_folder

GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_family_shows_its_blocks_roles_and_shapes(tiny_model, family):
    found = open_folder(tiny_model(family)).anatomy
    roles = [linear.role for linear in found.blocks[1].linears]
    assert len(found.blocks) == 2
    assert (roles == ["q", "k", "v", "o", "gate", "up", "down"]) is (family in GATED)
    assert {"o", "up", "down"} <= set(roles)
    up = next(linear for linear in found.blocks[0].linears if linear.role == "up")
    assert up.in_features == found.hidden_size == 64
    assert up.transposed is (family == "gpt2")
    assert (found.vocab_size, found.head.out_features) == (320, 320)


def test_linears_that_share_an_input_and_those_that_engines_fuse_say_so(tiny_llama):
    linears = {linear.role: linear for linear in open_folder(tiny_llama).anatomy.blocks[0].linears}
    assert linears["q"].shares == linears["v"].shares != linears["o"].shares
    assert linears["gate"].shares == linears["up"].shares != linears["down"].shares
    assert linears["q"].fused == linears["k"].fused == "qkv"
    assert linears["gate"].fused == linears["up"].fused == "gate_up"
    assert linears["o"].fused is linears["down"].fused is None


def test_a_tie_is_seen(tiny_llama, tiny_tied):
    assert not open_folder(tiny_llama).anatomy.tied
    assert open_folder(tiny_tied).anatomy.tied


def test_inside_and_outside_are_every_tensor_once(tiny_llama):
    found = open_folder(tiny_llama).anatomy
    names = [*found.outside(), *found.inside(0), *found.inside(1)]
    assert sorted(names) == sorted(found.tensors)


def shapes(folder):
    config = json.loads((folder / "config.json").read_text())
    return config, dict(open_folder(folder).anatomy.tensors)


def test_an_unknown_architecture_is_refused_with_those_supported(tiny_llama):
    config, tensors = shapes(tiny_llama)
    with pytest.raises(ModelError, match=r"'mamba' is not supported.*llama"):
        anatomy.read({**config, "model_type": "mamba"}, tensors)


def test_a_mixture_of_experts_is_refused_with_the_reason(tiny_llama):
    config, tensors = shapes(tiny_llama)
    for odd in ({**config, "num_local_experts": 8}, {**config, "num_experts": 4}):
        with pytest.raises(ModelError, match="mixture of experts"):
            anatomy.read(odd, tensors)
    named = {**tensors, "model.layers.0.mlp.experts.0.up_proj.weight": (64, 64)}
    with pytest.raises(ModelError, match="mixture of experts"):
        anatomy.read(config, named)


def test_blocks_and_linears_that_are_missing_are_named(tiny_llama):
    config, tensors = shapes(tiny_llama)
    with pytest.raises(ModelError, match="promises 3 blocks, the tensors hold 2"):
        anatomy.read({**config, "num_hidden_layers": 3}, tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        anatomy.read(config, tensors)
