"""Scales of keys and values, as the independent reader finds them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.recipe.load import load
from compress.verify.layout import open_folder
from compress.verify.run import verify

CASES = [
    ("packed", "tensor"), ("packed", "channel"), ("packed", "token"),
    ("compressed-tensors", "head"),
]  # fmt: skip
NAME = "model.layers.1.self_attn.k_scale"


@pytest.fixture(scope="module")
def artifact(tiny_llama, tmp_path_factory):
    """A finished run with a stage `kv_cache`, its manifest with a reference."""
    made = {}

    def make(format, granularity):
        if (format, granularity) not in made:
            base = tmp_path_factory.mktemp("cached")
            (base / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
            (base / "mine.yaml").write_text(
                "version: 1\n"
                f"teacher: {{model: {tiny_llama}}}\n"
                f"calibration: {{set: {base}/text.txt, samples: 4, seq_len: 32}}\n"
                "stages:\n  - quantize: {method: rtn, group_size: 32}\n"
                f"  - kv_cache: {{granularity: {granularity}}}\n"
                f"evaluate: {{suite: none}}\nartifact: {{format: {format}}}\n"
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("COMPRESS_CACHE", str(base / "cache"))
                pipeline.apply(load(str(base / "mine.yaml")), out=base / "out")
            made[format, granularity] = base / "out"
        return made[format, granularity]

    return make


@pytest.fixture
def damaged(artifact, tmp_path):
    """A copy with some tensors changed, or its config; the manifest is not made to fit."""

    def make(format, granularity, tensors=None, scheme=None):
        folder = tmp_path / "copy"
        shutil.copytree(artifact(format, granularity), folder)
        if tensors:
            found = load_file(folder / "model.safetensors")
            tensors(found)
            save_file(found, folder / "model.safetensors", {"format": "pt"})
        if scheme:
            config = json.loads((folder / "config.json").read_text())
            scheme(config["quantization_config"])
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize(("format", "granularity"), CASES)
def test_a_clean_artifact_passes_and_reads_as_its_writer_reads_it(artifact, format, granularity):
    folder = artifact(format, granularity)
    found = verify(folder, consumers=("compress",))
    assert found.passed, found.failures
    ours, theirs = open_folder(folder).kv(1), open_artifact(folder).kv(1)
    assert (ours.numbers, ours.granularity) == (theirs.numbers, theirs.granularity)
    if granularity != "token":
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def failed(folder):
    return {check.name: check.detail for check in verify(folder, consumers=()).failures}


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("layout", lambda t: t.pop(NAME)),
        ("layout", lambda t: t.update({NAME: t[NAME].view(-1)[:1]})),
        ("weights", lambda t: t[NAME].mul_(2)),
        ("weights", lambda t: t.update({NAME: t[NAME.replace("k_", "v_")].clone()})),
        ("numbers", lambda t: t[NAME].fill_(0)),
        ("numbers", lambda t: t[NAME].fill_(float("nan"))),
        ("numbers", lambda t: t[NAME].add_(2.0**-13)),
    ],
    ids=["missing", "shape", "doubled", "of values", "zero", "nan", "inexact"],
)
def test_a_fault_in_a_scale_is_caught(damaged, check, change):
    assert check in failed(damaged("packed", "channel", change))


@pytest.mark.parametrize(
    ("format", "change"),
    [
        ("packed", lambda q: q["kv_cache"].update(numbers="fp8_e4m3")),
        ("packed", lambda q: q["kv_cache"].update(granularity="head")),
        ("packed", lambda q: q.pop("kv_cache")),
        ("compressed-tensors", lambda q: q["kv_cache_scheme"].update(type="float")),
        ("compressed-tensors", lambda q: q["kv_cache_scheme"].update(dynamic=True)),
        ("compressed-tensors", lambda q: q.update(kv_cache_scheme=None)),
    ],
)
def test_a_config_that_says_something_else_is_caught(damaged, format, change):
    granularity = "channel" if format == "packed" else "head"
    found = failed(damaged(format, granularity, scheme=change))
    assert found.keys() & {"layout", "logits"}
