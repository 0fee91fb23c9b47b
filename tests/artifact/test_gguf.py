"""GGUF: what llama.cpp computes from the file is what the student means."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.artifact import gguf_names
from compress.artifact.formats import gguf
from compress.artifact.formats.matrix import Matrix, Scheme
from compress.artifact.layout import open_artifact
from compress.artifact.vocabulary import read_vocabulary
from compress.errors import ArtifactError, CompressError, ModelError
from compress.kernels.grid import Rounded
from compress.storage import read_gguf


def example(bits, sym, rows, groups, group_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, groups * group_size), generator=generator).byte()
    scale = torch.rand(rows, groups, generator=generator) + 0.01
    if sym:
        scale = scale * (torch.randint(0, 2, scale.shape, generator=generator) * 2 - 1)
    zero = torch.randint(0, 1 << bits, scale.shape, generator=generator)
    middle = torch.full_like(zero, 1 << (bits - 1))
    zero = (middle if sym else zero).byte()
    return Rounded(codes, scale.bfloat16().float(), zero, bits, group_size, sym)


def as_llama_cpp_does(kind, row):
    """The weights of one row of bytes, by the loops of ggml-quants.c."""
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    weights = []
    for start in range(0, len(row), size):
        block = bytes(row[start : start + size])
        (d,) = struct.unpack("<e", block[:2])
        if kind == "Q8_0":
            weights += [q * d for q in struct.unpack("<32b", block[2:])]
            continue
        m = struct.unpack("<e", block[2:4])[0] if kind == "Q4_1" else -8 * d
        nibbles = block[-16:]
        weights += [(byte & 15) * d + m for byte in nibbles]
        weights += [(byte >> 4) * d + m for byte in nibbles]
    return weights


SCHEMES = [(2, True), (3, True), (4, True), (8, True), (2, False), (3, False), (4, False)]


@settings(max_examples=30, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
    group_size=st.sampled_from([32, 64, 96]),
    seed=st.integers(0, 99),
)
def test_blocks_mean_the_weights(scheme, rows, groups, group_size, seed):
    rounded = example(*scheme, rows, groups, group_size, seed)
    ((name, blocks),) = gguf.encode("m", rounded, None, torch.bfloat16)
    kind = name.removeprefix("m.")
    assert kind == ("Q8_0" if scheme[0] == 8 else "Q4_0" if scheme[1] else "Q4_1")
    found = torch.tensor([as_llama_cpp_does(kind, row) for row in blocks.tolist()])
    error = (found - rounded.dequantize()).abs()
    if rounded.sym:
        assert not error.any()
    else:  # the minimum is rounded to float16's 11 bits
        minimum = rounded.zero.float() * rounded.scale
        assert (error <= (minimum * 2.0**-11).repeat_interleave(group_size, 1)).all()
    matrix = Matrix(Scheme(8 if kind == "Q8_0" else 4, 32, rounded.sym), rows, groups * group_size)
    assert {name: (("U8",), tuple(blocks.shape))} == gguf.stored("m", matrix)
    read = gguf.decode("m", matrix, {name: blocks})
    assert torch.equal(read.dequantize(), found.float())
    assert torch.equal(read.zero.float(), read.zero.float())
    if not rounded.sym:
        assert torch.equal(read.zero, rounded.zero.repeat_interleave(group_size // 32, 1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gguf_package_reads_the_same(scheme):
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    rounded = example(*scheme, 3, 2, 64)
    ((name, blocks),) = gguf.encode("m", rounded, None, torch.bfloat16)
    kind = name.removeprefix("m.")
    theirs = dequantize(blocks.numpy(), GGMLQuantizationType[kind])
    matrix = Matrix(Scheme(8 if kind == "Q8_0" else 4, 32, rounded.sym), 3, 128)
    ours = gguf.decode("m", matrix, {name: blocks}).dequantize()
    assert np.array_equal(theirs, ours.numpy())


def test_a_minimum_beyond_float16_is_refused():
    rounded = example(4, False, 1, 1, 32)
    rounded.scale.fill_(8192.0)
    rounded.zero.fill_(15)
    with pytest.raises(ArtifactError, match="m: a minimum beyond"):
        list(gguf.encode("m", rounded, None, torch.bfloat16))


# --- whole models --------------------------------------------------------------------------------

FAMILIES = sorted(gguf.FAMILIES)


def mixed(name):
    if "embed" in name or "head" in name:
        return 8, 32, True
    if name.endswith("down_proj"):
        return 8, -1, True
    return None if name.endswith("o_proj") else (4, 64 if "layers.0" in name else 32, True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_back_equal(student, tmp_path, family, tied):
    made = student(family, mixed, tied=tied)
    artifact = open_artifact(made.write(tmp_path / "a", "gguf"))
    dense = made.dense()
    assert artifact.format == "gguf"
    assert set(artifact.names()) == set(dense)
    assert all(torch.equal(artifact.tensor(name), dense[name]) for name in dense)
    assert artifact.matrices["model.embed_tokens"].scheme == Scheme(8, 32, True)
    assert artifact.anatomy.tied == tied
    sizes = artifact.parts_sizes()
    assert sum(sizes.values()) == artifact.size_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_same_model(student, tmp_path, family):
    """Names, the order of rows, ties and sizes, by a reader of others."""
    from transformers import AutoModelForCausalLM

    wide = {"head_dim": 128} if family == "qwen3" else {}  # its reader knows no other there
    made = student(family, mixed, tied=True, **wide)
    folder = made.write(tmp_path / "a", "gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
    theirs, dense = model.state_dict(), made.dense()
    assert set(theirs) == {*dense, "lm_head.weight"}
    assert all(torch.equal(theirs[name], dense[name]) for name in dense)
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"):
        assert getattr(model.config, key) == pytest.approx(made.config[key])


@pytest.mark.parametrize("heads", [1, 2, 9])
def test_rows_are_interleaved_as_the_converter_does(heads):
    rows = torch.arange(heads * 8 * 3).view(heads * 8, 3)
    found = gguf_names.interleaved(rows, heads)
    theirs = rows.numpy().reshape(heads, 2, 4, 3).swapaxes(1, 2).reshape(rows.shape)
    assert found.tolist() == theirs.tolist()
    assert torch.equal(gguf_names.straightened(found, heads), rows)


def test_asymmetric_weights_are_those_of_the_file(student, every_linear, tmp_path):
    made = student("llama", every_linear(4, 32, False))
    artifact, dense = open_artifact(made.write(tmp_path / "a", "gguf")), made.dense()
    worst = max(float((artifact.tensor(n) - dense[n]).abs().max()) for n in dense)
    assert 0 < worst < 1e-3
    for name in artifact.matrices:
        codes = artifact.rounded(name).codes
        assert codes.shape == (made.anatomy.tensors[f"{name}.weight"])


def test_the_file_says_what_llama_cpp_needs(student, every_linear, tmp_path):
    made = student("llama", every_linear(4, 32, True), tied=True)
    fields = read_gguf(made.write(tmp_path / "a", "gguf") / "model.gguf").fields
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 2
    assert fields["llama.block_count"] == 2
    assert fields["llama.vocab_size"] == made.anatomy.vocab_size
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.bos_token_id"] == 257
    assert fields["tokenizer.chat_template"].startswith("{")


def test_llama3_turns_by_divisors_of_its_own(student, every_linear, tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    made = student("llama", every_linear(4, 32, True), rope_parameters=rope)
    folder = made.write(tmp_path / "a", "gguf")
    assert read_gguf(folder / "model.gguf").shapes["rope_freqs.weight"]
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from compress.artifact.gguf_header import frequencies

    config = AutoConfig.from_pretrained(made.teacher)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = scaled.numel() * 2
    plain = 500000.0 ** -(torch.arange(0, width, 2) / width)
    torch.testing.assert_close(plain / frequencies(made.config, made.anatomy), scaled)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "scheme", "message"),
    [
        ("gpt2", (4, 32, True), "gpt2: written are llama, mistral, qwen2, qwen3"),
        ("llama", (4, 16, True), "groups of 16; its blocks are 32 columns"),
        ("llama", (8, 32, False), "8 bits on an asymmetric grid; Q8_0 has no minimum"),
    ],
)
def test_what_it_cannot_hold_is_refused(student, every_linear, tmp_path, family, scheme, message):
    made = student(family, every_linear(*scheme))
    schemes = {linear.name: Scheme(*scheme) for linear in made.anatomy.linears}
    (found,) = gguf.refusals(made.anatomy, schemes)
    assert message in found
    with pytest.raises(ArtifactError):
        made.write(tmp_path / "a", "gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "the rotation yarn"),
        ({"sliding_window": 8, "max_position_embeddings": 128}, "a window of 8 tokens"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    student, every_linear, tmp_path, change, message
):
    made = student("llama", every_linear(4, 32, True))
    made.config |= change
    with pytest.raises(ArtifactError, match=message):
        made.write(tmp_path / "a", "gguf")
    assert not (tmp_path / "a" / "config.json").exists()


@pytest.fixture(scope="module")
def file(tmp_path_factory, tiny_model):
    from artifact.conftest import Student

    def plan(name):
        return None if "embed" in name or "head" in name else (4, 32, False)

    return Student(tiny_model("llama"), plan).write(tmp_path_factory.mktemp("gguf") / "a", "gguf")


@pytest.fixture
def folder(file, tmp_path):
    import shutil

    return shutil.copytree(file, tmp_path / "copy")


def edited(folder, change):
    path = folder / "model.gguf"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def in_place(old, new):
    assert len(old) == len(new)

    def change(data):
        data[:] = data.replace(old, new)

    return change


BROKEN = {
    "truncated": lambda data: data.__delitem__(slice(-1000, None)),
    "no header": lambda data: data.__setitem__(slice(0, 4), b"GGML"),
    "a stranger": in_place(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"),
    "another block": in_place(b"blk.1.attn_q.weight", b"blk.7.attn_q.weight"),
    "another architecture": in_place(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwen2"),
    "a tail": in_place(b"blk.0.attn_norm.weight", b"blk.0.attn_norm.weighs"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_clear_error(folder, case):
    edited(folder, BROKEN[case])
    with pytest.raises(CompressError, match=r"model\.gguf|config\.json promises 2 blocks"):
        open_artifact(folder)


CONFIGS = {
    "version": (lambda c: c["quantization_config"].update(version=2), "version"),
    "another file": (lambda c: c["quantization_config"].update(file="/etc/passwd"), "file"),
    "heads": (lambda c: c.update(num_attention_heads=48), "heads"),
    "no heads": (lambda c: c.update(num_attention_heads=None), "heads"),
    "family": (lambda c: c.update(model_type="gpt2"), "architecture"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_of_another_file_is_refused(folder, case):
    change, message = CONFIGS[case]
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompressError, match=message):
        open_artifact(folder)


def test_minima_that_no_grid_has_are_refused(folder):
    name = "model.layers.0.self_attn.q_proj"
    info = open_artifact(folder).checkpoint._stored[f"{name}.Q4_1"]
    edited(folder, lambda data: data.__setitem__(slice(info.start + 2, info.start + 4), b"\1\2"))
    with pytest.raises(ArtifactError, match=f"{name}: 1 minima that are no whole number of steps"):
        open_artifact(folder).rounded(name)
    edited(folder, lambda data: data.__setitem__(slice(info.start, info.start + 2), b"\0\0"))
    with pytest.raises(ArtifactError, match="zero or not finite"):
        open_artifact(folder).rounded(name)


# --- tokenizers ----------------------------------------------------------------------------------

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex):
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**BYTES, "use_regex": False}]}


def tokenizer(folder, **changes):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    added = [
        {"id": 3, "content": "<s>", "special": True},
        {"id": 5, "content": "<t>", "special": False},
    ]
    told = {"model": model, "added_tokens": added, "pre_tokenizer": BYTES, "normalizer": None}
    (folder / "tokenizer.json").write_text(json.dumps({**told, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "gpt-2"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, BYTES]}}, "smollm"),
        ({"pre_tokenizer": split(LLAMA3)}, "llama-bpe"),
        ({"pre_tokenizer": split(LLAMA3.replace("{1,3}", "")), "normalizer": {"type": "NFC"}},
         "qwen2"),
    ],
)  # fmt: skip
def test_the_first_cut_has_llama_cpps_name(tmp_path, changes, name):
    found = read_vocabulary(tokenizer(tmp_path, **changes))
    assert (found.model, found.pre, found.scores) == ("gpt2", name, None)
    assert found.tokens == ("a", "b", "ab", "<s>", "[PAD4]", "<t>")
    assert found.types == (1, 1, 1, 3, 5, 4)


def test_sentencepiece_joins_by_scores(tmp_path):
    model = {
        "type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<0x0A>": 1, "▁": 2, "t": 3, "▁t": 4, "h": 5, "th": 6},
        "merges": ["▁ t", "t h"],
    }  # fmt: skip
    spaces = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    normalizer = {"type": "Sequence", "normalizers": spaces}
    changes = {"model": model, "added_tokens": [], "pre_tokenizer": None}
    found = read_vocabulary(tokenizer(tmp_path, **changes, normalizer=normalizer))
    assert (found.model, found.space_prefix) == ("llama", True)
    assert found.types == (2, 6, 1, 1, 1, 1, 1)
    assert found.scores[4] == 0
    assert found.scores[6] == -1
    assert found.scores[3] == -2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "Unigram"}}, "its model is 'Unigram'"),
        ({"model": []}, "not a tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "it cuts text by Whitespace"),
        ({"pre_tokenizer": None}, "it cuts text by"),
        ({"pre_tokenizer": split("(a+)+$")}, "as none of llama.cpp's"),
        ({"normalizer": {"type": "Lowercase"}}, "as none of llama.cpp's"),
        ({"model": {"type": "BPE", "vocab": {"a": 10**9}}}, "not numbered from 0"),
        ({"model": {"type": "BPE", "vocab": {"a": "0"}}}, "not a tokenizer"),
        ({"added_tokens": [{"id": 3}]}, "not a tokenizer"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        read_vocabulary(tokenizer(tmp_path, **changes))
    with pytest.raises(ModelError, match="cannot be read"):
        read_vocabulary(tmp_path / "nowhere")


# --- strangers' bytes ----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 2**31), new=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_no_header_is_more_than_a_clear_error(file, at, new, cut):
    """Both readers, on a file with some bytes changed or its end missing."""
    import tempfile
    from pathlib import Path

    from compress.artifact.gguf_file import GgufCheckpoint
    from compress.verify.gguf import read_file

    config, data = json.loads((file / "config.json").read_text()), _bytes_of(file)
    first = min(t.start for t in read_gguf(file / "model.gguf").tensors.values())
    place = at % first
    with tempfile.TemporaryDirectory() as scratch:
        changed = data[:place] + new + data[place + len(new) :]
        (Path(scratch) / "model.gguf").write_bytes(changed[:place] if cut else changed)
        for reader in (GgufCheckpoint, read_file):
            try:
                found = reader(Path(scratch), config)
            except CompressError:
                continue
            entries = found.tensors if reader is GgufCheckpoint else found[0]
            for name in entries:
                _ = found.read(name) if reader is GgufCheckpoint else entries[name].raw()


def _bytes_of(folder):
    return (folder / "model.gguf").read_bytes()
