from types import SimpleNamespace

import pytest
import torch

from compress.errors import EvaluationError
from compress.evaluate import judge as judges
from compress.evaluate.judge import Judge


def test_the_tasks_of_a_suite_are_checked_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: pytest.fail("was asked"))
    suite = SimpleNamespace(tasks=("cloze",), lm_eval_tasks=())
    judge = Judge(suite, None, tmp_path, "cpu", torch.float32)
    judge.check_tasks()
    suite.tasks = ("clozes",)
    with pytest.raises(EvaluationError, match="'clozes' does not ship"):
        judge.check_tasks()


def test_samples_tell_who_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "answers", lambda weights, *_, **__: [f"{weights} said"])
    suite = SimpleNamespace(samples=SimpleNamespace(prompts=("Hello",), max_new_tokens=1))
    seen = []
    judge = Judge(suite, None, tmp_path, "cpu", torch.float32, seen.append)
    (sample,) = judge.say("teacher", "student").samples
    assert (sample.teacher, sample.student) == ("teacher said", "student said")
    assert [(r.step, r.done, r.total, r.detail) for r in seen] == [
        ("samples", 0, 2, "teacher answers"),
        ("samples", 1, 2, "student answers"),
        ("samples", 2, 2, ""),
    ]
