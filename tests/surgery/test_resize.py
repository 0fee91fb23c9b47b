"""What is left of a model says what the whole did with zeros in place of the rest."""

import pytest
import torch
from students import states

from compress.shape import Kept, Remains, cut_config, shape_of
from compress.surgery.resize import Cut
from compress.teacher.folder import open_folder

LEFT = tuple(range(0, 64, 2))


class Silent:
    """A teacher of whose residual stream every other channel is zero."""

    def __init__(self, folder):
        self._weights = open_folder(folder)
        self.config, self.anatomy = self._weights.config, self._weights.anatomy
        self.inputs, self.kv = self._weights.inputs, self._weights.kv

    def block(self, index):
        tensors = self._weights.block(index)
        for linear in self.anatomy.blocks[index].linears:
            if linear.role in ("o", "down"):
                name = f"{linear.name}.weight"
                tensors[name] = tensors[name].clone()
                tensors[name][1::2] = 0
        return tensors

    def outside(self):
        tensors = self._weights.outside()
        name = f"{self.anatomy.embedding}.weight"
        tensors[name] = tensors[name].clone()
        tensors[name][:, 1::2] = 0
        return tensors


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_silent_channels_of_the_stream_leave_without_a_trace(family, tiny_model):
    teacher = Silent(tiny_model(family))
    kept = Kept(tuple(range(4)), tuple(range(2)), tuple(range(128)))
    cut = Cut(teacher, Remains(dict.fromkeys(range(2), kept), LEFT))
    assert cut.anatomy.hidden_size == cut.config["hidden_size"] == 32
    whole = states(teacher)
    assert torch.count_nonzero(whole[..., 1::2]) == 0
    torch.testing.assert_close(states(cut), whole[..., ::2], rtol=1e-4, atol=1e-4)


def test_norms_of_heads_stay_as_they_are_where_the_stream_becomes_as_wide_as_a_head(tiny_model):
    teacher = open_folder(tiny_model("qwen3"))
    kept = Kept(tuple(range(4)), tuple(range(2)), tuple(range(128)))
    cut = Cut(teacher, Remains(dict.fromkeys(range(2), kept), tuple(range(16))))
    before, after = teacher.block(0), cut.block(0)
    for norm in ("self_attn.q_norm", "self_attn.k_norm"):
        name = f"model.layers.0.{norm}.weight"
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    name = "model.layers.0.input_layernorm.weight"
    torch.testing.assert_close(after[name], 2 * before[name][:16], rtol=0, atol=0)


def test_what_a_config_says_block_by_block_is_renumbered(tiny_model):
    teacher = open_folder(tiny_model("gemma2", num_hidden_layers=4))
    before = shape_of(teacher.config, teacher.anatomy)
    kept = Kept(tuple(range(4)), tuple(range(2)), tuple(range(128)))
    config = {**teacher.config, "max_window_layers": 3}
    left = Remains(dict.fromkeys((0, 2, 3), kept))
    types = teacher.config["layer_types"]
    for given in (config, {k: v for k, v in config.items() if k != "layer_types"}):
        cut = cut_config(given, before, left)
        assert cut["layer_types"] == [types[i] for i in (0, 2, 3)]
        assert cut["num_hidden_layers"] == 3
        assert cut["max_window_layers"] == 2
