"""A student that begins as another model: same vocabulary and tokenizer, anything else its own."""

import json
import shutil

import pytest
import torch

from compress import pipeline, plan
from compress.artifact.layout import open_artifact
from compress.errors import ModelError, RecipeError
from compress.plan import memory, overview, sizes
from compress.plan.footprint import Job
from compress.recipe.load import load
from compress.results import Limits
from compress.runtime.engine import Engine
from compress.surgery import load as loaders
from compress.surgery.walk import hidden_states, logits
from compress.teacher import headers
from compress.teacher.folder import open_folder

LEARN = "{distill: {held_out: 2, steps: 8, check_every: 4, batch_tokens: 64, learning_rate: 0.003}}"


@pytest.fixture
def small(tiny_model):
    """Narrower, and not as deep."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    return tiny_model("llama", tied=True, **sizes)


@pytest.fixture
def asked(recipe, small):
    return lambda stages, *sets: recipe(stages, f"student={{model: {small}}}", *sets)


@pytest.mark.slow
def test_it_is_taught_judged_verified_and_opened(asked, small, tmp_path):
    made = asked(f"[{LEARN}]", "artifact.format=dense")
    outcome = pipeline.apply(made, out=tmp_path / "a")
    assert outcome.verification.passed
    (stage,) = outcome.results.stages
    assert stage.distilled.kl_after < stage.distilled.kl_before
    assert outcome.results.provenance.student == str(small)
    artifact = open_artifact(tmp_path / "a")
    assert artifact.config["model_type"] == "llama"
    assert len(artifact.anatomy.blocks) == 1
    assert outcome.results.divergence.kl_mean > 0
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["facts"]["student"]["fingerprint"] == open_folder(small).fingerprint
    assert "student began as" in (tmp_path / "a" / "report.md").read_text()
    assert Engine.open(tmp_path / "a").generate("The") is not None
    lock = load(str(tmp_path / "a" / "recipe.lock.yaml"))
    assert lock.resolved.student_fingerprint == open_folder(small).fingerprint
    pipeline.apply(lock, out=tmp_path / "b")
    hashes = [json.loads((tmp_path / x / "manifest.json").read_text())["tensors"] for x in "ab"]
    assert hashes[0] == hashes[1]


def test_stages_work_on_what_it_begins_as(asked, small, tmp_path):
    made = asked("[{quantize: {method: gptq, bits: 8, group_size: 32}}]")
    pipeline.compress_only(made, out=tmp_path / "a")
    artifact = open_artifact(tmp_path / "a")
    assert artifact.size_bytes == sizes.size(made, headers.of_recipe(made)).size_bytes
    ids = torch.arange(20)[None]
    said = [
        logits(one, hidden_states(one, ids, device="cpu", dtype=torch.float32)[0])
        for one in (artifact, open_folder(small))
    ]
    similar = torch.cosine_similarity(*said, dim=-1).mean()
    assert similar > 0.99  # it is the small model, rounded


def test_a_plan_tells_both(asked, small, tmp_path):
    made = asked(f"[{LEARN}]")
    found = overview.make(made, headers.of_recipe(made), cache=tmp_path)
    assert found.teacher == made.teacher.model
    assert (found.model_type, found.blocks) == ("llama", 2)
    assert any(note.startswith(f"the student begins as {small}: llama, 1 ") for note in found.notes)
    assert "128 bytes a token cached" in " ".join(found.notes)  # of the teacher's width
    before = sum(part.before_bytes for part in found.size.parts)
    assert before > found.size.size_bytes


def test_memory_counts_the_larger_of_both(asked, recipe):
    made = asked(f"[{LEARN}]")
    both, alone = headers.of_recipe(made), headers.read(made.teacher.model)
    steps = [memory.predict(Job(made, one, None, 4), Limits()) for one in (both, alone)]
    assert steps[0]["compress"] < steps[1]["compress"]
    assert steps[0]["calibrate"] == steps[1]["calibrate"]


def test_another_vocabulary_is_refused_before_anything(recipe, tiny_model, tmp_path):
    other = tiny_model("llama", vocab_size=384)
    made = recipe(f"[{LEARN}]", f"student={{model: {other}}}")
    with pytest.raises(RecipeError, match=r"student.model: .* has a vocabulary of 384 and the tea"):
        pipeline.apply(made, out=tmp_path / "a")
    with pytest.raises(RecipeError, match="Choose a model with the teacher's vocabulary"):
        plan.make(made, headers.of_recipe(made), cache=tmp_path)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.partial").exists()


def test_another_tokenizer_is_refused_with_the_token(recipe, small, tmp_path):
    other = shutil.copytree(small, tmp_path / "other")
    spelled = json.loads((other / "tokenizer.json").read_text())
    vocabulary = spelled["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(spelled))
    made = recipe(f"[{LEARN}]", f"student={{model: {other}}}")
    with pytest.raises(ModelError, match="its tokenizer is not the teacher's: the token 'A' is"):
        pipeline.apply(made, out=tmp_path / "a")
    assert not (tmp_path / "a.partial").exists()


def test_tokenizers_are_compared_by_words_by_ends_and_by_what_they_do(small, tmp_path):
    one = loaders.tokenizer(small)
    assert loaders.spelled_otherwise(one, loaders.tokenizer(small)) is None
    other = loaders.tokenizer(small)
    other.eos_token = "<|user|>"
    assert "eos_token_id is 258" in loaders.spelled_otherwise(one, other)
    split = shutil.copytree(small, tmp_path / "other")
    spelled = json.loads((split / "tokenizer.json").read_text())
    spelled["normalizer"] = {"type": "Lowercase"}
    (split / "tokenizer.json").write_text(json.dumps(spelled))
    assert "otherwise" in loaders.spelled_otherwise(one, loaders.tokenizer(split))


def test_nothing_is_taught_to_a_student_that_is_its_teacher(recipe):
    with pytest.raises(RecipeError, match=r"or give student\.model"):
        recipe(f"[{LEARN}]")
    (mistake,) = _mistakes(recipe, "student={modl: a/b}")
    assert "student.modl: unknown field. Did you mean model?" in mistake


def _mistakes(recipe, *sets):
    with pytest.raises(RecipeError) as caught:
        recipe("[{quantize: {method: rtn}}]", *sets)
    return caught.value.mistakes
