from __future__ import annotations

import shutil

import pytest
import torch

from compress import storage
from compress.errors import ModelError
from compress.surgery import load
from compress.teacher.folder import canonical_names, open_folder


def test_blocks_and_the_rest_together_are_the_checkpoint_uncast(tiny_llama):
    teacher = open_folder(tiny_llama)
    stored = storage.read_file(tiny_llama / "model.safetensors")
    read = teacher.outside()
    for block in teacher.anatomy.blocks:
        read |= teacher.block(block.index)
    assert read.keys() == stored.keys()
    assert all(torch.equal(read[name], stored[name]) for name in stored)
    assert {t.dtype for t in read.values()} == {torch.float32}
    assert teacher.size_bytes == sum(t.nbytes for t in stored.values())


def test_fingerprint_follows_the_files_and_not_their_place(tiny_tied, tmp_path):
    copy = shutil.copytree(tiny_tied, tmp_path / "copy")
    first = open_folder(tiny_tied).fingerprint
    assert open_folder(copy).fingerprint == first
    (copy / "tokenizer.json").write_text("{}")
    assert open_folder(copy).fingerprint != first


def test_a_tie_that_the_config_leaves_to_the_default_is_written_out(tiny_tied, tiny_llama):
    assert open_folder(tiny_tied).config["tie_word_embeddings"] is True
    assert open_folder(tiny_llama).config["tie_word_embeddings"] is False


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_names_without_the_base_prefix_and_buffers_are_made_canonical(family, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model(family, tied=True), tmp_path / "bare")
    tensors = storage.read_file(folder / "model.safetensors")
    prefix = next(iter(tensors)).split(".")[0] + "."
    bare = {name.removeprefix(prefix): tensor.clone() for name, tensor in tensors.items()}
    buffers = {"gpt2": "h.0.attn.bias", "gpt_neox": "layers.0.attention.bias"}
    bare[buffers.get(family, "decoder.layers.0.attn.masked_bias")] = torch.ones(1, 1, 8, 8)
    bare["layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)
    storage.write_file(folder / "model.safetensors", bare)
    teacher = open_folder(folder)
    assert set(teacher.anatomy.tensors) == set(tensors)
    ids = torch.arange(16)[None]
    expected = load.materialize(open_folder(tiny_model(family, tied=True)), torch.float32)(ids)
    assert torch.equal(load.materialize(teacher, torch.float32)(ids).logits, expected.logits)


def test_a_tied_head_stored_twice_is_read_once():
    stored = {"model.layers.0.x": 1, "model.embed_tokens.weight": 1, "lm_head.weight": 1}
    tied = {"model_type": "llama", "tie_word_embeddings": True}
    assert "lm_head.weight" not in canonical_names(tied, stored)
    assert "lm_head.weight" in canonical_names({"model_type": "llama"}, stored)
    assert "lm_head.weight" not in canonical_names({"model_type": "gemma2"}, stored)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map asks to run Python code"),
        ({"quantization_config": {"quant_method": "awq"}}, r"already quantized \(awq\)"),
        ({"quantization_config": True}, "already quantized"),
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported. Supported: gemma"),
        ({"num_local_experts": 8}, r"mixture of experts \(num_local_experts=8\)"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"num_hidden_layers": 3}, r"promises 3 blocks, the tensors hold 2 \(missing: 2"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(broken, changes, message):
    with pytest.raises(ModelError, match=message):
        open_folder(broken(**changes))


def test_a_folder_without_what_a_teacher_needs_is_refused(broken, tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: no such folder\. Give"):
        open_folder(tmp_path / "nowhere")
    folder = broken()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle"):
        open_folder(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        open_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        open_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: missing"):
        open_folder(folder)


def test_a_truncated_shard_is_refused(broken):
    path = broken() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: truncated"):
        open_folder(path.parent)
