"""A student that begins as another model: same vocabulary and tokenizer, anything else its own."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import pipeline, plan
from compress import smaller as smaller_models
from compress.artifact.layout import open_artifact
from compress.errors import ModelError, RecipeError
from compress.plan import memory, overview, sizes
from compress.plan.footprint import Job
from compress.recipe.load import load
from compress.recipe.student import Student
from compress.results import Limits
from compress.runtime.engine import Engine
from compress.surgery import load as loaders
from compress.surgery.resize import Cut
from compress.surgery.walk import hidden_states, logits
from compress.teacher import beginning as beginnings
from compress.teacher import begun, headers, license, sources
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
    other = tiny_model("llama", vocab_size=2048)
    made = recipe(f"[{LEARN}]", f"student={{model: {other}}}")
    with pytest.raises(RecipeError, match=r"student.model: .* has a vocabulary of 2,048 and the "):
        pipeline.apply(made, out=tmp_path / "a")
    with pytest.raises(RecipeError, match="Choose a model with the teacher's vocabulary"):
        plan.make(made, headers.of_recipe(made), cache=tmp_path)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.partial").exists()


@pytest.fixture
def with_rows(tmp_path):
    """The same model with another number of rows in its vocabulary: noise where no token is."""

    def make(model, rows):
        other = shutil.copytree(model, tmp_path / f"rows-{rows}")
        tensors = load_file(other / "model.safetensors")
        for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            noise = torch.randn(max(0, rows - len(tensors[name])), tensors[name].shape[1])
            tensors[name] = torch.cat([tensors[name][:rows], noise])
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
        return other

    return make


def test_a_longer_vocabulary_of_the_same_tokenizer_is_cut(recipe, tiny_tied, with_rows, tmp_path):
    stages = "[{quantize: {method: rtn, bits: 8, group_size: 32}}]"
    longer = recipe(stages, f"student={{model: {with_rows(tiny_tied, 640)}}}")
    for name, made in (("own", recipe(stages)), ("cut", longer)):
        pipeline.compress_only(made, out=tmp_path / name)
    own, cut = (open_artifact(tmp_path / name) for name in ("own", "cut"))
    assert cut.anatomy == own.anatomy
    for unit in range(len(own.anatomy.blocks)):
        assert all(torch.equal(own.block(unit)[n], t) for n, t in cut.block(unit).items())
    assert all(torch.equal(own.outside()[n], t) for n, t in cut.outside().items())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_shorter_vocabulary_is_filled_with_the_mean_of_its_rows(
    tiny_model, with_rows, family, tmp_path
):
    whole = open_folder(tiny_model(family))
    short = open_folder(tiny_model(family, vocab_size=262))
    found = begun.fit(short, whole, tmp_path)
    assert found.anatomy.tensors == whole.anatomy.tensors
    assert found.config["vocab_size"] == whole.anatomy.vocab_size
    assert loaders.spelled_otherwise(*map(loaders.tokenizer, (found.folder, short.folder))) is None
    longer = beginnings.rows_of_tokens(short.anatomy) & short.anatomy.tensors.keys()
    assert len(longer) == 2
    for name, tensor in short.outside().items():
        now = found.outside()[name]
        assert torch.equal(now[: len(tensor)], tensor)
        mean = tensor.double().mean(0).float()
        assert all(torch.equal(row, mean) for row in now[len(tensor) :])
        assert (len(now) > len(tensor)) == (name in longer)


@pytest.mark.slow
def test_a_shorter_vocabulary_is_planned_taught_judged_and_locked(
    recipe, small, with_rows, tmp_path
):
    short = with_rows(small, 262)
    made = recipe(f"[{LEARN}]", f"student={{model: {short}}}", "artifact.format=dense")
    planned = headers.of_recipe(made)
    found = overview.make(made, planned, cache=tmp_path)
    rows = planned.taught_by.anatomy.vocab_size
    told = f"vocabulary of 262 rows is filled up with {rows - 262} to the teacher's {rows}; whether"
    assert any(told in note for note in found.notes)
    outcome = pipeline.apply(made, out=tmp_path / "a")
    assert outcome.verification.passed
    (stage,) = outcome.results.stages
    assert stage.distilled.kl_after < stage.distilled.kl_before
    artifact = open_artifact(tmp_path / "a")
    assert artifact.anatomy.vocab_size == artifact.config["vocab_size"] == rows
    assert artifact.size_bytes == sizes.size(made, planned).size_bytes
    assert outcome.results.provenance.student == str(short)
    stored = sum(path.stat().st_size for path in (tmp_path / "cache/students").glob("*/*.safe*"))
    assert 0 <= stored - found.disk_bytes["the student's beginning"] < 4096  # a file's header
    pipeline.apply(load(str(tmp_path / "a" / "recipe.lock.yaml")), out=tmp_path / "b")
    hashes = [json.loads((tmp_path / x / "manifest.json").read_text())["tensors"] for x in "ab"]
    assert hashes[0] == hashes[1]


def test_a_vocabulary_without_rows_for_its_tokens_is_refused(
    recipe, tiny_tied, with_rows, tmp_path
):
    made = recipe(f"[{LEARN}]", f"student={{model: {with_rows(tiny_tied, 250)}}}")
    with pytest.raises(ModelError, match=r"the last of which is 260, and the .*rows-250 has 250 r"):
        pipeline.apply(made, out=tmp_path / "a")
    assert not list((tmp_path / "cache" / "students").glob("*.partial"))
    assert not (tmp_path / "a.partial").exists()


def test_files_beside_a_model_go_along_and_decide_which_copy_it_is(tiny_tied, with_rows, tmp_path):
    short = with_rows(tiny_tied, 262)
    (short / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for ends in ([258], [258, 260]):
        (short / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        found = begun.fit(open_folder(short), open_folder(tiny_tied), tmp_path)
        told = json.loads((found.folder / "generation_config.json").read_text())
        assert told["eos_token_id"] == ends
        assert license.stated(found.folder) == "apache-2.0"


def test_padding_by_a_row_that_is_cut_is_no_padding(tiny_tied, with_rows, tmp_path):
    longer = with_rows(tiny_tied, 640)
    config = json.loads((longer / "config.json").read_text())
    for padding, kept in ((600, None), (259, 259)):
        (longer / "config.json").write_text(json.dumps({**config, "pad_token_id": padding}))
        found = begun.fit(open_folder(longer), open_folder(tiny_tied), tmp_path)
        assert found.config["pad_token_id"] == kept


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_plan_counts_the_copy_in_the_dtype_it_is_written_in(
    recipe, tiny_tied, with_rows, dtype, tmp_path
):
    made = recipe(f"[{LEARN}]", f"student={{model: {with_rows(tiny_tied, 262)}}}",
                  f"teacher.dtype={dtype}")  # fmt: skip
    planned = headers.of_recipe(made)
    disk = overview.make(made, planned, cache=tmp_path).disk_bytes["the student's beginning"]
    sources.origin_of(made, sources.of_recipe(made))
    stored = sum(path.stat().st_size for path in (tmp_path / "cache/students").glob("*/*.safe*"))
    assert 0 <= stored - disk < 4096  # a file's header


def test_nothing_is_written_for_a_recipe_that_cannot_be(recipe, tiny_tied, with_rows, tmp_path):
    stages = "[{quantize: {method: rtn, bits: 4, group_size: 48}}]"
    for student in (
        f"model: {with_rows(tiny_tied, 640)}",
        "init: sliced, config: {num_hidden_layers: 1}",
    ):
        with pytest.raises(RecipeError, match="group_size"):
            pipeline.apply(recipe(stages, f"student={{{student}}}"), out=tmp_path / "a")
    assert not (tmp_path / "cache" / "students").exists()


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


@pytest.fixture
def smaller(recipe):
    return lambda stages, config, *sets: recipe(stages, f"student={config}", *sets)


NARROW = "num_hidden_layers: 1, hidden_size: 32, intermediate_size: 64, num_attention_heads: 2"


@pytest.mark.parametrize("init", ["sliced", "fresh"])
def test_a_smaller_config_is_made_taught_judged_verified_and_opened(smaller, init, tmp_path):
    made = smaller(f"[{LEARN}]", f"{{config: {{{NARROW}}}, init: {init}}}", "artifact.format=dense")
    planned = headers.of_recipe(made)
    outcome = pipeline.apply(made, out=tmp_path / "a")
    assert outcome.verification.passed
    (stage,) = outcome.results.stages
    assert stage.distilled.kl_after < stage.distilled.kl_before
    artifact = open_artifact(tmp_path / "a")
    assert artifact.anatomy.tensors == planned.anatomy.tensors
    assert artifact.size_bytes == sizes.size(made, planned).size_bytes
    assert (artifact.anatomy.hidden_size, len(artifact.anatomy.blocks)) == (32, 1)
    assert artifact.config["num_key_value_heads"] == 1  # groups of heads stay as they are
    assert artifact.config["head_dim"] == 16
    assert outcome.results.provenance.student.startswith(f"{init} {made.teacher.model} (num_hid")
    lock = load(str(tmp_path / "a" / "recipe.lock.yaml"))
    assert lock.student == made.student
    assert headers.of_recipe(lock).anatomy == planned.anatomy


def test_blocks_are_sliced_from_the_first_to_the_last_and_heads_from_the_front(tiny_model):
    teacher = open_folder(tiny_model("llama", num_hidden_layers=5))
    asked = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
    left = smaller_models.remains(teacher.config, teacher.anatomy, asked)
    assert list(left.blocks) == [0, 2, 4]
    assert left.blocks[2].heads == (0, 2)  # the first of each group of two
    found = Cut(teacher, left)
    was = teacher.block(2)["model.layers.2.self_attn.q_proj.weight"]
    now = found.block(1)["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(now, torch.cat([was[:16], was[32:48]]))


def test_a_seed_decides_what_is_drawn(tiny_llama, tmp_path):
    teacher = open_folder(tiny_llama)
    found = []
    for seed in (0, 0, 1):
        spec = Student(config={"num_hidden_layers": 1}, init="fresh", seed=seed)
        made = begun.make(teacher, spec, tmp_path / str(len(found)))
        found.append(made.block(0)["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert float(found[0].std()) == pytest.approx(0.2, rel=0.1)  # as the config asks


def test_all_sizes_that_cannot_be_are_told_at_once(smaller, tmp_path):
    wrong = "{config: {num_hidden_layers: 9, hidden_size: 50, num_attention_heads: 3}}"
    made = smaller(f"[{LEARN}]", wrong)
    with pytest.raises(RecipeError) as caught:
        pipeline.apply(made, out=tmp_path / "a")
    told = "\n".join(caught.value.mistakes)
    assert len(caught.value.mistakes) == 3
    assert "student.config.num_hidden_layers: 9, and the teacher has 2 blocks" in told
    assert "3 query heads" in told or "would share keys and values" in told
    assert "student.config.hidden_size: 3 heads do not divide a width of 50" in told
    with pytest.raises(RecipeError, match="and the teacher has 2 blocks"):
        headers.of_recipe(made)
    assert not (tmp_path / "a.partial").exists()


def test_families_say_why_they_cannot_be_smaller(tiny_model):
    teacher = open_folder(tiny_model("gpt2"))
    asked = {"num_attention_heads": 2, "hidden_size": 32, "num_hidden_layers": 1}
    found = dict(smaller_models.flaws(teacher.config, teacher.anatomy, asked, sliced=True))
    assert "gpt2 has no head_dim" in found["num_attention_heads"]
    assert "norms of gpt2 do more than scale" in found["hidden_size"]
    same = {"num_hidden_layers": 2}
    flaws = smaller_models.flaws(teacher.config, teacher.anatomy, same, sliced=True)
    assert "nothing is smaller" in dict(flaws)["num_hidden_layers"]


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("{}", "holds neither model nor config"),
        ("{config: {}}", "is empty. Give one or more of num_hidden_layers"),
        ("{config: {num_hidden_layers: 0}}", "must be at least 1"),
        ("{config: {num_layers: 3}}", "unknown field"),
        ("{config: {num_hidden_layers: 1}, model: a/b}", "but config is given too"),
        ("{config: {num_hidden_layers: 1}, revision: abc}", "belongs to model"),
        ("{config: {num_hidden_layers: 1}, seed: 3}", "sliced draws no numbers"),
        ("{model: a/b, init: fresh}", "belongs to config"),
    ],
)
def test_a_student_that_is_said_badly_is_refused(smaller, student, words):
    with pytest.raises(RecipeError, match=words):
        smaller(f"[{LEARN}]", student)


def test_a_plan_tells_what_will_be_made(smaller, tmp_path):
    made = smaller(f"[{LEARN}]", f"{{config: {{{NARROW}}}}}")
    found = overview.make(made, headers.of_recipe(made), cache=tmp_path)
    assert any("the student begins as sliced" in note for note in found.notes)
    assert any("its tokenizer is the teacher's" in note for note in found.notes)
    made_of = headers.of_recipe(made).anatomy.tensors.values()
    assert found.disk_bytes["the student's beginning"] == sum(4 * math.prod(s) for s in made_of)
    assert not (tmp_path / "students").exists()
