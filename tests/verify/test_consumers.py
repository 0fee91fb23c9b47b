"""Every consumer is asked, or it is said why not; its answers are held to our own reading."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from compress.verify import consumers
from compress.verify.consumers import CONSUMERS, Pythons, ask
from compress.verify.layout import open_folder
from compress.verify.run import verify

CT = "compressed-tensors"
ONCE_AGAIN = """#!{python}
import json, sys
request = json.load(open(sys.argv[-2]))
json.dump(json.load(open({canned!r})), open(sys.argv[-1], "w"))
"""


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch):
    monkeypatch.delenv(consumers.PYTHON, raising=False)
    monkeypatch.delenv(consumers.LLAMA_PYTHON, raising=False)


@pytest.mark.parametrize("format", ["packed", CT, "dense"])
def test_our_runtime_agrees_in_both_dtypes(artifact, format):
    exact, fast = ask(open_folder(artifact(format, 4, 32, True)), "compress")
    assert (exact.outcome, exact.dtype, exact.tokens) == ("passed", "float32", 64)
    assert exact.log_probability_error_max < 1e-3
    assert (fast.outcome, fast.dtype) == ("passed", "bfloat16")
    assert fast.kl_mean < 0.02


def test_our_runtime_refuses_what_it_does_not_run(artifact):
    folder = artifact(family="gpt2", tied=True, scale_attn_weights=False)
    found = ask(open_folder(folder), "compress")
    assert {one.outcome for one in found} == {"refused"}
    assert "scale_attn_weights False is not run here" in found[0].detail


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox", "opt"])
def test_our_runtime_agrees_in_other_families(artifact, family):
    found = ask(open_folder(artifact(family=family, tied=True)), "compress")
    assert [one.outcome for one in found] == ["passed"] * 2


def outcome(folder, name, **options):
    (found,) = ask(open_folder(folder), name, **options)
    return found.outcome, found.detail


def test_what_does_not_apply_is_said(artifact):
    folder = artifact()
    for name in ("transformers", "vllm"):
        assert outcome(folder, name) == ("not applicable", "packed is our own layout")
    assert outcome(folder, "llama.cpp") == (
        "not applicable",
        "it opens GGUF, this is packed",
    )


def test_what_is_not_installed_is_said(artifact, monkeypatch):
    monkeypatch.setattr(consumers, "_installed", lambda module: False)
    folder = artifact(CT, 4, 32, True)
    assert outcome(folder, "transformers") == ("not installed", "pip install compressed-tensors")
    found, detail = outcome(folder, "vllm")
    assert found == "not installed"
    assert "--vllm-python, or COMPRESS_VLLM_PYTHON" in detail


def test_transformers_refuses_several_asymmetric_schemes(artifact):
    def plan(name):
        if name.endswith("down_proj"):
            return 8, 32, False
        return None if "embed" in name or "head" in name else (4, 32, False)

    found, detail = outcome(artifact(CT, plan=plan), "transformers")
    assert found == "refused"
    assert "told to dequantize" in detail


def canned(tmp_path, answer):
    """An interpreter that answers this, whatever it is asked to run."""
    path, text = tmp_path / "python", tmp_path / "answer.json"
    text.write_text(json.dumps(answer))
    path.write_text(ONCE_AGAIN.format(python=sys.executable, canned=str(text)))
    path.chmod(0o755)
    return path


def own_answers(folder):
    from compress.runtime.engine import Engine

    model = Engine.open(folder, dtype="float32").model
    found = [consumers._continued(model, ids) for ids in consumers.prompts(open_folder(folder))]
    return [{"tokens": one.tokens, "top": one.top} for one in found]


@pytest.fixture
def folder(artifact):
    return artifact(CT, 4, 32, True)


def test_an_engine_elsewhere_is_asked_through_its_interpreter(folder, tmp_path, monkeypatch):
    python = canned(tmp_path, {"version": "9.9", "answers": own_answers(folder)})
    (found,) = ask(open_folder(folder), "vllm", Pythons(vllm=python))
    assert (found.outcome, found.version, found.dtype) == ("passed", "9.9", "bfloat16")
    assert (found.tokens, found.ties, found.margin_max) == (64, 0, 0.0)
    assert found.kl_mean == pytest.approx(0, abs=1e-5)
    monkeypatch.setenv(consumers.PYTHON, os.fspath(python))
    assert ask(open_folder(folder), "vllm") == [found]


def test_near_ties_are_counted_and_other_tokens_fail(folder, tmp_path):
    reading, answers = open_folder(folder), own_answers(folder)
    runner_up = list(answers[0]["top"][-1])[1]
    answers[0]["tokens"][-1] = runner_up  # the last, so that nothing follows from it
    python = canned(tmp_path, {"version": "9.9", "answers": answers})
    (found,) = ask(reading, "vllm", Pythons(vllm=python))
    assert found.margin_max > 0
    allowed = consumers.TOLERANCES["bfloat16"].margin
    assert (found.ties, found.outcome) == (1, "passed" if found.margin_max <= allowed else "failed")

    answers[0]["tokens"] = [7] * 16
    (found,) = ask(
        reading, "vllm", Pythons(canned(tmp_path, {"version": "9.9", "answers": answers}))
    )
    assert found.outcome == "failed"
    assert "less likely than the likeliest" in found.detail


def test_probabilities_that_are_off_fail_in_float32_and_by_kl(folder, tmp_path):
    reading, answers = open_folder(folder), own_answers(folder)
    for answer in answers:
        answer["top"] = [dict(zip(row, [-2.0] * len(row), strict=True)) for row in answer["top"]]
    (found,) = ask(
        reading, "vllm", Pythons(canned(tmp_path, {"version": "9.9", "answers": answers}))
    )
    assert found.outcome == "failed"
    assert "KL" in found.detail


def test_a_named_interpreter_without_vllm_is_told(folder, tmp_path):
    python = canned(tmp_path, {"missing": "no vllm there"})
    (found,) = ask(open_folder(folder), "vllm", Pythons(vllm=python))
    assert (found.outcome, found.detail) == ("not installed", f"{python}: no vllm there")


def test_llama_cpp_is_asked_of_gguf_folders_only(artifact, tmp_path, monkeypatch):
    folder = artifact("gguf", 4, 32, True)
    assert outcome(folder, "vllm") == ("not applicable", "vLLM 0.32 opens no GGUF files")
    monkeypatch.setattr(consumers, "_installed", lambda module: False)
    found, detail = outcome(folder, "llama.cpp")
    assert found == "not installed"
    assert "--llama-python, or COMPRESS_LLAMA_PYTHON" in detail
    python = canned(tmp_path, {"version": "9.9", "answers": own_answers(folder)})
    (found,) = ask(open_folder(folder), "llama.cpp", Pythons(llama=python))
    assert (found.outcome, found.version, found.dtype) == ("passed", "9.9", "int8 inputs")


def test_gptq_in_transformers_wants_a_package(artifact):
    found, detail = outcome(artifact("gptq", 4, 32, True), "transformers")
    assert (found, detail.partition(",")[0]) == ("not installed", "pip install gptqmodel")


def test_an_engine_that_crashes_is_a_failure(folder, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ValueError: it has no such layer' >&2\nexit 1\n")
    python.chmod(0o755)
    (found,) = ask(open_folder(folder), "vllm", Pythons(vllm=python))
    assert (found.outcome, found.detail) == ("failed", "ValueError: it has no such layer")


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: Failed to find a kernel that can implement the WNA16 linear layer.",
        "ValueError: Forced NVFP4 kernel MarlinNvFp4LinearKernel is not supported: not available",
    ],
)
def test_an_engine_without_a_kernel_for_a_scheme_refuses(folder, tmp_path, line):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{line}'\nexit 1\n")
    python.chmod(0o755)
    (found,) = ask(open_folder(folder), "vllm", Pythons(vllm=python))
    assert (found.outcome, found.detail) == ("refused", line)


def test_divergence_is_over_the_told_tokens_and_the_rest():
    row = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    error, divergence = consumers._compare(row, {0: float(row[0]), 1: float(row[1])})
    assert (error, divergence) == (0.0, pytest.approx(0, abs=1e-6))
    told = {0: torch.tensor(0.25).log().item(), 1: torch.tensor(0.5).log().item()}
    error, divergence = consumers._compare(row, told)
    assert error == pytest.approx(0.6931, abs=1e-3)
    assert divergence == pytest.approx(0.25 * 0.6931, abs=1e-3)


def test_consumers_are_part_of_a_verification(artifact):
    found = verify(artifact(), consumers=[name for name in CONSUMERS if name != "transformers"])
    assert [one.name for one in found.consumers] == ["compress", "compress", "vllm", "llama.cpp"]
    assert found.passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "bits", "sym"), [(CT, 4, True), (CT, 8, True), (CT, 4, False), ("dense", 3, True)]
)
def test_transformers_agrees(artifact, format, bits, sym):
    pytest.importorskip("compressed_tensors")
    (found,) = ask(open_folder(artifact(format, bits, 32, sym)), "transformers")
    assert found.outcome == "passed", found
    assert found.tokens == 64
    assert ("dequantize" in found.detail) == (not sym)


VLLM = os.environ.get(consumers.PYTHON)


@pytest.mark.slow
@pytest.mark.skipif(not VLLM, reason=f"{consumers.PYTHON} names no interpreter that has vLLM")
@pytest.mark.parametrize("sym", [True, False])
def test_vllm_agrees(artifact, sym):
    sizes = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}  # heads that it runs
    folder = artifact(CT, 4, 32, sym, **sizes)
    (found,) = ask(open_folder(folder), "vllm", Pythons(Path(VLLM)))
    assert (found.outcome, found.tokens) == ("passed", 64), found


@pytest.mark.slow
def test_transformers_failing_is_told(artifact, monkeypatch):
    reading = open_folder(artifact("dense"))
    broken = dataclasses.replace(reading, folder=reading.folder / "nowhere")
    monkeypatch.setattr(consumers, "prompts", lambda _: [[1, 2, 3]])
    (found,) = ask(broken, "transformers")
    assert found.outcome == "failed"
    assert "Error" in found.detail
