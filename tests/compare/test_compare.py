"""Artifacts side by side: one protocol is ranked, two are told apart, nothing is silent."""

import json
import shutil
from dataclasses import replace

import pytest
from conftest import imported_by
from contenders import copies, found, items, put, score, three

from compress.compare import compare
from compress.compare.measures import interval
from compress.compare.paired import ALL, mcnemar
from compress.errors import ArtifactError
from compress.results import TaskScore, Timed
from compress.results.comparison import Judged, Reply


@pytest.fixture(scope="module")
def folders(tiny_llama, tmp_path_factory):
    return three(tiny_llama, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def comparison(folders):
    return compare(folders)


def two(tiny_llama, tmp_path, first, second):
    a, b = copies(tiny_llama, tmp_path, "a b")
    return compare([put(a, first), put(b, second)])


def test_numbers_of_one_protocol_are_ranked_the_best_first(comparison):
    assert comparison.measure("perplexity").ranking == ("good", "other", "small")
    assert comparison.measure("top1_agreement").better == "high"
    assert comparison.measure("tasks.cloze.acc").ranking == ("other", "good", "small")


def test_sizes_come_from_the_headers_and_the_head_counts_where_it_is_asked_for(comparison):
    entry = comparison.artifacts[0]
    assert sum(entry.parts_bytes.values()) == entry.size_bytes
    numbers = [
        comparison.measure(name).numbers["small"].value
        for name in ("bits_per_weight", "bits_per_weight_with_head")
    ]
    assert numbers == [32.0, 32.0] or numbers == [16.0, 16.0]


def test_a_tied_head_counts_as_one(tiny_tied, tmp_path):
    (a,) = copies(tiny_tied, tmp_path, "a")
    entry = compare([a])
    assert entry.measure("bits_per_weight_with_head").numbers["a"].value in (16.0, 32.0)


def test_folders_go_by_the_names_that_are_given(folders):
    names = ["mine (bits 4)", "mine (bits 8)", "theirs"]
    found = compare(folders, names=names)
    assert [one.name for one in found.artifacts] == names
    assert set(found.front.names) <= set(names)
    with pytest.raises(ArtifactError, match="2 folders are called mine"):
        compare(folders, names=["mine", "mine", "theirs"])


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (found(seq_len=256), "seq_len"),
        (found(text="u" * 64), "text"),
        (found(text="", teacher="g"), "teacher"),
        (found(text="", before=9.5), "perplexity of the teacher"),
    ],
)
def test_perplexities_of_other_protocols_are_shown_and_not_ranked(
    tiny_llama, tmp_path, other, field
):
    measure = two(tiny_llama, tmp_path, found(), other).measure("perplexity")
    assert not measure.comparable
    assert measure.ranking == ()
    assert field in [one.name for one in measure.differs]
    assert set(measure.numbers) == {"a", "b"}


def test_where_no_hash_was_kept_what_the_teacher_scored_speaks_for_the_text(tiny_llama, tmp_path):
    comparison = two(tiny_llama, tmp_path, found(text=""), found(9.0, text="", before=9.0001))
    assert comparison.measure("perplexity").ranking == ("b", "a")


def test_a_divergence_from_another_teacher_is_another_number(tiny_llama, tmp_path):
    comparison = two(tiny_llama, tmp_path, found(), found(teacher="g"))
    assert [one.name for one in comparison.measure("kl_mean").differs] == ["teacher"]
    assert comparison.measure("perplexity").comparable  # the text is the same by its hash


def test_speeds_of_other_threads_are_not_ranked(comparison):
    decode = comparison.measure("decode_tokens_per_second")
    assert [one.name for one in decode.differs] == ["hardware", "threads"]
    assert decode.differs[1].values == {"small": 2, "good": 2, "other": 1}


def test_the_front_holds_whom_no_other_beats_in_both(comparison):
    assert (comparison.front.x, comparison.front.y) == ("size_bytes", "kl_mean")
    assert comparison.front.names == ("good",)


def test_recipes_differ_field_by_field_and_stages_by_their_names(comparison):
    differing = {one.name: one.values for one in comparison.recipe}
    assert differing == {
        "stages": {
            "small": "quantize", "good": "quantize, distill", "other": "quantize"
        },
        "quantize.bits": {"small": 3, "good": 4, "other": 4},
        "distill.steps": {"small": "–", "good": 48, "other": "–"},
    }  # fmt: skip
    assert "threads" in [one.name for one in comparison.made_by]


def test_pairs_are_tested_item_by_item(comparison):
    pair = next(p for p in comparison.pairs if (p.first, p.second) == ("small", "good"))
    assert (pair.items, pair.first_alone, pair.second_alone) == (12, 0, 5)
    assert pair.p_value == pytest.approx(2 / 2**5)
    assert ALL not in [one.task for one in comparison.pairs]  # of one task there is no sum


def test_flipped_answers_are_told_with_their_questions(comparison):
    assert [flip.item for flip in comparison.flipped] == [1, 2, 3, 4, 5, 6]
    flip, item = comparison.flipped[1], items()[2]
    assert (flip.question, flip.expected) == (
        item["query"],
        item["choices"][item["gold"]].strip(),
    )
    assert flip.right == {"small": False, "good": True, "other": True}
    assert flip.answers["good"] == flip.expected != flip.answers["small"]


