from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress import storage
from compress.errors import CalibrationError, ModelError, RunError, StorageError
from compress.surgery import load
from compress.teacher import gguf, sources
from compress.teacher.folder import open_folder


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_materialized_teacher_is_what_transformers_loads(family, tied, tiny_model):
    from transformers import AutoModelForCausalLM

    folder = tiny_model(family, tied=tied)
    ids = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    model = load.materialize(open_folder(folder), torch.float32)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_materialize_casts_and_leaves_the_teacher_alone(tiny_tied):
    teacher = open_folder(tiny_tied)
    model = load.materialize(teacher, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert teacher.block(0)["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


def test_parameters_that_are_missing_or_left_over_are_named(tiny_tied):
    teacher = open_folder(tiny_tied)
    outside = teacher.outside()
    outside["model.odd.weight"] = outside.pop("model.norm.weight")
    odd = SimpleNamespace(
        config=teacher.config,
        anatomy=teacher.anatomy,
        block=teacher.block,
        outside=lambda: outside,
        inputs=teacher.inputs,
    )
    with pytest.raises(
        ModelError, match=r"1 parameters are missing \(model\.norm\.weight\) and 1 .*odd"
    ):
        load.materialize(odd, torch.float32)


def test_a_teacher_without_its_final_norm_is_refused(tiny_tied, tmp_path):
    folder = shutil.copytree(tiny_tied, tmp_path / "odd")
    tensors = storage.read_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    storage.write_file(folder / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=r"model\.norm\.weight: missing"):
        open_folder(folder)


def test_a_folder_without_a_tokenizer_is_refused(tiny_tied, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_tied / "config.json").read_bytes())
    with pytest.raises(ModelError, match="its tokenizer cannot be read"):
        load.tokenizer(tmp_path)


def test_a_conversation_is_rendered_with_the_template(tiny_tied):
    tokenizer = load.tokenizer(tiny_tied)
    messages = [{"role": "user", "content": "hi"}]
    assert load.chat(tokenizer, messages) == "<|user|>hi<|eos|>"
    assert load.chat(tokenizer, messages, answering=True) == "<|user|>hi<|eos|><|assistant|>"
    tokenizer.chat_template = "{{ raise_exception('only pairs') }}"
    with pytest.raises(CalibrationError, match=r"refuses them \(only pairs\)"):
        load.chat(tokenizer, messages)
    tokenizer.chat_template = None
    with pytest.raises(CalibrationError, match="no chat template"):
        load.chat(tokenizer, messages)


def test_what_the_converting_process_says_last_is_the_reason(tmp_path, monkeypatch):
    class Done:
        returncode, stderr = 1, "Traceback\nValueError: no such quantization"

    monkeypatch.setattr(load.subprocess, "run", lambda *_, **__: Done)
    with pytest.raises(ModelError, match=r"dequantized \(ValueError: no such quantization\)"):
        load.convert_gguf(tmp_path / "a.gguf", tmp_path / "out", "bfloat16")
    Done.returncode = -9
    with pytest.raises(RunError, match=r"was killed \(signal 9\)"):
        load.convert_gguf(tmp_path / "a.gguf", tmp_path / "out", "bfloat16")


@pytest.mark.parametrize(
    "said",
    [
        "OSError: [Errno 28] No space left on device: 'config.json'",
        "SafetensorError: I/O error: No space left on device (os error 28)\nsys:1: a warning",
        "OSError: [Errno 30] Read-only file system: 'config.json'",
    ],
)
def test_a_disk_that_refuses_the_converting_process_is_no_fault_of_the_file(
    tmp_path, monkeypatch, said
):
    done = SimpleNamespace(returncode=1, stderr=f"Traceback\n{said}")
    monkeypatch.setattr(load.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(StorageError, match=r"out: cannot be written \((No space|Read-only)"):
        load.convert_gguf(tmp_path / "a.gguf", tmp_path / "out", "bfloat16")


@pytest.fixture
def gguf_file(tiny_tied, tmp_path):
    """A tiny Llama as llama.cpp would store it: query and key rows interleaved, in float32."""
    from gguf import GGUFWriter

    tokenizer = load.tokenizer(tiny_tied)
    writer = GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(320)
    words = tokenizer.get_vocab()
    names = sorted(words, key=words.__getitem__)
    names += ["ab", *(f"<unused{i}>" for i in range(319 - len(names)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<") and len(name) > 1 else 1 for name in names])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    teacher = open_folder(tiny_tied)
    tensors = teacher.outside() | teacher.block(0) | teacher.block(1)
    short = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd",
        "model.norm": "output_norm", "model.layers": "blk",
    }  # fmt: skip
    for name, tensor in tensors.items():
        data = tensor.numpy()
        for heads, kind in ((4, "q_proj"), (2, "k_proj")):
            if kind in name:
                data = data.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(data.shape)
        for long, brief in short.items():
            name = name.replace(long, brief)
        writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


@pytest.mark.slow
def test_a_gguf_file_becomes_the_dense_folder_it_was_made_from(gguf_file, tiny_tied, tmp_path):
    told = []
    cache = tmp_path / "cache"
    made = sources.fetch(str(gguf_file), dtype="float32", cache=cache, watch=told.append)
    assert [(p.step, p.done, p.total) for p in told] == [("dequantize", 0, 1), ("dequantize", 1, 1)]
    ids = torch.arange(20)[None]
    expected = load.materialize(open_folder(tiny_tied), torch.float32)(ids).logits
    got = load.materialize(made, torch.float32)(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert made.anatomy.tied
    assert str(tmp_path) not in (made.folder / "config.json").read_text()
    assert load.tokenizer(made.folder)("a b")["input_ids"]
    again = sources.fetch(str(gguf_file), dtype="float32", cache=cache, watch=told.append)
    assert (again.fingerprint, len(told)) == (made.fingerprint, 2)


def test_a_truncated_gguf_file_is_refused_before_it_is_converted(gguf_file, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "convert_gguf", lambda *_: pytest.fail("was converted"))
    gguf_file.write_bytes(gguf_file.read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"tiny\.gguf: (truncated|not a whole GGUF file)"):
        gguf.convert(gguf_file, tmp_path / "dense", "float32")
    assert not (tmp_path / "dense").exists()
