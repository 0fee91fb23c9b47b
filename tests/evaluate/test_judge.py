from types import SimpleNamespace

import pytest
import torch

from compress.errors import EvaluationError
from compress.evaluate.judge import Judge


def test_the_tasks_of_a_suite_are_checked_without_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: pytest.fail("was asked"))
    suite = SimpleNamespace(tasks=("cloze",), lm_eval_tasks=())
    judge = Judge(suite, None, tmp_path, "cpu", torch.float32)
    judge.check_tasks()
    suite.tasks = ("clozes",)
    with pytest.raises(EvaluationError, match="'clozes' does not ship"):
        judge.check_tasks()
