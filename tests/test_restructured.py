"""A model that was cut, from the recipe to those who open it."""

import json
from functools import partial

import pytest
import torch

from compress import pipeline
from compress.artifact.layout import open_artifact
from compress.runtime.engine import Engine
from compress.surgery import load as loaders
from compress.surgery.walk import hidden_states, logits


@pytest.fixture
def recipe(recipe):
    """`recipe(stages, *sets)`; four blocks, four heads, two of keys and values."""
    return partial(recipe, num_hidden_layers=4)


def opened_alike(out):
    """The model of a folder says here what it says in transformers."""
    from transformers import AutoModelForCausalLM

    artifact, ids = open_artifact(out), torch.arange(20)[None]
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(ids).logits[0].detach()
    ours = hidden_states(artifact, ids, device="cpu", dtype=torch.float32)[0]
    torch.testing.assert_close(logits(artifact, ours), theirs, rtol=1e-3, atol=1e-3)
    assert Engine.open(out).generate("The") is not None


def goes_on_to_the_same(asked, folder, *, cut_at):
    """Cut a run short at (step, done) and start it again: its steps then, and what it leaves."""

    def stop(progress):
        if (progress.step, progress.done) == cut_at:
            raise KeyboardInterrupt

    out, steps = folder / "cut", []
    with pytest.raises(KeyboardInterrupt):
        pipeline.apply(asked, out=out, watch=stop)
    pipeline.apply(asked, out=out, watch=lambda progress: steps.append(progress.step))
    assert left_in(out) == left_in(folder / "whole")
    return steps


def left_in(out):
    """Hashes of all tensors, and the config."""
    found = [json.loads((out / name).read_text()) for name in ("manifest.json", "config.json")]
    return found[0]["tensors"], found[1]


def test_rounds_leave_records_of_the_linears_that_are_there(recipe, tmp_path):
    stages = "[{restructure: {depth: 0.75}}, {restructure: {depth: 0.67}}]"
    asked = recipe(stages, "artifact.format=dense", "evaluate.suite=none")
    made = pipeline.apply(asked, out=tmp_path / "out")
    there = {linear.name for linear in open_artifact(tmp_path / "out").anatomy.linears}
    assert {one.name for one in made.results.linears} <= there
    assert {one.block for one in made.results.linears} == {0, 1}


@pytest.mark.slow
def test_a_cut_model_is_judged_verified_and_opened_by_all(recipe, tmp_path):
    out = tmp_path / "out"
    asked = recipe("[{restructure: {depth: 0.75, ffn: 0.5, kv_heads: 1}}]", "artifact.format=dense")
    outcome = pipeline.apply(asked, out=out)
    assert outcome.verification.passed
    (stage,) = outcome.results.stages
    assert (stage.shape.before.blocks, stage.shape.after.blocks) == (4, 3)
    assert [cut.now for cut in stage.shape.blocks].count(None) == 1
    assert {linear.block for linear in stage.linears} == {0, 1, 2}
    assert outcome.results.divergence.kl_mean > 0
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    opened_alike(out)
    assert loaders.tokenizer(out)


def test_a_run_that_is_cut_short_goes_on_to_the_same_bytes(recipe, tmp_path):
    asked = recipe(
        "[{restructure: {depth: 0.75, ffn: 0.5}}, {quantize: {group_size: 32}}]",
        "evaluate.suite=none",
    )
    pipeline.apply(asked, out=tmp_path / "whole")
    goes_on_to_the_same(asked, tmp_path, cut_at=("quantize", 1))


def test_blocks_of_different_widths_are_judged_verified_and_run_here(recipe, tmp_path):
    asked = recipe(
        "[{restructure: {ffn: 0.5, depth: 0.75, uniform: false}}]", "artifact.format=dense",
        intermediate_size=256,
    )  # fmt: skip
    outcome = pipeline.apply(asked, out=tmp_path / "out")
    assert outcome.verification.passed
    (shape,) = [stage.shape for stage in outcome.results.stages]
    kept = [cut.channels for cut in shape.blocks if cut.now is not None]
    artifact = open_artifact(tmp_path / "out")
    assert list(artifact.anatomy.channels) == kept
    assert (sum(kept), len(kept)) == (3 * 128, 3)
    assert all(cut.channels_kl is not None for cut in shape.blocks if cut.now is not None)
    said = {one.name: one.outcome for one in outcome.verification.consumers}
    assert said["compress"] == "passed"
    assert said["transformers"] == ("passed" if len(set(kept)) == 1 else "refused")
    again = recipe(
        "[{quantize: {method: rtn, bits: 8, group_size: 32}}]", "evaluate.suite=none",
        f"teacher.model={tmp_path / 'out'}",
    )  # fmt: skip
    assert pipeline.apply(again, out=tmp_path / "again").verification.passed
    assert list(open_artifact(tmp_path / "again").anatomy.channels) == kept


def test_shares_of_a_run_that_is_cut_short_are_the_same(recipe, tmp_path):
    asked = recipe(
        "[{restructure: {ffn: 0.5, uniform: false}}, {quantize: {group_size: 64}}]",
        "evaluate.suite=none", intermediate_size=256,
    )  # fmt: skip
    pipeline.apply(asked, out=tmp_path / "whole")
    steps = goes_on_to_the_same(asked, tmp_path, cut_at=("restructure", 2))
    assert "share channels" not in steps


@pytest.mark.slow
def test_a_narrower_model_is_opened_by_all_and_goes_on_to_the_same_bytes(recipe, tmp_path):
    asked = recipe("[{restructure: {hidden: 0.5}}]", "artifact.format=dense")
    out = tmp_path / "whole"
    outcome = pipeline.apply(asked, out=out)
    assert outcome.verification.passed
    assert outcome.results.stages[0].shape.after.hidden == 32
    opened_alike(out)
    goes_on_to_the_same(asked, tmp_path, cut_at=("restructure", 3))


@pytest.mark.slow
def test_a_gate_that_escalates_cuts_once(recipe, tmp_path):
    asked = recipe(
        "[{restructure: {ffn: 0.5}}, {quantize: {bits: 4, group_size: 32}}]",
        "evaluate.gates={kl_mean_max: 0.0, on_violation: escalate, rounds_max: 1}",
    )
    steps = []
    with pytest.raises(pipeline.GateMissed):
        pipeline.apply(asked, out=tmp_path / "out", watch=lambda p: steps.append(p.step))
    first = steps.index("escalate")
    assert "restructure" not in steps[first:] or steps[first:].count("restructure") <= 4


@pytest.mark.slow
def test_a_budget_is_shared_out_among_what_is_left(recipe, tmp_path):
    stages = "[{restructure: {ffn: 0.5}}, {allocate: {budget: '4 bits', bits: [2, 4, 8]}}, "
    stages += "{quantize: {group_size: 32}}]"
    asked = recipe(stages, "evaluate.suite=none")
    outcome = pipeline.apply(asked, out=tmp_path / "out")
    assert outcome.results.allocation.size_bytes == open_artifact(tmp_path / "out").size_bytes
    assert outcome.results.after.bits_per_weight <= 4


@pytest.mark.slow
def test_the_best_shape_within_a_size_keeps_it(recipe, tmp_path):
    asked = recipe(
        "[{restructure: {size: '300 KB'}}]", "evaluate.suite=none", "artifact.format=dense"
    )
    outcome = pipeline.apply(asked, out=tmp_path / "out")
    assert open_artifact(tmp_path / "out").size_bytes <= 300_000
    assert outcome.results.stages[0].shape.candidates
