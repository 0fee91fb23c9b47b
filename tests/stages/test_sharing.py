"""Channels are shared out over blocks as cheaply as can be, and blocks of any widths are models."""

import itertools

import pytest
import torch
from students import IDS, cut, states

from compress import anatomy
from compress.artifact.layout import open_artifact
from compress.artifact.write import write
from compress.errors import ModelError
from compress.plan import reshaping
from compress.recipe.schema import Quantize
from compress.results import Limits
from compress.runtime.batch import gather
from compress.runtime.ledger import PAGE_TOKENS
from compress.runtime.model import Model
from compress.runtime.scheduler import Span
from compress.shape import most_uneven, shape_of
from compress.stages import quantize, sharing
from compress.stages.context import Context
from compress.surgery.load import materialize
from compress.surgery.walk import logits
from compress.teacher.folder import open_folder

INNER = {"gpt2": "n_inner", "opt": "ffn_dim"}
KEPT = (64, 192, 128)


@pytest.fixture
def uneven(tiny_model):
    """A teacher of three blocks that read so many of their 256 channels; others are nobody's."""

    def make(family="llama", **fields):
        sizes = {INNER.get(family, "intermediate_size"): 256}
        depth = {"n_layer" if family == "gpt2" else "num_hidden_layers": 3}
        weights = open_folder(tiny_model(family, **sizes, **depth, **fields))
        whole = weights.block

        def block(index):
            tensors = {name: tensor.clone() for name, tensor in whole(index).items()}
            down = next(x for x in weights.anatomy.blocks[index].linears if x.role == "down")
            weight = tensors[f"{down.name}.weight"]
            (weight.T if down.transposed else weight)[:, torch.arange(256) % 256 >= KEPT[index]] = 0
            return tensors

        object.__setattr__(weights, "block", block)
        return weights

    return make


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "opt", "gpt_neox"])
def test_channels_that_nobody_reads_leave_whichever_block_has_them(family, uneven, tmp_path):
    teacher = uneven(family)
    student, result = cut(teacher, tmp_path, ffn=0.5, uniform=False)
    assert student.anatomy.channels == KEPT
    assert [block.channels for block in result.shape.blocks] == list(KEPT)
    assert [block.channels_kl for block in result.shape.blocks] == pytest.approx(
        [0, 0, 0], abs=1e-9
    )
    torch.testing.assert_close(states(student), states(teacher), rtol=1e-3, atol=1e-3)
    whole = materialize(student, torch.float32)(IDS).logits
    hidden = states(student).flatten(0, 1)
    torch.testing.assert_close(whole.flatten(0, 1), logits(student, hidden), rtol=1e-3, atol=1e-3)


