"""A student that was taught, from the recipe to those who open it."""

import pytest
import torch

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.recipe.load import load
from compress.runtime.engine import Engine

LEARN = "text: {set: %s, samples: 24, seq_len: 16}, steps: 8, check_every: 4, batch_tokens: 64"


@pytest.fixture
def recipe(recipe, tmp_path):
    """`recipe(stages, *sets)`; LEARN in stages is how to train on its text."""
    learn = LEARN % (tmp_path / "text.txt")
    return lambda stages, *sets: recipe(stages.replace("LEARN", learn), *sets)


def test_cut_healed_and_rounded_in_one_recipe(recipe, tmp_path):
    stages = (
        "[{restructure: {ffn: 0.5, repair: false}}, {distill: {LEARN, learning_rate: 0.003}}, "
        "{quantize: {method: gptq, bits: 4, group_size: 32}}]"
    )
    outcome = pipeline.apply(
        recipe(stages, "artifact.format=compressed-tensors"), out=tmp_path / "a"
    )
    assert outcome.verification.passed
    cut, healed, rounded = outcome.results.stages
    assert healed.distilled.kl_after < healed.distilled.kl_before
    assert (cut.stage, rounded.stage) == ("restructure", "quantize")
    page = (tmp_path / "a" / "report.md").read_text()
    assert "## What the teacher taught" in page
    assert "<svg" in (tmp_path / "a" / "report.html").read_text()
    lock = load(str(tmp_path / "a" / "recipe.lock.yaml"))
    assert lock.resolved.text_fingerprints == (healed.distilled.text_fingerprint,)
    assert Engine.open(tmp_path / "a").generate("The") is not None


@pytest.mark.parametrize("format", ["packed", "compressed-tensors", "gptq", "gguf"])
def test_learned_scales_lie_in_the_plain_layout_of_every_format(recipe, tmp_path, format):
    rounding = "{quantize: {method: rtn, bits: 4, group_size: 32}}"
    teaching = "{distill: {train: scales_and_norms, LEARN, learning_rate: 0.01}}"
    for name, stages in (("plain", rounding), ("taught", f"{rounding}, {teaching}")):
        asked = recipe(f"[{stages}]", f"artifact.format={format}")
        pipeline.compress_only(asked, out=tmp_path / name)
    before, after = open_artifact(tmp_path / "plain"), open_artifact(tmp_path / "taught")
    assert after.size_bytes == before.size_bytes
    moved = 0
    for linear in before.anatomy.linears:
        was, now = before.rounded(linear.name), after.rounded(linear.name)
        assert torch.equal(was.codes, now.codes)
        moved += int((was.scale != now.scale).sum())
    assert moved > 0


@pytest.mark.parametrize("format", ["packed", "compressed-tensors", "gptq", "gguf"])
def test_learned_codes_lie_in_the_plain_layout_of_every_format(recipe, tmp_path, format):
    rounding = "{quantize: {method: rtn, bits: 4, group_size: 32}}"
    teaching = "{distill: {train: codes, LEARN, learning_rate: 0.01}}"
    asked = recipe(f"[{rounding}]", f"artifact.format={format}")
    pipeline.compress_only(asked, out=tmp_path / "plain")
    asked = recipe(f"[{rounding}, {teaching}]", f"artifact.format={format}")
    pipeline.compress_only(asked, out=tmp_path / "taught")
    before, after = open_artifact(tmp_path / "plain"), open_artifact(tmp_path / "taught")
    assert after.size_bytes == before.size_bytes
    changed = 0
    for linear in before.anatomy.linears:
        was, now = before.rounded(linear.name), after.rounded(linear.name)
        assert torch.equal(was.zero, now.zero)
        changed += int((was.codes != now.codes).sum())
    assert changed > 0


def test_pruned_healed_and_rounded_keeps_every_zero(recipe, tmp_path):
    stages = (
        '[{prune: {method: magnitude, pattern: "2:4"}}, {distill: {LEARN, learning_rate: 0.003}}, '
        "{quantize: {method: gptq, bits: 4, group_size: 32}}]"
    )
    pipeline.compress_only(recipe(stages), out=tmp_path / "a")
    artifact = open_artifact(tmp_path / "a")
    for linear in artifact.anatomy.linears:
        weight = artifact.block(linear.block)[linear.name + ".weight"]
        assert int(weight.view(len(weight), -1, 4).count_nonzero(-1).max()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("train", ["scales_and_norms", "codes"])
def test_what_was_learned_of_integers_is_verified_and_judged(recipe, tmp_path, train):
    rounding = "{quantize: {method: rtn, bits: 4, group_size: 32}}"
    teaching = f"{{distill: {{train: {train}, LEARN, learning_rate: 0.01}}}}"
    kl = []
    for name, stages in (("plain", rounding), ("taught", f"{rounding}, {teaching}")):
        asked = recipe(f"[{stages}]", "artifact.format=compressed-tensors")
        outcome = pipeline.apply(asked, out=tmp_path / name)
        assert outcome.verification.passed
        kl.append(outcome.results.divergence.kl_mean)
    assert kl[1] < kl[0]
