import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import machine, pipeline
from compress.artifact.layout import open_artifact
from compress.artifact.manifest import check_manifest
from compress.errors import (
    ArtifactError,
    CalibrationError,
    CompressError,
    GateMissed,
    ModelError,
    RecipeError,
    RequestError,
    SolveError,
    StorageError,
)
from compress.recipe.load import load
from compress.results import Results, from_json, to_json

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60
SUITE = """
version: 1
perplexity: {set: ./text.txt, seq_len: 32, windows: 4}
divergence: {set: ./text.txt, seq_len: 32, windows: 4}
tasks: [cloze]
limit: 4
samples: {prompts: [Hello], max_new_tokens: 4}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch, tiny_llama, transformers_at_hand):
    """Write a small recipe and load it with changes: `recipe("quantize.bits=8")`."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "suite.yaml").write_text(SUITE)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 1\n"
        f"teacher: {{model: {tiny_llama}, dtype: float32}}\n"
        f"calibration: {{set: {tmp_path}/text.txt, samples: 8, seq_len: 32}}\n"
        "stages:\n  - quantize: {method: gptq, bits: 4, group_size: 32}\n"
        f"evaluate: {{suite: {tmp_path}/suite.yaml}}\n"
    )
    return lambda *sets: load(str(path), sets)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def hashes(folder):
    return json.loads((folder / "manifest.json").read_text())["tensors"]


