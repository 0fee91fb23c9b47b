import pytest
import torch

from compress.errors import ModelError
from compress.surgery.load import materialize
from compress.surgery.rotate import rotated
from compress.teacher.folder import open_folder

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def says(weights):
    with torch.inference_mode():
        return materialize(weights, torch.float32)(IDS).logits


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "what", [{"stream": True}, {"values": True}, {"stream": True, "values": True}]
)
def test_a_rotated_model_says_what_it_said(tiny_model, family, what):
    teacher = open_folder(tiny_model(family))
    turned = rotated(teacher, **{"stream": False, "values": False, **what})
    assert torch.allclose(says(turned), says(teacher), atol=1e-4)
    name = teacher.anatomy.linears[2].name + ".weight"  # v_proj, which either turns
    assert not torch.allclose(turned.block(0)[name], teacher.block(0)[name].float(), atol=1e-3)


def test_a_tied_head_comes_off_and_says_the_same(tiny_tied):
    teacher = open_folder(tiny_tied)
    turned = rotated(teacher, stream=True, values=False)
    assert teacher.anatomy.tied
    assert not turned.anatomy.tied
    assert turned.config["tie_word_embeddings"] is False
    assert set(turned.outside()) | {
        n for b in turned.anatomy.blocks for n in turned.block(b.index)
    } == set(turned.anatomy.tensors)
    assert torch.allclose(says(turned), says(teacher), atol=1e-4)


def test_outliers_of_single_channels_are_spread(tiny_llama):
    teacher = open_folder(tiny_llama)
    turned = rotated(teacher, stream=True, values=True)

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
    assert peak(rotated(Loud(), stream=True, values=True)) < 4
    assert peak(turned) < 4


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt"])
def test_norms_that_do_more_than_scale_are_refused(tiny_model, family):
    with pytest.raises(ModelError, match="cannot be rotated"):
        rotated(open_folder(tiny_model(family)), stream=True, values=False)
