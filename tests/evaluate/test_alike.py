"""Several folders judged alike: one suite, one teacher, one way to be timed."""

import shutil

import pytest

from compress.errors import EvaluationError
from compress.evaluate import alike
from compress.results import Timed

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60
LOCK = """\
version: 1
teacher: {{model: {teacher}, dtype: float32}}
calibration: {{set: smoke}}
stages: [{{quantize: {{bits: 4, group_size: 32}}}}]
evaluate: {{suite: smoke}}
"""


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Judge folders by a suite of one text and one prompt; without a clock."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    threads = []

    def timed(folder, count):
        threads.append(count)
        if folder.name == "slow":
            raise EvaluationError("this model is not run here")
        return Timed(100.0, 1000.0, 0.1, 10**8, 5, "a processor", count)

    monkeypatch.setattr(alike.speed, "timed_alone", timed)
    (tmp_path / "text.txt").write_text(TEXT)
    suite, windows = tmp_path / "suite.yaml", "{set: ./text.txt, seq_len: 32, windows: 2}"
    prompts = "samples: {prompts: [The quick], max_new_tokens: 4}"
    suite.write_text(f"version: 1\nperplexity: {windows}\ndivergence: {windows}\n{prompts}\n")

    def judge(*folders, **how):
        found = alike.judge_alike(folders, suite=str(suite), **how)
        assert len(set(threads)) == 1  # the same for all
        return found

    return judge


@pytest.fixture
def copied(tmp_path):
    """Copy a model, with a lock that names a teacher or without one."""

    def copy(model, name, teacher=None):
        folder = shutil.copytree(model, tmp_path / name)
        if teacher:
            (folder / "recipe.lock.yaml").write_text(LOCK.format(teacher=teacher))
        return folder

    return copy


def test_a_plain_folder_is_held_against_the_teacher_that_all_locks_name(
    judged, copied, tiny_llama, tiny_tied
):
    a, plain = copied(tiny_tied, "a", tiny_llama), copied(tiny_tied, "plain")
    first, second = judged(a, plain)
    assert first.divergence.kl_mean == second.divergence.kl_mean > 0
    assert first.teacher_fingerprint == second.teacher_fingerprint != ""
    assert first.replies == second.replies
    assert first.replies[0].prompt == "The quick"
    assert first.timed.decode_tokens_per_second == second.timed.decode_tokens_per_second == 100
    assert first.notes == second.notes == ()


def test_the_teacher_itself_is_called_so_and_is_at_no_distance(
    judged, copied, tiny_llama, tiny_tied
):
    _, plain = judged(copied(tiny_tied, "a", tiny_llama), copied(tiny_llama, "plain"))
    assert plain.notes == ("the teacher itself, read in float32",)
    assert (plain.divergence.kl_mean, plain.divergence.top1_agreement) == (0, 1)
    assert plain.replies[0].answer == plain.replies[0].teacher


def test_where_no_lock_names_a_teacher_the_note_says_what_to_give(judged, copied, tiny_llama):
    (plain,) = judged(copied(tiny_llama, "plain"))
    assert plain.divergence is None
    assert plain.notes == (
        "no KL: no lock names a teacher; --teacher FOLDER says which to hold it against",
    )
    assert plain.perplexity.perplexity > 1
    assert plain.replies[0].teacher is None


def test_locks_of_several_teachers_keep_theirs_and_a_plain_folder_has_none(
    judged, copied, tiny_llama, tiny_tied
):
    folders = copied(tiny_llama, "a", tiny_llama), copied(tiny_llama, "b", tiny_tied)
    a, b, plain = judged(*folders, copied(tiny_llama, "plain"))
    assert a.divergence.kl_mean == 0 < b.divergence.kl_mean
    assert a.teacher_fingerprint != b.teacher_fingerprint
    assert f"several teachers ({tiny_llama}, {tiny_tied})" in plain.notes[0]


def test_a_teacher_that_is_asked_for_is_that_of_all(judged, copied, tiny_llama, tiny_tied):
    a, plain = copied(tiny_tied, "a", tiny_llama), copied(tiny_llama, "plain")
    first, second = judged(a, plain, teacher=str(tiny_tied))
    assert first.teacher == second.teacher == str(tiny_tied)
    assert first.divergence.kl_mean == 0 < second.divergence.kl_mean


def test_other_tokens_are_not_held_against_a_teachers(judged, copied, tiny_llama):
    other = copied(tiny_llama, "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|user|>", "<|somebody|>"))
    (found,) = judged(other, teacher=str(tiny_llama))
    assert found.divergence is None
    assert "its tokenizer is not that of the teacher" in found.notes[0]


def test_what_our_runtime_does_not_run_says_so(judged, copied, tiny_llama):
    (found,) = judged(copied(tiny_llama, "slow"), teacher=str(tiny_llama))
    assert found.timed is None
    assert found.notes[-1] == "not timed: this model is not run here"