@pytest.mark.parametrize(
    ("format", "sym"),
    [
        ("packed", True),
        ("compressed-tensors", True),
        pytest.param("gptq", True, marks=pytest.mark.slow),
        pytest.param("gguf", False, marks=pytest.mark.slow),
    ],
)
def test_a_recipe_becomes_a_judged_artifact_with_its_records(recipe, out, format, sym):
    seen = []
    asked = recipe(f"artifact.format={format}", f"quantize.sym={str(sym).lower()}")
    outcome = pipeline.apply(asked, out=out, watch=seen.append)
    names = {path.name for path in out.iterdir()}
    assert ("model.gguf" if format == "gguf" else "model.safetensors") in names
    assert names >= {
        "config.json", "tokenizer.json", "recipe.lock.yaml", "results.json", "measured.json",
        "report.html", "report.md", "README.md", "manifest.json",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")]
    assert not out.with_name("out.partial").exists()
    assert check_manifest(out) == []
    assert from_json(Results, (out / "results.json").read_text()) == outcome.results
    assert outcome.results.after.size_bytes == open_artifact(out).size_bytes
    assert outcome.results.after.size_bytes == sum(p.after_bytes for p in outcome.results.sizes)
    assert outcome.results.before.size_bytes == sum(p.before_bytes for p in outcome.results.sizes)
    assert 4.5 <= outcome.results.after.bits_per_weight < 5.1  # codes, and a scale for each 32
    assert outcome.results.divergence.kl_mean > 0
    assert outcome.verification.passed
    assert (out / "verification.json").read_text() == to_json(outcome.verification)
    assert {p.step for p in seen} >= {"quantize", "write", "evaluate"}


@pytest.mark.parametrize(
    "format",
    [
        "packed",
        *(pytest.param(it, marks=pytest.mark.slow) for it in ("compressed-tensors", "gguf")),
    ],
)
def test_a_turned_and_enlarged_student_is_judged_against_the_teacher_itself(
    recipe, out, tiny_tied, format
):
    quantize = "{bits: 8, group_size: 32, smooth: awq, error_correction: 0.5}"
    stages = f"stages=[{{rotate: {{}}}}, {{quantize: {quantize}}}]"
    asked = recipe(stages, f"teacher.model={tiny_tied}", f"artifact.format={format}")
    outcome = pipeline.apply(asked, out=out)
    assert outcome.verification.passed
    assert outcome.results.divergence.kl_mean < 1e-3
    found = open_artifact(out)
    assert not found.anatomy.tied
    assert outcome.results.after.size_bytes == found.size_bytes
    assert [stage.stage for stage in outcome.results.stages] == ["rotate", "quantize"]


@pytest.mark.parametrize(
    ("stages", "format"),
    [
        ("{prune: {method: admm, sparsity: 0.5, error_correction: 0.5}}", "packed"),
        pytest.param("{prune: {pattern: '2:4'}}", "compressed-tensors", marks=pytest.mark.slow),
        ("{prune: {sparsity: 0.5, quantize: {bits: 4, group_size: 32}}}", "packed"),
        ("{prune: {sparsity: 0.5}}, {quantize: {bits: 4, group_size: 32}}", "gptq"),
    ],
)
def test_what_is_pruned_is_judged_and_verified(recipe, out, stages, format):
    outcome = pipeline.apply(recipe(f"stages=[{stages}]", f"artifact.format={format}"), out=out)
    assert outcome.verification.passed
    assert outcome.results.divergence.kl_mean > 0
    assert all(linear.sparsity >= 0.5 for linear in outcome.results.linears)
    found = open_artifact(out)
    masks = [name for name in found.checkpoint.tensors if name.endswith(".mask")]
    assert len(masks) == (len(found.anatomy.linears) if format == "packed" else 0)
    assert "nothing here runs faster for it" in (out / "report.md").read_text()


def test_the_lock_runs_again_to_the_same_bytes(recipe, out, tmp_path):
    pipeline.apply(recipe(), out=out)
    lock = load(str(out / "recipe.lock.yaml"))
    pipeline.apply(lock, out=tmp_path / "again")
    assert hashes(out) == hashes(tmp_path / "again")
    for name in ("config.json", "tokenizer.json", "recipe.lock.yaml"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_student_judged_is_the_student_on_disk(recipe, out):
    outcome = pipeline.apply(recipe("quantize.bits=2"), out=out)
    side, divergence = pipeline.evaluate(str(out), suite=str(out.parent / "suite.yaml"))
    assert side.perplexity == outcome.results.after.perplexity
    assert divergence == outcome.results.divergence
    lock = out / "recipe.lock.yaml"
    assert "device: cpu" in lock.read_text()
    lock.write_text(lock.read_text().replace("device: cpu", "device: cuda"))  # made elsewhere
    assert pipeline.evaluate(str(out), suite=str(out.parent / "suite.yaml"))[0] == side


def test_suite_none_measures_nothing_and_says_so(recipe, out):
    outcome = pipeline.apply(recipe("evaluate.suite=none"), out=out)
    assert outcome.results.divergence is None
    assert outcome.results.after.perplexity is None


def refused(recipe_, out, kind, message):
    with pytest.raises(kind, match=message) as caught:
        pipeline.apply(recipe_, out=out)
    assert not out.exists()
    assert not out.with_name("out.partial").exists()
    return caught.value


def test_a_finished_output_is_never_written_over(recipe, out):
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(ArtifactError, match="exists") as caught:
        pipeline.apply(recipe(), out=out)
    assert caught.value.exit_code == 2
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_another_runs_unfinished_output_is_left_alone(recipe, out):
    partial = out.with_name("out.partial")
    partial.mkdir()
    (partial / "theirs").write_text("work")
    with pytest.raises(ArtifactError, match=r"out\.partial: exists"):
        pipeline.apply(recipe(), out=out)
    assert (partial / "theirs").exists()


def test_a_group_size_that_does_not_divide_names_every_linear_and_what_works(recipe, out):
    error = refused(recipe("quantize.group_size=128"), out, RecipeError, "does not divide")
    assert error.exit_code == 2
    assert re.search(r"11 more linears.*32.*64", str(error), re.DOTALL)


def test_a_calibration_text_that_is_too_short_says_what_it_holds(recipe, out):
    error = refused(recipe("calibration.samples=4000"), out, CalibrationError, "samples")
    assert error.exit_code == 2


def test_a_missing_teacher_or_suite_costs_nothing(recipe, out):
    refused(recipe("teacher.model=./nowhere"), out, ModelError, "nowhere")
    with pytest.raises(RecipeError, match="Did you mean quick"):
        recipe("evaluate.suite=quik")


def test_a_linear_that_cannot_be_solved_fails_or_is_named_in_the_results(
    recipe, out, tmp_path, tiny_llama
):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_llama.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"].fill_(3e38)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    change = f"teacher.model={broken}"
    with pytest.raises(SolveError, match=r"model\.layers\.1\.self_attn\.q_proj") as caught:
        pipeline.apply(recipe(change), out=out)
    assert caught.value.exit_code == 1
    assert not out.exists()
    assert (out.with_name("out.partial") / ".work").exists()  # block 0 was finished, and stays


def test_a_full_disk_ends_the_run_and_leaves_nothing(recipe, out, monkeypatch):
    import safetensors.torch

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    error = refused(recipe(), out, StorageError, "No space left on device")
    assert error.exit_code == 1


def test_an_interrupt_leaves_nothing(recipe, out):
    def interrupt(progress):
        if progress.step == "quantize":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.apply(recipe(), out=out, watch=interrupt)
    assert not out.with_name("out.partial").exists()


def test_a_lock_whose_teacher_or_text_has_changed_is_refused(recipe, out, tmp_path):
    pipeline.apply(recipe("evaluate.suite=none"), out=out)
    lock = out / "recipe.lock.yaml"
    (tmp_path / "text.txt").write_text("Something else entirely. " * 200)
    with pytest.raises(CalibrationError, match="the lock says"):
        pipeline.apply(load(str(lock)), out=tmp_path / "again")


def test_a_text_of_the_suite_is_read_before_any_long_work(recipe, out):
    seen = []
    (out.parent / "short.txt").write_text("Too short.")
    change = recipe("calibration.samples=2", "evaluate.text=" + str(out.parent / "short.txt"))
    with pytest.raises(CalibrationError, match="evaluate: "):
        pipeline.apply(change, out=out, watch=seen.append)
    assert not [p for p in seen if p.step == "quantize"]


def test_windows_longer_than_the_model_has_positions_are_refused(recipe, out):
    error = refused(
        recipe("calibration.seq_len=512", "calibration.samples=1"),
        out,
        RecipeError,
        "256 positions",
    )
    assert error.exit_code == 2


def test_a_teacher_in_another_dtype_is_another_teacher(recipe, out, tmp_path):
    first = pipeline.apply(recipe("evaluate.suite=none"), out=out)
    second = pipeline.apply(
        recipe("evaluate.suite=none", "teacher.dtype=bfloat16"), out=tmp_path / "second"
    )
    assert second.results.before.size_bytes < 0.6 * first.results.before.size_bytes
    prints = [o.results.provenance.teacher_fingerprint for o in (first, second)]
    assert prints[0] != prints[1]
    assert open_artifact(tmp_path / "second").config["dtype"] == "bfloat16"


def test_a_lock_runs_only_on_the_device_it_was_made_on(recipe, out, tmp_path):
    pipeline.apply(recipe("evaluate.suite=none"), out=out)
    lock = load(str(out / "recipe.lock.yaml"))
    with pytest.raises(RequestError, match="--device cpu"):
        pipeline.apply(lock, out=tmp_path / "again", device="cuda")


def test_errors_carry_the_exit_codes_of_their_kind():
    assert (CompressError.exit_code, ModelError.exit_code, SolveError.exit_code) == (1, 2, 1)


def test_the_compute_type_follows_the_teacher():
    assert machine.compute_dtype("cpu", "float32") is torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a high-water mark")
def test_what_a_process_held_before_a_run_is_not_that_runs_peak():
    held = torch.ones(100 << 20)
    before = machine.peak_memory_bytes()
    del held
    machine.forget_peak_memory()
    assert machine.peak_memory_bytes() < before - (200 << 20)


def test_a_student_that_misses_a_gate_is_rejected_with_its_report(recipe, out):
    gates = 'evaluate.gates={"kl_mean_max": 0.000001, "size_max": "80 MB"}'
    with pytest.raises(GateMissed, match=r"kl_mean_max(.|\n)*out\.rejected") as caught:
        pipeline.apply(recipe("quantize.bits=2", gates), out=out)
    assert caught.value.exit_code == 3
    assert not out.exists()
    rejected = out.with_name("out.rejected")
    found = from_json(Results, (rejected / "results.json").read_text())
    assert found.verdict.outcome == "REGRESSION"
    assert [(gate.name, gate.passed) for gate in found.verdict.gates] == [
        ("kl_mean_max", False), ("size_max", True),
    ]  # fmt: skip
    assert "REGRESSION" in (rejected / "report.html").read_text()
    assert check_manifest(rejected) == []
    with pytest.raises(ArtifactError, match=r"out\.rejected: exists"):
        pipeline.apply(recipe(), out=out)


def test_a_gate_that_escalates_gives_bits_until_it_is_kept_and_names_them(recipe, out):
    narrow = pipeline.apply(recipe("quantize.bits=2"), out=out).results.divergence.kl_mean
    gates = f'evaluate.gates={{"kl_mean_max": {narrow / 2}, "on_violation": "escalate"}}'
    second, seen = out.with_name("second"), []
    results = pipeline.apply(
        recipe("quantize.bits=2", gates), out=second, watch=seen.append
    ).results
    rounds = [record for record in seen if record.step == "escalate"]
    assert [record.done for record in rounds] == list(range(1, len(results.verdict.rounds) + 1))
    assert all(record.detail.startswith("more bits for ") for record in rounds)
    assert results.verdict.outcome == "ACCEPT"
    assert results.divergence.kl_mean <= narrow / 2
    assert results.verdict.rounds
    wide = {linear.name: linear.bits for linear in results.fallbacks}
    assert wide
    artifact = open_artifact(second)
    assert {name: artifact.rounded(name).bits for name in wide} == wide


def test_a_linear_gate_ends_the_run_before_its_block_is_committed(recipe, out):
    gates = 'evaluate.gates={"linear_error_max": 0.000001}'
    with pytest.raises(GateMissed, match="linear_error_max"):
        pipeline.apply(recipe("quantize.bits=2", gates), out=out)
    rejected = out.with_name("out.rejected")
    found = from_json(Results, (rejected / "results.json").read_text())
    assert found.after is None
    assert not (rejected / "model.safetensors").exists()
    assert (rejected / "report.html").is_file()
