"""compress from Python: what may be handed in, what comes back, and what it does not import."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import imported_by

import compress
from compress import library
from compress.errors import ArtifactError, RecipeError, RequestError
from compress.results import Divergence, Side

UNCOMPILED = {"num_attention_heads": 8, "head_dim": 8}  # heads too narrow for compiled steps
QUICKSTART = library.find("recipes", "quickstart")


@pytest.mark.parametrize(
    "given",
    ["quickstart", str(QUICKSTART), QUICKSTART, yaml.safe_load(QUICKSTART.read_text("utf-8"))],
    ids=lambda given: type(given).__name__,
)
def test_a_recipe_by_name_path_or_mapping_is_the_same(given):
    found = compress.load(given)
    assert isinstance(found, compress.Recipe)
    same = found.model_copy(update={"resolved": compress.load("quickstart").resolved})
    assert same == compress.load("quickstart")
    assert compress.load(found) == found


def test_changes_are_what_set_arguments_are():
    changed = compress.load(
        "quickstart",
        quantize={"bits": 8, "overrides": {"*.down_proj": {"bits": 4}}},
        calibration={"samples": 64, "set": ["self", "smoke"]},
        teacher={"sha256": None, "model": Path("tiny")},
    )
    assert changed.resolved.sets == (
        "quantize.bits=8",
        'quantize.overrides={"*.down_proj": {"bits": 4}}',
        "calibration.samples=64",
        'calibration.set=["self", "smoke"]',
        "teacher.model=tiny",
        "teacher.sha256=null",
    )
    assert changed == compress.load("quickstart", changed.resolved.sets)
    assert (changed.teacher.model, changed.teacher.sha256) == ("tiny", None)
    again = compress.load(changed, calibration={"seed": 7})
    assert (again.calibration.seed, again.calibration.samples) == (7, 64)
    assert again.resolved.sets == (*changed.resolved.sets, "calibration.seed=7")
    assert again.resolved.recipe == "quickstart"


@pytest.mark.parametrize("text", ["no", "1e3", "a: b", "#x", "", "~", "[1", "ü", 'quoted "word"'])
def test_a_text_stays_the_text_that_it_is(text):
    assert compress.load("quickstart", teacher={"model": text or "x"}).teacher.model == text or "x"


def test_mistakes_of_a_mapping_are_told_by_their_fields():
    written = yaml.safe_load(QUICKSTART.read_text("utf-8"))
    written["stages"][0]["quantize"]["bits"] = 5
    with pytest.raises(RecipeError, match=r"^recipe  stages\[0\]\.quantize\.bits: 5 "):
        compress.load(written)
    with pytest.raises(RecipeError, match=r"--set quantize\.bitz=8 .*Did you mean bits\?"):
        compress.load("quickstart", quantize={"bitz": 8})


def test_a_path_is_a_path_however_short():
    with pytest.raises(RecipeError, match=r"\./quickstart: no such file"):
        compress.load(Path("quickstart"))


def test_apply_and_evaluate_from_python(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = []
    outcome = compress.apply(
        recipe("[{quantize: {method: rtn, bits: 4, group_size: 32}}]", **UNCOMPILED),
        "small",
        device="cpu",
        watch=lambda progress: steps.append(progress.step),
        calibration={"samples": 4},
    )
    assert isinstance(outcome, compress.Outcome)
    assert (outcome.folder, outcome.verification.passed) == (Path("small"), True)
    assert outcome.results.after.bits_per_weight == 4.5
    assert "quantize" in steps
    assert "calibration.samples=4" in (tmp_path / "small" / "recipe.lock.yaml").read_text()
    found = compress.evaluate(outcome, tmp_path / "suite.yaml", device="cpu")  # not the room
    side, divergence = found
    assert isinstance(found, compress.Evaluation)
    assert isinstance(side, Side)
    assert isinstance(divergence, Divergence)
    assert side.perplexity == outcome.results.after.perplexity
    assert json.loads((tmp_path / "small" / "results.json").read_text())["before"]
    with pytest.raises(ArtifactError, match="small: exists"):
        compress.apply("quickstart", tmp_path / "small")


def test_a_device_that_is_not_there(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match="finds no CUDA device"):
        compress.evaluate("nothing", device="cuda")


def test_torch_is_imported_when_something_is_computed():
    program = (
        "import compress; compress.load('quickstart', calibration={'seed': 3});"
        "compress.apply; compress.evaluate"
    )
    assert not {"torch", "numpy", "transformers"} & imported_by(program)


def test_every_export_is_there_and_no_other():
    assert {name for name in compress.__all__ if getattr(compress, name)} == set(compress.__all__)
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        compress.aply  # noqa: B018
