"""Two artifacts side by side: what differs is named, and only like is subtracted from like."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from compress.artifact.manifest import write_manifest
from compress.cli.app import run
from compress.diff import ABSENT, Change, compare
from compress.errors import ArtifactError
from compress.results import (
    Divergence,
    Measured,
    Perplexity,
    Provenance,
    Results,
    Side,
    TaskScore,
    to_json,
)
from compress.storage import SINGLE, read_file, write_file

LOCK = """\
version: 1
teacher: {model: m, sha256: null}
stages:
  - quantize: {bits: 4, group_size: 64}
resolved: {recipe: r, threads: 2, versions: {torch: 2.13.0}, teacher_fingerprint: abc}
"""


def found(perplexity: float = 10.0, seq_len: int = 512, fingerprint: str = "f") -> Results:
    ppl = Perplexity(perplexity, "text", seq_len, seq_len, 4, 4 * (seq_len - 1))
    side = Side(1000, 4.5, ppl, (TaskScore("cloze", "accuracy", 100, 0.5, 0.05),))
    divergence = Divergence("text", 2048, 0.1, 0.05, 0.7, 0.9, 10, (0.0, 1.0), (1,))
    made = Provenance("r", LOCK, "m", fingerprint, "self", "c", 1024, 0, 2, "cpu")
    return Results(made, side, side, divergence, (), ())


def put(folder, results, *, lock=LOCK, hardware="a processor"):
    (folder / "recipe.lock.yaml").write_text(lock)
    (folder / "results.json").write_text(to_json(results))
    (folder / "measured.json").write_text(to_json(Measured({"total": 1.0}, 1, hardware, "today")))
    write_manifest(folder, {})
    return folder


@pytest.fixture
def two(tiny_llama, tmp_path):
    return [put(shutil.copytree(tiny_llama, tmp_path / name), found()) for name in "ab"]


def test_copies_are_identical(two):
    difference = compare(*two)
    assert difference.identical
    assert (difference.files, difference.recipe, difference.environment) == ((), (), ())
    assert difference.tensors.same == len(read_file(two[0] / SINGLE))
    assert {metric.difference for metric in difference.metrics} == {0}
    assert difference.hashed == ()


def test_another_hour_and_machine_are_told_and_leave_them_identical(two):
    put(two[1], found(), hardware="another processor")
    difference = compare(*two)
    assert difference.identical
    assert difference.environment == (Change("hardware", "a processor", "another processor"),)


def test_recipe_fields_are_named_one_by_one(two):
    other = LOCK.replace("bits: 4, group_size: 64", "bits: 8").replace("threads: 2", "threads: 4")
    put(two[1], found(), lock=other)
    difference = compare(*two)
    assert not difference.identical
    assert [change.name for change in difference.files] == ["recipe.lock.yaml"]
    assert difference.recipe == (
        Change("stages[0].quantize.bits", 4, 8),
        Change("stages[0].quantize.group_size", 64, ABSENT),
    )
    assert difference.environment == (Change("threads", 2, 4),)


def test_tensors_are_named_by_what_became_of_them(two):
    tensors = {name: tensor.clone() for name, tensor in read_file(two[1] / SINGLE).items()}
    tensors["model.norm.weight"][0] += 1
    tensors["new"] = tensors.pop("lm_head.weight")
    write_file(two[1] / SINGLE, tensors)
    write_manifest(two[1], {})
    changed = compare(*two).tensors
    assert changed.missing == ("lm_head.weight",)
    assert changed.extra == ("new",)
    assert changed.changed == ("model.norm.weight",)
    assert changed.same == len(tensors) - 2


def test_a_manifest_is_believed_unless_told_otherwise(two):
    tensors = {name: tensor.clone() for name, tensor in read_file(two[1] / SINGLE).items()}
    tensors["model.norm.weight"][0] += 1
    write_file(two[1] / SINGLE, tensors)  # and the manifest says otherwise
    assert compare(*two).identical
    rehashed = compare(*two, rehash=True)
    assert rehashed.tensors.changed == ("model.norm.weight",)
    assert rehashed.hashed == tuple(map(str, two))


def test_only_numbers_of_one_protocol_are_subtracted(two):
    put(two[1], found(11.0, 256))
    metrics = {metric.name: metric for metric in compare(*two).metrics}
    assert metrics["after.perplexity"].difference is None
    assert (
        metrics["after.perplexity"].note == "seq_len 512, 256, stride 512, 256, tokens 2044, 1020"
    )
    assert metrics["after.size_bytes"].difference == 0
    put(two[1], found(11.0, fingerprint="another"))
    metrics = {metric.name: metric for metric in compare(*two).metrics}
    assert metrics["after.perplexity"].difference == pytest.approx(1.0)
    assert metrics["divergence.kl_mean"].note == "teacher_fingerprint f, another"


def test_a_folder_without_records_is_compared_by_its_files(two, tiny_llama):
    difference = compare(two[0], tiny_llama)
    assert [change.name for change in difference.files] == ["recipe.lock.yaml"]
    assert difference.metrics == ()
    assert difference.hashed == (str(tiny_llama),)


def test_what_cannot_be_compared_is_said(two, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        compare(two[0], tmp_path / "nowhere")
    (two[1] / "results.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"results\.json: not what this version writes"):
        compare(*two)
    (two[1] / "recipe.lock.yaml").write_text("a: &a 1\n")
    with pytest.raises(ArtifactError, match="is an anchor"):
        compare(*two)


def test_the_command_says_it_first_and_exits_with_it(two, capsys):
    paths = [str(path) for path in two]
    assert run(["diff", *paths]) == 0
    assert capsys.readouterr().out.startswith("Identical: weights, config, tokenizer and lock")
    put(two[1], dataclasses.replace(found(), after=None), lock=LOCK.replace("bits: 4", "bits: 8"))
    assert run(["diff", *paths]) == 1
    out = capsys.readouterr().out
    assert out.startswith("Different: 1 file, 1 recipe field.")
    assert "stages[0].quantize.bits" in out
    assert run(["diff", *paths, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["identical"] is False
    assert told["recipe"] == [{"name": "stages[0].quantize.bits", "first": 4, "second": 8}]
    assert run(["diff", paths[0], "nowhere"]) == 2