def test_blocks_that_must_be_alike_are_those_of_a_uniform_cut(tiny_model, tmp_path):
    teacher = open_folder(tiny_model("llama", num_hidden_layers=1, intermediate_size=256))
    shared, _ = cut(teacher, tmp_path / "a", ffn=0.5, uniform=False)
    alike, _ = cut(teacher, tmp_path / "b", ffn=0.5)
    assert shared.config == alike.config
    for one, other in zip(shared.parts(), alike.parts(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


def test_what_is_known_is_not_asked_again(uneven, tmp_path, monkeypatch):
    first, result = cut(uneven(), tmp_path, ffn=0.5, uniform=False)
    monkeypatch.setattr(sharing, "_measured", None)
    again, same = cut(uneven(), tmp_path, ffn=0.5, uniform=False)
    assert same == result
    torch.testing.assert_close(states(again), states(first), rtol=0, atol=0)


def test_an_uneven_model_is_cut_again_and_quantized(uneven, tmp_path):
    student, _ = cut(uneven(), tmp_path, ffn=0.5, uniform=False)
    context = Context(IDS, "cpu", torch.float32, tmp_path, limits=Limits(64, 1 << 30))
    student.enter(1)
    quantize.run(student, Quantize(group_size=32), context)
    columns = [student.rounded(f"model.layers.{i}.mlp.down_proj").codes.shape[1] for i in range(3)]
    assert columns == list(KEPT)
    narrower, _ = cut(student.base, tmp_path / "b", ffn=0.5)
    assert narrower.anatomy.channels == (64, 128, 64)
    shallower, _ = cut(student.base, tmp_path / "c", depth=0.67)
    assert set(shallower.anatomy.channels) <= set(KEPT)
    assert shape_of(shallower.config, shallower.anatomy).blocks == 2


def test_the_folder_says_so_to_transformers_and_our_runtime_answers_alike(
    uneven, tmp_path, tiny_model
):
    from transformers import AutoConfig, AutoModelForCausalLM

    student, _ = cut(uneven(), tmp_path, ffn=0.5, uniform=False)
    out = tmp_path / "out"
    out.mkdir()
    write(
        out, student.parts(), anatomy=student.anatomy, config=dict(student.config),
        tokenizer_files=[], format="dense", max_shard_bytes=1 << 30,
    )  # fmt: skip
    told = AutoConfig.from_pretrained(out)
    assert [one.intermediate_size for one in told.per_layer_config] == list(KEPT)
    artifact = open_artifact(out)
    assert artifact.anatomy.channels == KEPT
    model = Model(artifact, torch.float32)
    spans = [Span(row, 0, [at], len(row)) for at, row in enumerate(IDS.tolist())]
    ours = model.logits(model.forward(gather(spans), model.pages(len(IDS) * PAGE_TOKENS)))
    walked = logits(student, states(student).flatten(0, 1))
    torch.testing.assert_close(ours, walked, rtol=1e-3, atol=1e-3)
    # 5.23 has the config and no models that read it: once this fails, `plan` may say that it opens
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_way_to_share_costs_less(seed):
    random = torch.Generator().manual_seed(seed)
    choices = [[64, 128, 192, 256], [64, 128], [64, 128, 192], [64, 128, 192, 256]]
    costs = [
        torch.rand(len(row), generator=random).sort(descending=True).values.tolist()
        for row in choices
    ]
    total = 64 * int(torch.randint(4, 13, (), generator=random))
    channels, kl = sharing.shared(choices, costs, total)
    assert sum(channels) == total
    blocks = [tuple(zip(*pair, strict=True)) for pair in zip(choices, costs, strict=True)]
    ways = itertools.product(*blocks)
    cheapest = min(sum(c for _, c in way) for way in ways if sum(n for n, _ in way) == total)
    assert sum(kl) == pytest.approx(cheapest)


def test_what_costs_nothing_stays_while_there_is_room():
    channels, _ = sharing.shared([[64, 128, 192]] * 2, [[0.0] * 3, [0.5, 0.1, 0.0]], 320)
    assert channels == (128, 192)


def test_roots_of_costs_lie_on_lines_between_what_was_tried_and_never_fall():
    measured = {64: 9.0, 192: 0.5, 256: 1.0, 320: 0.0}
    costs = sharing._along(measured, [64, 128, 192, 256, 320])
    assert costs == pytest.approx([9.0, 4.0, 1.0, 1.0, 0.0])
    assert sharing._tried(320) == [256, 192, 128, 64]
    assert len(sharing._tried(64 * 100)) == sharing.TRIED
    assert sharing._tried(64) == []


def test_a_plan_knows_what_the_stage_does():
    told = (reshaping.SHARED_WINDOWS, reshaping.SHARED_ASKED, reshaping.SHARED_TRIED)
    asked = sharing.ASKED_WINDOWS * sharing.ASKED_TOKENS
    assert told == (sharing.WINDOWS, asked, sharing.TRIED)
    assert most_uneven((256,) * 4, 512) == (256, 128, 64, 64)
    assert most_uneven((256, 100), 320) == (256, 64)
    assert most_uneven((256,), 128) == (128,)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"0": {"num_key_value_heads": 1}},
            "its own num_key_value_heads; blocks may differ in int",
        ),
        ({"0": {"skip": ["mlp"]}}, "its own skip"),
        ({"7": {"intermediate_size": 64}}, "tells of block 7, and there are 2"),
        ({"0": {"intermediate_size": True}}, "must be a whole number"),
        ({"-1": {}}, "not told block by block"),
        ([64], "not told block by block"),
    ],
)
def test_what_else_blocks_have_of_their_own_is_refused(told, said, tiny_llama):
    found = open_folder(tiny_llama)
    with pytest.raises(ModelError, match=said):
        anatomy.read({**found.config, "per_layer_config": told}, found.anatomy.tensors)
