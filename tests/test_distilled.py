"""A student that was taught, from the recipe to those who open it."""

import json

import pytest
import torch

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.plan import sizes
from compress.recipe.load import load
from compress.runtime.engine import Engine
from compress.teacher import headers

W4 = "{quantize: {method: rtn, bits: 4, group_size: 32}}"
CUT = "{restructure: {ffn: 0.5, repair: false}}"
LEARN = "text: {set: %s, samples: 24, seq_len: 16}, steps: 8, check_every: 4, batch_tokens: 64"


@pytest.fixture
def recipe(recipe, tmp_path):
    """`recipe(stages, *sets)`; LEARN in stages is how to train on its text."""
    learn = LEARN % (tmp_path / "text.txt")
    return lambda stages, *sets, **sizes: recipe(stages.replace("LEARN", learn), *sets, **sizes)


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


def matrices_of(recipe, folder, format, train):
    """Of a student as rounding left it and as it was taught, in as many bytes: matrix by matrix."""
    rounding = "{quantize: {method: rtn, bits: 4, group_size: 32}}"
    teaching = f"{{distill: {{train: {train}, LEARN, learning_rate: 0.01}}}}"
    for name, stages in (("plain", rounding), ("taught", f"{rounding}, {teaching}")):
        asked = recipe(f"[{stages}]", f"artifact.format={format}")
        pipeline.compress_only(asked, out=folder / name)
    before, after = open_artifact(folder / "plain"), open_artifact(folder / "taught")
    assert after.size_bytes == before.size_bytes
    return [(before.rounded(x.name), after.rounded(x.name)) for x in before.anatomy.linears]


@pytest.mark.parametrize("format", ["packed", "compressed-tensors", "gptq", "gguf"])
def test_learned_scales_lie_in_the_plain_layout_of_every_format(recipe, tmp_path, format):
    moved = 0
    for was, now in matrices_of(recipe, tmp_path, format, "scales_and_norms"):
        assert torch.equal(was.codes, now.codes)
        moved += int((was.scale != now.scale).sum())
    assert moved > 0


