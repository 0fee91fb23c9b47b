"""Taking away what is zero, or merging what is equal, changes nothing that a model says."""

from __future__ import annotations

import pytest
import torch
from students import IDS, cut, states

from compress.kernels.divergence import kl
from compress.recipe.schema import Quantize
from compress.results import Limits
from compress.shape import shape_of
from compress.stages import quantize
from compress.stages.context import Context
from compress.surgery.walk import empty_model, hidden_states, logits
from compress.teacher.folder import open_folder

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "opt", "gpt_neox",
)  # fmt: skip
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


class Changed:
    """A teacher whose blocks hold other values."""

    def __init__(self, folder, change):
        self._weights, self._change = open_folder(folder), change
        self.config, self.anatomy = self._weights.config, self._weights.anatomy
        self.outside, self.inputs, self.kv = (
            self._weights.outside, self._weights.inputs, self._weights.kv,
        )  # fmt: skip

    def block(self, index):
        tensors = {name: tensor.clone() for name, tensor in self._weights.block(index).items()}
        roles = {linear.role: linear for linear in self.anatomy.blocks[index].linears}
        self._change(index, roles, tensors)
        return tensors


def matrix(tensors, linear):
    weight = tensors[linear.name + ".weight"]
    return weight.T if linear.transposed else weight  # a view: written through


def assert_says_the_same(student, teacher):
    torch.testing.assert_close(states(student), states(teacher), rtol=1e-3, atol=1e-3)
    empty_model(student.config, torch.float32)  # transformers knows such a model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("importance", ["hessian", "first_order"])
@pytest.mark.parametrize("repair", [True, False])
def test_channels_that_nobody_reads_leave_without_a_trace(
    family, repair, importance, tiny_model, tmp_path
):
    def silence(_, roles, tensors):
        matrix(tensors, roles["down"])[:, 1::2] = 0

    teacher = Changed(tiny_model(family), silence)
    student, _ = cut(teacher, tmp_path, ffn=0.5, repair=repair, importance=importance)
    before, after = (shape_of(w.config, w.anatomy) for w in (teacher, student))
    assert after.channels == before.channels // 2
    assert_says_the_same(student, teacher)


@pytest.mark.parametrize("family", GROUPED)
@pytest.mark.parametrize("importance", ["hessian", "first_order"])
def test_groups_of_heads_that_nobody_reads_leave_without_a_trace(
    family, importance, tiny_model, tmp_path
):
    def silence(index, roles, tensors):
        half = roles["o"].in_features // 2
        matrix(tensors, roles["o"])[:, half * (index % 2) :][:, :half] = 0

    teacher = Changed(tiny_model(family), silence)
    student, _ = cut(teacher, tmp_path, heads=2, importance=importance)
    after = shape_of(student.config, student.anatomy)
    assert (after.heads, after.kv_heads, after.head_dim) == (2, 1, 16)
    assert_says_the_same(student, teacher)


@pytest.mark.parametrize("family", GROUPED)
@pytest.mark.parametrize("repair", [True, False])
def test_equal_heads_are_merged_without_a_trace(family, repair, tiny_model, tmp_path):
    def repeat(_, roles, tensors):
        for role in ("k", "v"):
            for kind in ("weight", "bias"):
                if (rows := tensors.get(f"{roles[role].name}.{kind}")) is not None:
                    rows[len(rows) // 2 :] = rows[: len(rows) // 2]

    teacher = Changed(tiny_model(family), repeat)
    student, _ = cut(teacher, tmp_path, kv_heads=1, repair=repair)
    after = shape_of(student.config, student.anatomy)
    assert (after.heads, after.kv_heads) == (4, 1)
    assert_says_the_same(student, teacher)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "fields",
    [{}, {"repair": False}, {"importance": "activation"}, {"importance": "first_order"}],
    ids=str,
)
def test_channels_of_the_stream_that_are_silent_leave_without_a_trace(
    family, tied, fields, tiny_model, tmp_path
):
    def silence(_, roles, tensors):
        for role in ("o", "down"):
            matrix(tensors, roles[role])[1::2] = 0

    teacher = Changed(tiny_model(family, tied=tied, hidden_size=128), silence)
    outside = {name: tensor.clone() for name, tensor in teacher.outside().items()}
    outside[f"{teacher.anatomy.embedding}.weight"][:, 1::2] = 0
    teacher.outside = lambda: outside
    student, result = cut(teacher, tmp_path, hidden=0.5, **fields)
    assert student.anatomy.hidden_size == 64
    assert student.anatomy.tied == (tied and fields.get("importance") == "activation")
    assert result.shape.stream_share == pytest.approx(1)
    said, says = (logits(one, states(one).flatten(0, 1)) for one in (teacher, student))
    torch.testing.assert_close(says, said, rtol=1e-3, atol=1e-3)
    empty_model(student.config, torch.float32)  # transformers knows such a model


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_add_nothing_leave_without_a_trace(family, tiny_model, tmp_path):
    def silence(index, roles, tensors):
        for role in ("o", "down") if index == 1 else ():
            for kind in ("weight", "bias"):
                if (tensor := tensors.get(f"{roles[role].name}.{kind}")) is not None:
                    tensor.zero_()

    teacher = Changed(tiny_model(family), silence)
    student, _ = cut(teacher, tmp_path, depth=0.5)
    assert len(student.anatomy.blocks) == 1
    assert_says_the_same(student, teacher)


