"""What training takes is told before it begins; what cannot be read is refused."""

import pytest

from compress import pipeline, plan
from compress.errors import RecipeError
from compress.forwards import training_pass
from compress.plan import overview, teaching, work
from compress.plan.footprint import Job
from compress.results import Limits
from compress.surgery.learning import Learner
from compress.teacher import headers

ROUND = "{quantize: {method: rtn, bits: 4, group_size: 32}}"
FIELDS = "held_out: 2, steps: 3, batch_tokens: 64, check_every: 2"
HEALED = f"[{{prune: {{method: magnitude, sparsity: 0.5}}}}, {{distill: {{{FIELDS}}}}}]"
SCALES = f"[{ROUND}, {{distill: {{train: scales_and_norms, {FIELDS}}}}}]"
LORA = f"[{{restructure: {{ffn: 0.5}}}}, {{distill: {{train: lora, {FIELDS}}}}}]"
CODES = SCALES.replace("scales_and_norms", "codes")
ENDS = SCALES.replace(FIELDS, f"embedding_learning_rate: 0.001, {FIELDS}")


@pytest.mark.parametrize("stages", [HEALED, SCALES, CODES, ENDS])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_learns_is_counted(tiny_model, recipe_for, tmp_path, monkeypatch, stages, family):
    folder, seen = tiny_model(family, tied=True), []
    real = Learner.learning

    def learning(self):
        found = real(self)
        seen.append(sum(parameter.numel() for parameter in found.values()))
        return found

    monkeypatch.setattr(Learner, "learning", learning)
    recipe = recipe_for(folder, f"stages={stages}")
    pipeline.compress_only(recipe, out=tmp_path / "out")
    ((_, spec),) = recipe.distillations
    expected = teaching.learned(recipe, spec, headers.read(str(folder)).anatomy)
    biases = 0 if spec.train == "all" else expected // 10  # of norms, which are not told apart
    assert max(seen) == pytest.approx(expected, abs=biases)


def test_a_plan_tells_steps_bytes_and_rereading(tiny_llama, recipe_for, tmp_path):
    found = overview.make(
        recipe_for(tiny_llama, f"stages={HEALED}"), headers.read(str(tiny_llama)), cache=tmp_path
    )
    told = " ".join(found.notes)
    assert "stages[1].distill: 3 steps of 64 tokens" in told
    assert "128 bytes a token cached" in told
    assert "learned by heart" not in told
    assert found.disk_bytes["what the teacher says"] == 8 * 32 * 64 * 4
    assert found.disk_bytes["state of training"] > 0
    many = recipe_for(tiny_llama, f"stages={HEALED.replace('steps: 3', 'steps: 30')}")
    notes = overview.make(many, headers.read(str(tiny_llama)), cache=tmp_path).notes
    assert "192 tokens are read 10.0 times" in " ".join(notes)
    assert "numbers learn from 192 tokens: less than 16,384 teach a student these" in " ".join(
        notes
    )


def test_training_counts_in_memory_and_time(tiny_llama, recipe_for):
    found = headers.read(str(tiny_llama))
    without = Job(recipe_for(tiny_llama), found, None, 4)
    taught = Job(recipe_for(tiny_llama, f"stages={SCALES}"), found, None, 4)
    assert teaching.memory(without, Limits()) == 0
    assert teaching.memory(taught, Limits()) > taught.base_bytes
    steps = 3 * 3 * 64 * 2 * found.anatomy.weights  # there and back
    assert work.work(taught)["compress"] > work.work(without)["compress"] + steps
    assert teaching.work(taught, 0) == 0
    rounded = Job(recipe_for(tiny_llama, f"stages={CODES}"), found, None, 4)
    more = teaching.memory(rounded, Limits()) - teaching.memory(taught, Limits())
    assert more == 16 * found.anatomy.weights  # latent codes, gradients, two moments


def test_less_memory_means_fewer_windows_at_once_then_blocks_again(tiny_llama):
    anatomy = headers.read(str(tiny_llama)).anatomy
    roomy, tight, none = (training_pass(anatomy, 4, 32, 4, room) for room in (1 << 30, 500_000, 1))
    assert roomy == (4, False)
    assert 1 <= tight[0] < 4
    assert none == (1, True)


def test_a_window_longer_than_the_model_is_refused(tiny_llama, recipe_for):
    text = "text: {set: smoke, seq_len: 512, samples: 16}"
    stages = f"[{ROUND}, {{distill: {{train: scales_and_norms, {text}, batch_tokens: 512}}}}]"
    recipe = recipe_for(tiny_llama, f"stages={stages}")
    with pytest.raises(RecipeError, match=r"stages\[1\]\.distill\.text\.seq_len: 512 tokens"):
        plan.check(
            recipe, headers.read(str(tiny_llama)).anatomy,
            config=headers.read(str(tiny_llama)).config,
        )  # fmt: skip


def test_an_embedding_that_becomes_codes_cannot_learn_as_floats(tiny_model, recipe_for):
    stages = ENDS.replace("group_size: 32", "group_size: 32, head: 8")
    for tied in (True, False):
        folder = tiny_model("llama", tied=tied)
        recipe, found = recipe_for(folder, f"stages={stages}"), headers.read(str(folder))
        if not tied:  # the embedding is a matrix of its own
            plan.check(recipe, found.anatomy, config=found.config)
            continue
        with pytest.raises(RecipeError, match=r"embedding_learning_rate: the head is the embed"):
            plan.check(recipe, found.anatomy, config=found.config)


