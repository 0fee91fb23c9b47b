import pytest
import torch

from compress.errors import ModelError
from compress.surgery.load import materialize
from compress.surgery.rotate import rotated
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
BOTH = {"residual": "hadamard", "values": "random"}


def says(weights):
    with torch.inference_mode():
        return materialize(weights, torch.float32)(IDS).logits


def turn(weights, **what):
    return rotated(weights, **{"residual": "none", "values": "none", **what})


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "what", [{"residual": "hadamard"}, {"residual": "random"}, {"values": "hadamard"}, BOTH]
)
def test_a_rotated_model_says_what_it_said(tiny_model, family, what):
    teacher = open_folder(tiny_model(family))
    turned = turn(teacher, **what)
    assert torch.allclose(says(turned), says(teacher), atol=1e-4)
    name = teacher.anatomy.linears[2].name + ".weight"  # v_proj, which either turns
    assert not torch.allclose(turned.block(0)[name], teacher.block(0)[name].float(), atol=1e-3)


@pytest.mark.parametrize("family", ["opt", "gemma2", "gemma3_text"])
def test_values_turn_whatever_the_norms_are(tiny_model, family):
    teacher = open_folder(tiny_model(family))
    turned = turn(teacher, values="hadamard")
    assert turned.config == teacher.config
    assert torch.allclose(says(turned), says(teacher), atol=1e-4)


def test_biases_turn_with_what_they_are_added_to(tiny_model):
    teacher = open_folder(tiny_model("llama", attention_bias=True, mlp_bias=True))
    turned = turn(teacher, **BOTH)
    assert torch.allclose(says(turned), says(teacher), atol=1e-4)


def test_a_tied_head_comes_off_and_says_the_same(tiny_tied):
    teacher = open_folder(tiny_tied)
    turned = turn(teacher, residual="hadamard")
    assert teacher.anatomy.tied
    assert not turned.anatomy.tied
    assert turned.config["tie_word_embeddings"] is False
    blocks = {n for b in turned.anatomy.blocks for n in turned.block(b.index)}
    assert set(turned.outside()) | blocks == set(turned.anatomy.tensors)
    assert list(turned.outside()) == list(turned.anatomy.outside())
    assert torch.allclose(says(turned), says(teacher), atol=1e-4)


def test_matrices_are_float32_and_all_else_has_its_dtype(tiny_llama):
    turned = turn(open_folder(tiny_llama).cast("bfloat16"), **BOTH)
    for name, tensor in (turned.block(0) | turned.outside()).items():
        assert tensor.dtype == (torch.float32 if tensor.dim() == 2 else torch.bfloat16), name


def test_outliers_of_single_channels_are_spread(tiny_llama):
    teacher = open_folder(tiny_llama)
    turned = turn(teacher, **BOTH)

    def peak(weights):
        columns = weights.block(0)["model.layers.0.mlp.up_proj.weight"].float().square().mean(0)
        return float(columns.max() / columns.mean())

    loud = {n: t.clone() for n, t in teacher.block(0).items()}
    loud["model.layers.0.post_attention_layernorm.weight"][3] = 40.0

    class Loud:
        def __getattr__(self, name):
            return getattr(teacher, name)

        def block(self, index):
            return loud

    folded = loud["model.layers.0.mlp.up_proj.weight"].float().square().mean(0)
    folded = folded * loud["model.layers.0.post_attention_layernorm.weight"].float().square()
    assert float(folded.max() / folded.mean()) > 10
    assert peak(turn(Loud(), **BOTH)) < 4
    assert peak(turned) < 4


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "gpt_neox"])
def test_norms_that_do_more_than_scale_are_refused(tiny_model, family):
    with pytest.raises(ModelError, match=f"residual stream of a {family} cannot be rotated"):
        turn(open_folder(tiny_model(family)), residual="hadamard")


def test_values_that_are_one_matrix_with_keys_are_refused(tiny_model):
    with pytest.raises(ModelError, match="q, k and v are one matrix"):
        turn(open_folder(tiny_model("gpt2")), values="hadamard")


def test_a_width_without_a_hadamard_matrix_is_refused_and_turned_at_random(tiny_model):
    teacher = open_folder(tiny_model("llama", hidden_size=72 + 28))
    with pytest.raises(ModelError, match="no Hadamard matrix of size 100"):
        turn(teacher, residual="hadamard")
    assert torch.allclose(says(turn(teacher, residual="random")), says(teacher), atol=1e-4)