def test_items_of_another_version_of_a_task_are_told_by_their_numbers(tiny_llama, tmp_path):
    def changed(results):
        task = replace(results.after.tasks[0], fingerprint="other")
        return replace(results, after=replace(results.after, tasks=(task,)))

    comparison = two(tiny_llama, tmp_path, changed(found(wrong=(0,))), changed(found()))
    (flip,) = comparison.flipped
    assert (flip.question, flip.expected) == ("", "")
    assert flip.answers["a"].startswith("choice ")


def test_where_answers_were_not_kept_only_intervals_are_told(tiny_llama, tmp_path):
    bare = found()
    task = replace(score(), answered=(), right=(), fingerprint="")
    bare = replace(bare, after=replace(bare.after, tasks=(task,)))
    comparison = two(tiny_llama, tmp_path, bare, bare)
    assert (comparison.pairs, comparison.flipped) == ((), ())
    number = comparison.measure("tasks.cloze.acc").numbers["a"]
    assert number.low < number.value <= number.high


def test_prompts_stand_beside_the_answer_of_the_one_teacher(comparison):
    (prompt,) = comparison.prompts
    assert prompt.teacher == "It rains down."
    assert list(prompt.answers) == ["small", "good", "other"]


def test_a_model_without_results_appears_with_its_sizes_and_a_note(tiny_llama, folders, tmp_path):
    (plain,) = copies(tiny_llama, tmp_path, "plain")
    comparison = compare([*folders, plain])
    assert comparison.artifacts[-1].notes == (
        "sizes only: no results.json; --evaluate SUITE measures it",
    )
    assert "plain" in comparison.measure("size_bytes").numbers
    assert "plain" not in comparison.measure("perplexity").numbers


def now(perplexity, **more):
    """A folder as it is judged now."""
    whole = found(perplexity)
    timed = Timed(200.0, 2000.0, 0.05, 3 * 10**8, 5, "a processor", 1, {"torch": "2.13.0"})
    replies = (Reply("Why?", None, "Because."),)
    return Judged(
        whole.after.perplexity, whole.after.tasks, "bfloat16", replies=replies, timed=timed, **more
    )


def test_evaluate_measures_everyone_anew_by_one_suite(tiny_llama, tmp_path):
    a, plain = copies(tiny_llama, tmp_path, "a plain")
    asked = []

    def evaluate(folders):
        asked.extend(folders)
        kl = {"divergence": found().divergence, "teacher": "m", "teacher_fingerprint": "f"}
        return [now(7.0, **kl), now(8.0, notes=("no KL: none",))]

    comparison = compare([put(a, found(seq_len=256)), plain], suite="smoke", evaluate=evaluate)
    assert asked == [a, plain]
    perplexity = comparison.measure("perplexity")
    assert {who: n.value for who, n in perplexity.numbers.items()} == {"a": 7.0, "plain": 8.0}
    assert perplexity.comparable
    assert comparison.suite == "smoke"
    assert comparison.measure("kl_mean").numbers["a"].protocol["teacher"] == "f"
    assert comparison.artifacts[1].notes == ("no KL: none",)


def test_a_plain_folder_that_is_judged_now_is_timed_and_answers_too(tiny_llama, tmp_path):
    a, plain = copies(tiny_llama, tmp_path, "a plain")
    comparison = compare([put(a, found()), plain], evaluate=lambda _: [now(7.0), now(8.0)])
    for name in ("decode_tokens_per_second", "ttft_seconds", "answering_memory_bytes"):
        measure = comparison.measure(name)
        assert set(measure.numbers) == {"a", "plain"}
        assert measure.comparable
    decode = comparison.measure("decode_tokens_per_second").numbers["a"]
    assert decode.value == 200  # timed now: that of the run is another protocol's
    assert decode.protocol == {
        "hardware": "a processor", "device": "cpu", "threads": 1, "prompt tokens": 128,
        "new tokens": 64, "torch": "2.13.0", "median of answers": 5,
    }  # fmt: skip
    (prompt,) = comparison.prompts
    assert (prompt.prompt, prompt.teacher) == ("Why?", None)
    assert prompt.answers == {"a": "Because.", "plain": "Because."}


def test_all_mistakes_are_told_at_once(tiny_llama, folders, tmp_path):
    (newer,) = copies(tiny_llama, tmp_path, "newer")
    put(newer, found())
    told = json.loads((newer / "results.json").read_text())
    (newer / "results.json").write_text(json.dumps({**told, "schema_version": 2}))
    (tmp_path / "empty").mkdir()
    again = shutil.copytree(folders[0], tmp_path / "small")
    wrong = [*folders, again, newer, tmp_path / "missing", tmp_path / "empty"]
    with pytest.raises(ArtifactError) as caught:
        compare(wrong)
    text = str(caught.value)
    assert f"{folders[0]}, {again}: 2 folders are called small" in text
    assert "schema_version 2, this version reads 1" in text
    assert f"{tmp_path / 'missing'}: no such folder" in text
    assert f"{tmp_path / 'empty' / 'config.json'}: cannot be read" in text
    assert "4 mistakes; nothing was compared." in text


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1.0), (3, 3, 1.0), (0, 6, 2 / 64), (1, 8, 20 / 512)]
)
def test_the_paired_test_is_the_exact_binomial_one(first, second, p):
    assert mcnemar(first, second) == pytest.approx(p)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_the_interval_is_wilsons():
    low, high = interval(TaskScore("t", "acc", 10, 0.5, 0.1))
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = interval(TaskScore("t", "acc", 10, 1.0, 0.0))
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_comparing_starts_without_torch():
    program = "import compress.compare, compress.report.compared.page, compress.cli.compare"
    assert not {"torch", "transformers", "matplotlib"} & imported_by(program)