def test_lora_without_peft_is_refused_before_any_work(tiny_llama, recipe_for, monkeypatch):
    recipe, found = recipe_for(tiny_llama, f"stages={LORA}"), headers.read(str(tiny_llama))
    plan.check(recipe, found.anatomy, config=found.config)
    job = Job(recipe, found, None, 4)
    assert teaching.learned(recipe, recipe.distillations[0][1], found.anatomy) == 16 * sum(
        linear.in_features + linear.out_features for linear in found.anatomy.linears
    )
    assert teaching.memory(job, Limits()) > job.base_bytes
    monkeypatch.setattr(teaching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"lora needs peft.*pip install 'compress-llm\[lora\]'"):
        plan.check(recipe, found.anatomy, config=found.config)


def test_a_text_that_the_teacher_writes_takes_its_memory(tiny_llama, recipe_for):
    own = SCALES.replace(FIELDS, f"text: {{set: self, samples: 16, seq_len: 32}}, {FIELDS}")
    job = Job(recipe_for(tiny_llama, f"stages={own}"), headers.read(str(tiny_llama)), None, 4)
    assert job.writes
    assert work.work(job)["calibrate"] > 0


def test_a_set_of_ones_own_may_ask_the_teacher_to_write_too(tiny_llama, recipe_for, tmp_path):
    mine = tmp_path / "mine-set.yaml"
    mine.write_text("version: 1\nkind: self\nseeding: vocabulary\n")
    recipe = recipe_for(tiny_llama, f"calibration.set={mine}", "quantize.method=gptq")
    job = Job(recipe, headers.read(str(tiny_llama)), None, 4)
    assert [part.set for part in job.written] == [str(mine)]


def test_blocks_that_are_not_there_cannot_be_matched(tiny_llama, recipe_for):
    pairs = "loss: {hidden: {blocks: [[0, 1], [2, 5]]}}"
    half = f"[{{restructure: {{depth: 0.5}}}}, {{distill: {{{FIELDS}, {pairs}}}}}]"
    found = headers.read(str(tiny_llama))
    with pytest.raises(RecipeError) as caught:
        plan.check(recipe_for(tiny_llama, f"stages={half}"), found.anatomy, config=found.config)
    mistakes = "\n".join(caught.value.mistakes)
    assert "stages[1].distill.loss.hidden.blocks: block 2 of the student, which has 1" in mistakes
    assert "block 5 of the teacher, which has 2, 0 to 1. Name those, or use uniform." in mistakes
    searched = half.replace("depth: 0.5", "keep: 0.5").replace("[2, 5]", "[1, 1]")
    with pytest.raises(RecipeError, match="how many blocks there will be is searched for"):
        plan.check(recipe_for(tiny_llama, f"stages={searched}"), found.anatomy, config=found.config)


def test_a_teacher_beside_counts_in_memory_and_time_and_is_told(tiny_llama, recipe_for, tmp_path):
    found = headers.read(str(tiny_llama))
    hidden = HEALED.replace(FIELDS, f"{FIELDS}, loss: {{hidden: {{}}}}")
    plain, beside = (
        Job(recipe_for(tiny_llama, f"stages={stages}"), found, None, 4)
        for stages in (HEALED, hidden)
    )
    assert teaching.memory(beside, Limits()) > teaching.memory(plain, Limits())
    more = teaching.work(beside, 1) - teaching.work(plain, 1)
    assert more == 3 * 64 * 2 * found.anatomy.weights  # a forward in every step
    notes = overview.make(beside.recipe, found, cache=tmp_path).notes
    assert "stages[1].distill: 2 blocks of the teacher run beside every step" in notes


def test_a_student_that_writes_takes_its_teacher_beside_and_the_time_to_write(
    tiny_llama, recipe_for, tmp_path
):
    found = headers.read(str(tiny_llama))
    own = HEALED.replace(FIELDS, f"{FIELDS}, on_policy: {{share: 0.5, prompt_tokens: 8}}")
    plain, writing = (
        Job(recipe_for(tiny_llama, f"stages={stages}"), found, None, 4) for stages in (HEALED, own)
    )
    assert teaching.memory(writing, Limits()) > teaching.memory(plain, Limits())
    more = teaching.work(writing, 1) - teaching.work(plain, 1)
    whole = 2 * found.anatomy.weights + found.anatomy.head.weights  # written, and read beside
    assert more == 0.5 * 3 * 64 * 2 * whole
    notes = overview.make(writing.recipe, found, cache=tmp_path).notes
    assert any("2 blocks of the teacher run beside steps on the student" in note for note in notes)


def test_what_the_teacher_writes_to_prompts_counts_as_its_writing(tiny_llama, recipe_for):
    text = "text: {set: teacher, samples: 16, seq_len: 32, prompts: [sky, sea]}"
    job = Job(
        recipe_for(tiny_llama, f"stages={SCALES.replace(FIELDS, f'{text}, {FIELDS}')}"),
        headers.read(str(tiny_llama)), None, 4,
    )  # fmt: skip
    assert job.writes
