import pytest
import yaml
from pydantic import ValidationError

from compress.errors import RecipeError
from compress.recipe import resolve
from compress.recipe.distill import Distill, Lora, Loss
from compress.recipe.load import load
from compress.recipe.schema import Recipe

CUT, ROUND = {"restructure": {"ffn": 0.5}}, {"quantize": {"method": "gptq"}}
SCALES = {"distill": {"train": "scales_and_norms"}}
RATHER = {"reason_weight": 0.0, "answer_weight": 0.0}
CODES = {"distill": {"train": "codes"}}


def recipe(*stages, **sections):
    return Recipe.model_validate(
        {"version": 1, "teacher": {"model": "a/b"}, "stages": stages, **sections}
    )


def test_defaults_follow_what_is_trained_and_what_is_asked():
    assert (Distill().learning_rate, Distill(train="scales_and_norms").learning_rate) == (
        1e-4,
        1e-3,
    )
    assert Distill(train="scales_and_norms", learning_rate=0.5).learning_rate == 0.5
    rounded = Distill(train="codes", learning_rate=0.01)
    assert (rounded.learning_rate, rounded.scale_learning_rate) == (0.01, 1e-3)
    assert Distill().scale_learning_rate is None
    assert Distill(train="lora").lora == Lora(rank=16, alpha=32)
    assert (Loss().beta, Loss(kind="jensen_shannon").beta) == (None, 0.5)


def test_every_rate_in_use_is_named_for_whoever_is_to_lower_one():
    assert Distill().rates == {"learning_rate": 1e-4}
    fields = {"train": "codes", "embedding_learning_rate": 0.5, "learning_rate": 0.01}
    assert Distill(**fields).rates == {
        "learning_rate": 0.01, "scale_learning_rate": 1e-3, "embedding_learning_rate": 0.5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": {"temperature": 0.0}}, "greater than 0"),
        ({"loss": {"temperature": -1.0}}, "greater than 0"),
        ({"loss": {"kind": "reverse_kl", "beta": 0.3}}, "choose kind: jensen_shannon"),
        ({"loss": {"cross_entropy": 1.0}}, "less than 1"),
        ({"loss": {"kind": "mse"}}, "forward_kl"),
        ({"loss": {"hidden": {"weight": 0.0}}}, "greater than 0"),
        ({"loss": {"hidden": {"measure": "l1"}}}, "mse"),
        ({"loss": {"hidden": {"blocks": [[0, 1], [0, 3]]}}}, "block 0 of the student stands for"),
        ({"loss": {"hidden": {"blocks": [[-1, 1]]}}}, "greater than or equal to 0"),
        ({"loss": {"hidden": {"blocks": [[1, 2, 3]]}}}, "at most 2"),
        ({"on_policy": {"share": 0.0}}, "greater than 0"),
        ({"on_policy": {"share": 1.5}}, "less than or equal to 1"),
        ({"on_policy": {"prompt_tokens": 512}, "text": {}}, "all of a window of 512"),
        ({"text": {"rationale": {}}}, "nothing to reason about"),
        ({"text": {"prompts": ["a"], "rationale": RATHER}}, "nothing would count"),
        ({"text": {"prompts": ["a"], "templates": ["x"]}}, "no place for a prompt"),
        ({"text": {"templates": ["{prompt}"]}}, "nothing to put into them"),
        ({"text": {"set": ["self", "smoke"], "top_p": 0.5}}, "belongs to one set"),
        ({"steps": 10, "epochs": 2.0}, "steps is given too"),
        ({"text": {"samples": 8}, "held_out": 8}, "none is left to train on"),
        ({"text": {"seq_len": 512}, "batch_tokens": 256}, "less than one window of 512"),
        ({"tokens": 5}, "Extra inputs"),
        ({"scale_learning_rate": 0.1}, "all does not use this field"),
        ({"lora": {"rank": 4}}, "all does not use this field"),
        ({"train": "codes", "weight_decay": 0.1}, "codes does not use this field"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        Distill(**fields)


def test_steps_are_counted_from_epochs_and_windows():
    spec = Distill(epochs=2.0, batch_tokens=1024)
    assert (spec.windows_a_step(512), spec.steps_on(100, 512)) == (2, 100)
    assert Distill(steps=7).steps_on(100, 512) == 7
    assert Distill(batch_tokens=4096).steps_on(3, 512) == 1


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"distill": {}}], "nothing to learn from it"),
        ([{"rotate": {}}, {"distill": {}}], "nothing to learn from it"),
        ([ROUND, {"distill": {}}], r"stages\[1\].distill.train: all"),
        ([ROUND, {"distill": {"train": "lora"}}], "train: lora, but a stage before it has rounded"),
        (
            [{"prune": {"method": "magnitude", "sparsity": 0.5}}, {"distill": {"train": "lora"}}],
            "fill",
        ),
        ([CUT, SCALES], "no stage before it rounds anything"),
        ([CUT, CODES], "train: codes, but no stage before it rounds anything"),
        ([{"quantize": {"method": "nvfp4"}}, CODES], "not on those of nvfp4"),
        ([{"quantize": {"method": "fp8"}}, SCALES], "not on those of fp8"),
        ([{"quantize": {"method": "llm_int8"}}, SCALES], "not on those of llm_int8"),
        (
            [{"rotate": {"residual": "hadamard"}}, CUT, {"distill": {"loss": {"hidden": {}}}}],
            "rotate has turned the student's hidden states",
        ),
        ([CUT, {"distill": {}}, CUT], "would undo what distill before it did"),
        ([CUT, {"distill": {"held_out": 200}}], "200 of 128 windows"),
        ([CUT, {"distill": {"on_policy": {"prompt_tokens": 600}}}], "all of a window of 512"),
        ([CUT, {"distill": {"batch_tokens": 64}}], "less than one window of 512"),
    ],
)
def test_a_stage_learns_only_what_is_there(stages, words):
    with pytest.raises(ValidationError, match=words):
        recipe(*stages)


