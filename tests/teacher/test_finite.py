from __future__ import annotations

import shutil

import pytest
import torch

from compress import storage
from compress.errors import ModelError
from compress.teacher import finite
from compress.teacher.folder import open_folder


def spoilt(source, folder, **values):
    copy = shutil.copytree(source, folder / "copy")
    path = copy / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in storage.read_file(path).items()}
    for name, (value, dtype) in values.items():
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[-1] = value
    storage.write_file(path, tensors)
    return open_folder(copy)


def test_a_sound_teacher_passes(tiny_tied):
    finite.check(open_folder(tiny_tied))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_named_wherever_it_lies(tiny_tied, tmp_path, value, dtype):
    names = ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight")
    teacher = spoilt(tiny_tied, tmp_path, **dict.fromkeys(names, (value, dtype)))
    with pytest.raises(ModelError, match=f"copy: {names[0]}, {names[1]} hold NaN or infinite"):
        finite.check(teacher)


def test_a_large_tensor_is_looked_at_in_pieces(tiny_tied, tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "_ELEMENTS", 100)
    teacher = spoilt(tiny_tied, tmp_path, **{"model.norm.weight": (torch.nan, torch.float32)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight hold"):
        finite.check(teacher)
