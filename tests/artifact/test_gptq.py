"""GPTQ v1, bit by bit: what its readers compute is what the student means."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.artifact.formats import gptq
from compress.artifact.formats.matrix import Matrix, Scheme, scheme_of
from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.kernels.grid import Rounded
from compress.storage import SINGLE, read_file, write_file

Q = "model.layers.1.self_attn.q_proj"


def example(bits, rows, columns, group_size, seed=0):
    """A symmetric matrix with scales of either sign."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).byte()
    scale = torch.rand(rows, columns // group_size, generator=generator) - 0.5
    scale = (scale.sign() * (scale.abs() + 0.01)).bfloat16().float()
    zero = torch.full_like(scale, 1 << (bits - 1)).byte()
    return Rounded(codes, scale, zero, bits, group_size, True)


def field(word, number, bits):
    """The `number`-th field of a word, counted from its lowest bit."""
    return (word & 0xFFFFFFFF) >> number * bits & (1 << bits) - 1


def as_a_reader_does(tensors, bits):
    """Weights [O, I] by the words of GPTQModel's readers: v1 adds one to every zero."""
    words, zeros = tensors["m.qweight"].tolist(), tensors["m.qzeros"].tolist()
    scales, groups = tensors["m.scales"].float().tolist(), tensors["m.g_idx"].tolist()
    each = 32 // bits
    return torch.tensor(
        [
            [
                (
                    field(words[i // each][o], i % each, bits)
                    - field(zeros[groups[i]][o // each], o % each, bits)
                    - 1
                )
                * scales[groups[i]][o]
                for i in range(len(groups))
            ]
            for o in range(len(scales[0]))
        ]
    )


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(1, 3).map(lambda n: 8 * n),
    groups=st.integers(1, 3),
    group_size=st.sampled_from([8, 32]),
    seed=st.integers(0, 99),
)
def test_readers_see_the_weights_bit_for_bit(bits, rows, groups, group_size, seed):
    rounded = example(bits, rows, groups * group_size, group_size, seed)
    tensors = dict(gptq.encode("m", rounded, None, torch.bfloat16))
    assert torch.equal(as_a_reader_does(tensors, bits), rounded.dequantize())
    matrix = Matrix(scheme_of(rounded), rows, groups * group_size)
    foretold = {name: shape for name, (_, shape) in gptq.stored("m", matrix).items()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == foretold
    found = gptq.decode("m", matrix, tensors)
    assert torch.equal(found.codes, rounded.codes)
    assert torch.equal(found.scale, rounded.scale)
    assert torch.equal(found.zero, rounded.zero)


@pytest.mark.parametrize(("bits", "word"), [(4, 0x77777777), (8, 0x7F7F7F7F)])
def test_zeros_are_those_that_every_symmetric_checkpoint_has(bits, word):
    tensors = dict(gptq.encode("m", example(bits, 8, 32, 32), None, torch.bfloat16))
    assert set(tensors["m.qzeros"].flatten().tolist()) == {word}


def mixed(name):
    if name.endswith("down_proj"):
        return 8, -1, True
    if "embed" in name or "head" in name or name.endswith("o_proj"):
        return None
    return (4, 64, True) if "layers.0.self_attn" in name else (4, 32, True)


@pytest.mark.parametrize("tied", [True, False])
def test_mixed_schemes_read_back_equal(student, tmp_path, tied):
    made = student("qwen2", mixed, tied=tied)
    artifact = open_artifact(made.write(tmp_path / "a", "gptq"))
    dense = made.dense()
    assert artifact.format == "gptq"
    assert all(torch.equal(artifact.tensor(name), dense[name]) for name in artifact.names())
    assert artifact.matrices["model.layers.0.mlp.down_proj"].scheme.bits == 8


def test_rules_match_every_linear_and_what_vllm_fuses_them_into(student, tmp_path):
    import re

    config = json.loads(
        (student("llama", mixed).write(tmp_path / "a", "gptq") / "config.json").read_text()
    )
    told = config["quantization_config"]
    assert json.loads((tmp_path / "a" / "quantize_config.json").read_text()) == told
    assert (told["bits"], told["group_size"], told["lm_head"]) == (4, 32, False)

    def rule(name):  # as vLLM's gptq_utils.get_dynamic_override
        for pattern, fields in told["dynamic"].items():
            if pattern.startswith("-:"):
                if re.match(pattern.removeprefix("-:"), name):
                    return False
            elif re.match(pattern.removeprefix("+:"), name):
                return fields
        return None

    assert rule("model.layers.0.self_attn.qkv_proj") == {"bits": 4, "group_size": -1}
    assert rule("model.layers.0.self_attn.q_proj") == {"bits": 4, "group_size": -1}
    assert rule("model.layers.1.self_attn.qkv_proj") is None
    assert rule("model.layers.1.mlp.gate_up_proj") is None
    assert rule("model.layers.1.mlp.down_proj") == {"bits": 8, "group_size": -1}
    assert rule("model.layers.1.self_attn.o_proj") is False


def test_a_quantized_head_of_its_own_is_told(student, tmp_path):
    made = student(
        "llama", lambda n: (8, 64, True) if "head" in n else (4, 32, True) if "_proj" in n else None
    )
    artifact = open_artifact(made.write(tmp_path / "a", "gptq"))
    assert artifact.rounded("lm_head").bits == 8
    assert torch.equal(artifact.tensor("lm_head.weight"), made.dense()["lm_head.weight"])


REFUSED = {
    "width": ((2, 32, True), "2 bits; its readers take 4 and 8"),
    "grid": ((4, 32, False), "an asymmetric grid; version 1 stores zero - 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_hold_is_refused(student, every_linear, case):
    scheme, message = REFUSED[case]
    made = student("llama", every_linear(*scheme))
    schemes = {linear.name: Scheme(*scheme) for linear in made.anatomy.linears}
    (found,) = gptq.refusals(made.anatomy, schemes)
    assert message in found
    assert found.startswith("artifact.format gptq: model.layers.0.self_attn.q_proj and 13 more")


def test_rows_that_end_inside_a_word_are_refused(student, every_linear):
    made = student("llama", every_linear(4, -1, True), intermediate_size=132)
    schemes = {x.name: Scheme(4, x.in_features, True) for x in made.anatomy.linears}
    found = gptq.refusals(made.anatomy, schemes)
    assert (
        "model.layers.0.mlp.gate_proj and 5 more: 132 × 64; both must fill whole words" in found[0]
    )


@pytest.fixture
def folder(student, every_linear, tmp_path):
    return student("llama", every_linear(4, 32, True)).write(tmp_path / "a", "gptq")


def edited(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


CONFIGS = {
    "version 2": (lambda q: q.update(checkpoint_format="gptq_v2"), "checkpoint_format 'gptq_v2'"),
    "act order": (lambda q: q.update(desc_act=True), "desc_act True"),
    "asymmetric": (lambda q: q.update(sym=False), "sym False"),
    "width": (lambda q: q.update(bits=3), "is not one that is read: {'bits': 3"),
    "no width": (lambda q: q.pop("bits"), "is not one that is read"),
    "a group for nobody": (lambda q: q.update(group_size=48), "is not one that is read"),
    "a group of nothing": (lambda q: q.update(group_size=0), "is not one that is read"),
    "no number": (lambda q: q.update(group_size="32"), "is not one that is read"),
    "another width": (lambda q: q.update(bits=8), "qzeros: found I32"),
    "no table": (lambda q: q.update(dynamic=[1]), "dynamic is no table"),
    "a pattern": (lambda q: q.update(dynamic={r"+:(a+)+b": {}}), "is not read here: names in full"),
    "a rule of nothing": (
        lambda q: q.update(dynamic={rf"+:(?:{Q.replace('.', '[.]')})$": 3}),
        "is not read here: names in full",
    ),
    "a rule with more": (
        lambda q: q.update(dynamic={"+:(?:" + Q.replace(".", r"\.") + ")$": {"mse": 1}}),
        f"the scheme of {Q}",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_other_variants_are_refused_with_the_reason(folder, case):
    change, message = CONFIGS[case]
    edited(folder, change)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(folder)
    assert message in str(caught.value)


def tensors_edited(folder, change):
    tensors = read_file(folder / SINGLE)
    change(tensors)
    write_file(folder / SINGLE, {name: tensor.clone() for name, tensor in tensors.items()})


TENSORS = {
    "order": (lambda t: t[f"{Q}.g_idx"].copy_(t[f"{Q}.g_idx"].flip(0)), "an order of their own"),
    "zero": (lambda t: t[f"{Q}.qzeros"].add_(1), "zeros off the middle"),
    "infinite": (lambda t: t[f"{Q}.scales"].fill_(torch.inf), "zero or not finite"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_values_that_are_not_meant_are_refused(folder, case):
    change, message = TENSORS[case]
    tensors_edited(folder, change)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(folder).rounded(Q)


@pytest.mark.parametrize("shape", [(8, 63), (0, 64), (8, 64, 1), (8,)])
def test_codes_of_another_shape_are_refused(folder, shape):
    tensors_edited(
        folder, lambda t: t.update({f"{Q}.qweight": torch.zeros(shape, dtype=torch.int32)})
    )
    with pytest.raises(ArtifactError):
        open_artifact(folder)