def test_scales_that_were_trained_are_not_rounded_again():
    gates = {"suite": "quick", "gates": {"kl_mean_max": 0.1, "on_violation": "escalate"}}
    with pytest.raises(ValidationError, match="scales that were trained"):
        recipe(ROUND, SCALES, evaluate=gates)
    with pytest.raises(ValidationError, match="scales that were trained"):
        recipe(ROUND, CODES, evaluate=gates)
    assert recipe(CUT, {"distill": {}}, ROUND, evaluate=gates)


def test_a_text_of_its_own_needs_no_calibration():
    own = {"distill": {"text": {"set": "smoke", "samples": 9}}}
    rounding = {"quantize": {"method": "rtn", "scale_search": "mse"}}
    scales = {"distill": {**SCALES["distill"], **own["distill"]}}
    assert not recipe(rounding, scales).needs_calibration
    assert recipe(rounding, SCALES).needs_calibration
    made = recipe(rounding, scales)
    assert made.read_by(made.distillations[0][1]).set == "smoke"


def test_a_lock_says_all_and_is_read_again(tmp_path):
    stages = [CUT, {"distill": {"loss": {"kind": "jensen_shannon"}, "text": {"set": "smoke"}}}]
    path = tmp_path / "recipe.lock.yaml"
    facts = {"text_revisions": {1: "abc"}, "text_fingerprints": ("f" * 64,)}
    path.write_text(resolve.lock(recipe(*stages), facts))
    again = load(str(path))
    assert again.resolved.text_fingerprints == ("f" * 64,)
    spec = again.distillations[0][1]
    assert (spec.text.revision, spec.loss.beta) == ("abc", 0.5)
    assert load(str(path)).model_dump() == again.model_dump()


def test_an_unknown_text_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    stages = [CUT, {"distill": {"text": {"set": "smoek"}}}]
    path.write_text(yaml.safe_dump({"version": 1, "teacher": {"model": "a/b"}, "stages": stages}))
    with pytest.raises(RecipeError, match=r"distill\.text\.set: .*smoke"):
        load(str(path))


def test_what_is_held_out_by_default_leaves_some():
    with pytest.raises(ValidationError, match="8 of 8 windows are held out"):
        Distill.model_validate({"text": {"set": "smoke", "samples": 8, "seq_len": 32}})