@pytest.mark.parametrize("format", ["packed", "compressed-tensors", "gptq", "gguf"])
def test_learned_codes_lie_in_the_plain_layout_of_every_format(recipe, tmp_path, format):
    changed = 0
    for was, now in matrices_of(recipe, tmp_path, format, "codes"):
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
def test_rounds_of_pruning_and_healing_end_at_the_sparsity_asked_for(recipe, tmp_path):
    prune = "{prune: {method: magnitude, sparsity: 0.7}}"
    stages = f"[{{repeat: {{times: 2, stages: [{prune}, {{distill: {{LEARN}}}}]}}}}]"
    asked = recipe(stages)
    outcome = pipeline.apply(asked, out=tmp_path / "a")
    assert outcome.verification.passed
    assert [one.stage for one in outcome.results.stages] == ["prune", "distill"] * 2
    artifact = open_artifact(tmp_path / "a")
    predicted = sizes.size(asked, headers.read(asked.teacher.model))
    assert predicted.size_bytes == artifact.size_bytes
    pages = [(tmp_path / "a" / name).read_text() for name in ("report.md", "report.html")]
    assert all("What the teacher taught, 2 of 2" in page for page in pages)
    for linear in artifact.anatomy.linears:
        weight = artifact.block(linear.block)[linear.name + ".weight"]
        assert int((weight != 0).sum()) == round(0.3 * weight.numel())
    zeros = [
        {one.name: one.kept_weights for one in stage.linears}
        for stage in outcome.results.stages
        if stage.stage == "prune"
    ]
    assert all(count < zeros[0][name] for name, count in zeros[1].items())

    def stop(progress):
        if (progress.step, progress.done) == ("distill", 6) and len(told) > 1:
            raise KeyboardInterrupt
        if progress.step == "prune" and told[-1:] != ["prune"]:
            told.append(progress.step)
        if progress.step == "distill" and told[-1:] != ["distill"]:
            told.append(progress.step)

    told = []
    with pytest.raises(KeyboardInterrupt):
        pipeline.apply(asked, out=tmp_path / "b", watch=stop)
    pipeline.apply(asked, out=tmp_path / "b")
    hashes = [json.loads((tmp_path / x / "manifest.json").read_text())["tensors"] for x in "ab"]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_every_second_block_is_taught_and_opened_by_all(recipe, tmp_path):
    stages = "[{restructure: {blocks: every_second}}, {distill: {LEARN, learning_rate: 0.003}}]"
    asked = recipe(stages, "artifact.format=dense", num_hidden_layers=4)
    outcome = pipeline.apply(asked, out=tmp_path / "a")
    assert outcome.verification.passed
    cut, taught = outcome.results.stages
    assert (cut.shape.after.blocks, cut.linears) == (2, ())
    assert taught.distilled.kl_after < taught.distilled.kl_before
    assert outcome.results.provenance.calibration == "none"
    assert "Removed: 1, 3." in (tmp_path / "a" / "report.md").read_text()
    assert Engine.open(tmp_path / "a").generate("The") is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounding", "format", "train"),
    [
        ("{quantize: {method: rtn, bits: 2, group_size: 32}}", "packed", "codes"),
        ("{quantize: {method: gptq, bits: 3, group_size: 32}}", "packed", "codes"),
        (W4, "compressed-tensors", "codes"),
        (W4, "compressed-tensors", "scales_and_norms"),
        (
            f"{CUT}, {{quantize: {{method: w8a8}}}}",
            "compressed-tensors",
            "codes",
        ),  # cut: else it loses nothing
    ],
)
def test_what_was_learned_of_integers_is_verified_and_judged(
    recipe, tmp_path, rounding, format, train
):
    # Faster than this, what suits 256 tokens is learned by codes that GPTQ had set for all text.
    teaching = f"{{distill: {{train: {train}, LEARN, learning_rate: 0.005}}}}"
    kl = []
    for name, stages in (("plain", rounding), ("taught", f"{rounding}, {teaching}")):
        asked = recipe(f"[{stages}]", f"artifact.format={format}")
        outcome = pipeline.apply(asked, out=tmp_path / name)
        assert outcome.verification.passed
        kl.append(outcome.results.divergence.kl_mean)
    taught = outcome.results.stages[-1].distilled
    assert taught.kept_step > 0
    assert (taught.changed_codes or 0) > 0 or train == "scales_and_norms"
    assert kl[1] < kl[0]


def test_reasons_that_the_teacher_writes_and_text_of_the_students_own(recipe, tmp_path):
    text = (
        "{set: teacher, samples: 12, seq_len: 48, prompts: [sky, sea], "
        "templates: ['{prompt}?'], rationale: {cue: 'So:', reason_tokens: 8, answer_tokens: 8}}"
    )
    learn = (
        f"{{distill: {{text: {text}, on_policy: {{share: 0.5, prompt_tokens: 8}}, "
        "loss: {hidden: {measure: cosine, weight: 0.1}}, held_out: 2, steps: 4, check_every: 2, "
        "batch_tokens: 96, learning_rate: 0.003}}"
    )
    stages = f"[{{restructure: {{ffn: 0.5, repair: false}}}}, {learn}]"
    asked = recipe(stages, "artifact.format=dense")
    outcome = pipeline.apply(asked, out=tmp_path / "a")
    assert outcome.verification.passed
    healed = outcome.results.stages[1].distilled
    assert healed.kl_after < healed.kl_before
    assert "0.1 times the cosine of hidden states, 50 % of steps on its own text" in healed.asked
    assert healed.asked in (tmp_path / "a" / "report.md").read_text()
    lock = load(str(tmp_path / "a" / "recipe.lock.yaml"))
    assert lock.distillations[0][1] == asked.distillations[0][1]
