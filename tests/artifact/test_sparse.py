"""Masks and what they keep: they go there and back, are smaller, and everyone reads them."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from verify.conftest import artifact  # noqa: F401 - a fixture
from verify.faults import PRUNED, PRUNED_CODES

from compress.artifact.formats import sparse
from compress.artifact.layout import open_artifact
from compress.errors import ArtifactError
from compress.export import export
from compress.kernels.masks import best
from compress.runtime.engine import Engine

Q = "model.layers.0.self_attn.q_proj"


def pruned(rows, columns, kept, dtype=torch.bfloat16):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    return weight.masked_fill(~best(weight.abs().float(), kept), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kept", [1, 100, 511])
def test_weights_go_there_and_back(dtype, kept):
    weight = pruned(8, 64, kept, dtype)
    stored = dict(sparse.encode("M", weight, kept))
    assert (stored["M.mask"].shape, stored["M.kept"].shape) == ((8, 2), (kept,))
    found = sparse.Sparse(8, 64, kept, "BF16")
    assert torch.equal(sparse.decode("M", found, stored), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("nonzero", [0, 100, 256])
def test_codes_go_there_and_back_and_are_filled_up(bits, nonzero):
    generator = torch.Generator().manual_seed(bits)
    zero = torch.randint(0, 2**bits, (8, 64), generator=generator, dtype=torch.uint8)
    mask = best(torch.rand(8, 64, generator=generator), nonzero)
    codes = torch.where(mask, zero ^ 1, zero)
    stored = dict(sparse.encode_codes("M", codes, zero, bits, kept=256))
    assert stored["M.kept_codes"].shape == (256 * bits // 32,)
    assert torch.equal(sparse.decode_codes("M", stored, zero, bits), codes)


def test_a_mask_of_another_number_is_refused():
    with pytest.raises(ArtifactError, match="M: its mask keeps 10 weights, not 11"):
        dict(sparse.encode("M", pruned(8, 64, 10), 11))
    codes, zero = torch.ones(8, 64, dtype=torch.uint8), torch.zeros(8, 64, dtype=torch.uint8)
    with pytest.raises(ArtifactError, match="keeps 512 weights, not 3"):
        dict(sparse.encode_codes("M", codes, zero, 4, kept=3))


@pytest.mark.parametrize(
    ("pays", "words"),
    [
        (sparse.weights_pay(8, 64, 256, 16), True),
        (sparse.weights_pay(8, 64, 500, 16), False),
        (sparse.weights_pay(8, 40, 160, 16), False),  # rows that end within a word
        (sparse.codes_pay(8, 64, 256, 4), True),
        (sparse.codes_pay(8, 64, 256, 2), False),
        (sparse.codes_pay(8, 40, 160, 4), False),
    ],
)
def test_masks_are_stored_only_where_they_are_smaller(pays, words):
    assert pays is words


@pytest.mark.parametrize("of", [PRUNED, PRUNED_CODES], ids=["weights", "codes"])
def test_an_artifact_with_masks_runs_and_is_exported_exactly(artifact, tmp_path, of):  # noqa: F811
    folder = artifact(*of, dtype="bfloat16")
    found = open_artifact(folder)
    assert f"{Q}.mask" in found.checkpoint.tensors
    weight = found.tensor(f"{Q}.weight")
    assert int((weight != 0).sum()) <= weight.numel() // 2
    made = export(folder, format="compressed-tensors", out=tmp_path / "plain")
    assert made.difference.exact
    assert made.size_bytes > found.size_bytes
    assert torch.equal(open_artifact(made.folder).tensor(f"{Q}.weight").float(), weight.float())
    texts = [
        [piece.text for piece in Engine.open(one, dtype="float32").generate("ab", max_new_tokens=8)]
        for one in (folder, made.folder)
    ]
    assert texts[0] == texts[1]


def test_a_broken_mask_is_refused_by_name(artifact, tmp_path):  # noqa: F811
    folder = shutil.copytree(artifact(*PRUNED), tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{Q}.mask"].view(torch.uint8)[0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"{Q}: its mask keeps \d+ weights, not 2048"):
        open_artifact(folder).tensor(f"{Q}.weight")
    del tensors[f"{Q}.mask"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"{Q}\.mask: missing"):
        open_artifact(folder)