@pytest.mark.parametrize(
    "fields", [{"ffn": 0.5}, {"heads": 2}, {"kv_heads": 1}, {"depth": 0.5}], ids=str
)
def test_repair_comes_nearer_than_deletion(fields, tiny_model, tmp_path):
    teacher = open_folder(tiny_model("llama"))
    said = states(teacher)
    repaired, _ = cut(teacher, tmp_path / "a", sink_weight=0.0, **fields)
    deleted, _ = cut(teacher, tmp_path / "b", repair=False, **fields)
    errors = [(states(one) - said).square().mean() for one in (repaired, deleted)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("importance", ["hessian", "activation"])
def test_a_narrower_stream_is_repaired_and_taken_up_again(importance, tiny_model, tmp_path):
    teacher = open_folder(tiny_model("llama", tied=True, hidden_size=128))
    fields = {"hidden": 0.5, "ffn": 0.5, "depth": 0.5, "heads": 2, "importance": importance}
    repaired, results = cut(teacher, tmp_path / "a", sink_weight=0.0, **fields)
    deleted, _ = cut(teacher, tmp_path / "b", repair=False, **fields)
    again, same = cut(teacher, tmp_path / "a", sink_weight=0.0, **fields)
    assert same == results
    torch.testing.assert_close(states(again), states(repaired), rtol=0, atol=0)
    said = logits(teacher, states(teacher).flatten(0, 1))
    costs = [kl(said, logits(one, states(one).flatten(0, 1))).mean() for one in (repaired, deleted)]
    assert costs[0] < costs[1]


def test_a_cut_student_is_taken_up_again_and_quantized(tiny_llama, tmp_path):
    teacher = open_folder(tiny_llama)
    student, results = cut(teacher, tmp_path, ffn=0.5, depth=0.5)
    again, same = cut(teacher, tmp_path, ffn=0.5, depth=0.5)
    assert same == results
    torch.testing.assert_close(states(again), states(student), rtol=0, atol=0)
    context = Context(IDS, "cpu", torch.float32, tmp_path, limits=Limits(64, 1 << 30))
    again.enter(1)
    quantize.run(again, Quantize(group_size=32, error_correction=0.5), context)
    assert again.rounded("model.layers.0.mlp.down_proj").codes.shape == (64, 64)
    assert torch.isfinite(hidden_states(again, IDS, device="cpu", dtype=torch.float32)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_named_are_the_teachers_own(family, tiny_model, tmp_path):
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    teacher = open_folder(tiny_model(family, **{layers: 5}))
    none = torch.empty(0, 1, dtype=torch.long)  # no text is read
    student, stage = cut(teacher, tmp_path, none, blocks="every_second")
    assert [cut.now for cut in stage.shape.blocks] == [0, None, 1, None, 2]
    assert (stage.shape.asked, stage.shape.repaired) == ("blocks every_second", False)
    for now, before in enumerate((0, 2, 4)):
        theirs = list(teacher.block(before).values())
        ours = list(student.block(now).values())
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert student.config[layers] == 3
    empty_model(student.config, torch.float32)
    assert torch.isfinite(states(student)).all()


def test_named_blocks_may_be_repaired_and_cut(tiny_model, tmp_path):
    teacher = open_folder(tiny_model("llama", num_hidden_layers=4))
    fields = {"blocks": [0, 3], "ffn": 0.5}
    repaired, stage = cut(teacher, tmp_path / "a", **fields)
    deleted, _ = cut(teacher, tmp_path / "b", repair=False, **fields)
    assert [cut.now for cut in stage.shape.blocks] == [0, None, None, 1]
    said = logits(teacher, states(teacher).flatten(0, 1))
    costs = [kl(said, logits(one, states(one).flatten(0, 1))).mean() for one in (repaired, deleted)]
    assert costs[0] < costs[1]
