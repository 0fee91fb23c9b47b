"""Scales of keys and values in the formats that have a place for them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.artifact.formats import kv
from compress.artifact.layout import open_artifact
from compress.artifact.write import companions, write
from compress.errors import ArtifactError
from compress.kernels.kv import KVScales
from compress.recipe.kv_cache import HELD_BY

HEADS, WIDTH = 2, 16
FINE = torch.arange(1, HEADS * WIDTH + 1).view(HEADS, WIDTH) / 64
SCALES = {"tensor": FINE[0, :1], "head": FINE[:, :1], "channel": FINE, "token": None}
HELD = [(format, name) for name, formats in HELD_BY.items() for format in formats]


def scales(granularity, numbers="int8"):
    scale = SCALES[granularity]
    if scale is None:
        return KVScales(numbers, None, None)
    return KVScales(numbers, scale.clone(), scale * 2)  # of one block: shards hold no tensor twice


def made(student, folder, format, granularity, *, numbers="int8", plan=None, blocks=2):
    source = student("llama", plan or (lambda name: None))
    attentions = [block.attention for block in source.anatomy.blocks][:blocks]
    write(
        folder, [*source.parts(), *((name, scales(granularity, numbers)) for name in attentions)],
        anatomy=source.anatomy, config=source.config, tokenizer_files=companions(source.teacher),
        format=format,
    )  # fmt: skip
    return folder


def changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("numbers", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("format", "granularity"), HELD)
def test_scales_come_back_as_they_were(
    student, every_linear, tmp_path, format, granularity, quantized, numbers
):
    plan = every_linear(4, 32, True) if quantized else None
    folder = made(student, tmp_path / "a", format, granularity, numbers=numbers, plan=plan)
    artifact = open_artifact(folder)
    found = artifact.kv(1)
    assert artifact.cached == kv.KVScheme(numbers, granularity)
    assert (found.numbers, found.granularity) == (numbers, granularity)
    if granularity == "token":
        assert found.keys is None
        assert found.values is None
    else:
        assert torch.equal(found.keys, SCALES[granularity])
        assert torch.equal(found.values, SCALES[granularity] * 2)
    extra = 2 * 2 * HEADS * 2 if granularity == "token" else 0
    assert artifact.kv_bytes_per_token == 2 * 2 * HEADS * WIDTH + extra
    assert set(artifact.anatomy.tensors) == set(student("llama", lambda name: None).anatomy.tensors)


def test_what_config_json_says_is_what_its_readers_know(student, tmp_path):
    folder = made(student, tmp_path / "a", "compressed-tensors", "head", numbers="fp8_e4m3")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    from compressed_tensors.quantization import QuantizationConfig

    told = QuantizationConfig.model_validate(config).kv_cache_scheme
    assert (told.num_bits, told.type, told.strategy) == (8, "float", "attn_head")
    assert told.symmetric
    assert told.dynamic is False
    assert load_file(folder / "model.safetensors")["model.layers.0.self_attn.k_scale"].shape == (
        HEADS,
        1,
        1,
    )
    config = json.loads(
        (made(student, tmp_path / "b", "packed", "channel") / "config.json").read_text()
    )
    told = config["quantization_config"]["kv_cache"]
    assert told == {"numbers": "int8", "granularity": "channel"}


@pytest.mark.parametrize("granularity", ["tensor", "head"])
@pytest.mark.parametrize("numbers", ["int8", "fp8_e4m3"])
@pytest.mark.parametrize("quantized", [False, True])
def test_transformers_caches_what_a_walk_rounds(
    student, every_linear, tmp_path, granularity, numbers, quantized
):
    from transformers import AutoModelForCausalLM

    from compress.surgery.walk import hidden_states, logits

    plan = every_linear(4, 32, True) if quantized else None
    folder = made(
        student, tmp_path / "a", "compressed-tensors", granularity, numbers=numbers, plan=plan
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(ids, use_cache=True).logits[0]
    artifact = open_artifact(folder)
    ours = logits(artifact, hidden_states(artifact, ids, device="cpu", dtype=torch.float32)[0])
    plain = student("llama", lambda name: None)
    assert (ours - theirs).abs().mean() < 1e-3
    assert plain.anatomy == artifact.anatomy


@pytest.mark.parametrize(
    ("format", "granularity"),
    [("compressed-tensors", "channel"), ("dense", "head"), ("gptq", "tensor")],
)
def test_a_format_without_a_place_says_so_before_anything_is_whole(
    student, tmp_path, format, granularity
):
    with pytest.raises(ArtifactError, match=f"{format}: has no place for scales of keys and"):
        made(student, tmp_path / "a", format, granularity)
    assert not (tmp_path / "a" / "config.json").exists()


def test_scales_for_some_blocks_are_refused(student, tmp_path):
    with pytest.raises(ArtifactError, match="1 of 2 blocks"):
        made(student, tmp_path / "a", "packed", "head", blocks=1)


NAME = "model.layers.1.self_attn.v_scale"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NAME), f"{NAME}: missing"),
        (lambda t: t.update({NAME: t[NAME].float()}), f"{NAME}: found F32"),
        (lambda t: t.update({NAME: t[NAME][:1]}), rf"{NAME}: found F16 \[1, 1\]"),
        (lambda t: t.update({"model.norm.k_scale": t[NAME].clone()}), "model.norm.k_scale: extra"),
    ],
    ids=["missing", "dtype", "shape", "extra"],
)
def test_scales_that_do_not_fit_are_named(student, tmp_path, change, message):
    folder = made(student, tmp_path / "a", "packed", "head")
    changed(folder, change)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(folder)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_rounds_nothing_is_named(student, tmp_path, value):
    folder = made(student, tmp_path / "a", "packed", "head")
    changed(folder, lambda tensors: tensors[NAME].fill_(value))
    with pytest.raises(ArtifactError, match=f"{NAME}: not all of it is above zero"):
        open_artifact(folder).kv(1)


@pytest.mark.parametrize(
    ("format", "field", "value"),
    [
        ("packed", "numbers", "int4"), ("packed", "granularity", "block"), ("packed", "zero", 1),
        ("compressed-tensors", "num_bits", 4), ("compressed-tensors", "symmetric", False),
        ("compressed-tensors", "dynamic", True), ("compressed-tensors", "strategy", "channel"),
    ],
)  # fmt: skip
def test_a_scheme_that_is_not_known_is_refused(student, tmp_path, format, field, value):
    folder = made(student, tmp_path / "a", format, "head")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][kv._FIELD[format]][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=f"{kv._FIELD[format]} .* is not read here"):
        open_artifact(folder)


def test_recipes_know_which_formats_hold_what():
    known = {
        name: tuple(f for f, names in kv._GRANULARITIES.items() if name in names)
        for name in HELD_BY
    }
    assert known == HELD_BY
