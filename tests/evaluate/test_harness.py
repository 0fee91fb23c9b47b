from types import SimpleNamespace

import pytest
import torch

from compress.errors import EvaluationError
from compress.evaluate.harness import Bench
from compress.surgery import load
from compress.teacher.folder import open_folder

TASKS = ("cloze", "everyday_reasoning")


def bench(folder, **options):
    return Bench(load.tokenizer(folder), "cpu", torch.float32, **options)


def test_a_streamed_model_answers_as_lm_evals_own_reader_does(tiny_llama):
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from compress.evaluate import harness

    ours = bench(tiny_llama).ask(open_folder(tiny_llama), TASKS, (), 12)
    whole = load.materialize(open_folder(tiny_llama), torch.float32)
    theirs = HFLM(pretrained=whole, tokenizer=load.tokenizer(tiny_llama), batch_size=4)
    tasks = TaskManager(include_defaults=False).load([harness._task(name) for name in TASKS])
    found = evaluate(theirs, tasks, limit=12, bootstrap_iters=10)
    for score in ours.scores:
        assert score.items == 12
        assert score.accuracy == pytest.approx(found["results"][score.name]["acc,none"])
        assert score.stderr == pytest.approx(found["results"][score.name]["acc_stderr,none"])


def test_log_likelihoods_do_not_depend_on_their_batch(tiny_llama):
    teacher, where = open_folder(tiny_llama), bench(tiny_llama)
    requests = [([1, 2, 3], [4]), ([5], [6, 7, 8]), (list(range(30)), [9, 10])]
    together = where.log_likelihoods(teacher, requests)
    alone = [where.log_likelihoods(teacher, [request])[0] for request in requests]
    for (a, greedy_a), (b, greedy_b) in zip(together, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy_a == greedy_b


def test_a_fingerprinted_model_is_asked_once(tiny_llama, tmp_path):
    teacher, where = open_folder(tiny_llama), bench(tiny_llama, cache=tmp_path)
    first = where.ask(teacher, TASKS[:1], (), 4, fingerprint=teacher.fingerprint)
    assert len(list(tmp_path.iterdir())) == 1
    mute = SimpleNamespace(config=teacher.config)
    assert where.ask(mute, TASKS[:1], (), 4, fingerprint=teacher.fingerprint) == first


def test_an_unknown_task_is_named_with_those_there_are(tiny_llama):
    with pytest.raises(EvaluationError, match=r"'clozes'.*Known: cloze"):
        bench(tiny_llama).ask(open_folder(tiny_llama), ["clozes"], (), 1)
