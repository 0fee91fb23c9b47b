import json
from types import SimpleNamespace

import pytest
import torch

from compress import library, machine, storage
from compress.errors import EvaluationError
from compress.evaluate import harness
from compress.evaluate.harness import Bench, check
from compress.results import items_fingerprint
from compress.surgery import load
from compress.teacher.folder import open_folder

TASKS = ("cloze", "everyday_reasoning")


def bench(folder, **options):
    return Bench(load.tokenizer(folder), "cpu", torch.float32, **options)


def test_a_streamed_model_answers_as_lm_evals_own_reader_does(tiny_llama):
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ours = bench(tiny_llama).ask(open_folder(tiny_llama), TASKS, (), 12)
    whole = load.materialize(open_folder(tiny_llama), torch.float32)
    theirs = HFLM(pretrained=whole, tokenizer=load.tokenizer(tiny_llama), batch_size=4)
    tasks = TaskManager(include_defaults=False).load([harness._task(name) for name in TASKS])
    found = evaluate(theirs, tasks, limit=12, bootstrap_iters=10)
    for score in ours.scores:
        assert score.items == 12
        assert score.accuracy == pytest.approx(found["results"][score.name]["acc,none"])
        assert score.stderr == pytest.approx(found["results"][score.name]["acc_stderr,none"])


def test_a_score_keeps_what_was_answered_and_which_items_were_asked(tiny_llama):
    folder = library.folder("eval").parent / "tasks"
    lines = (folder / "cloze.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines[:12]]
    (score,) = bench(tiny_llama).ask(open_folder(tiny_llama), ("cloze",), (), 12).scores
    assert score.fingerprint == items_fingerprint(items)
    golds = [item["gold"] for item in items]
    assert score.right == tuple(a == g for a, g in zip(score.answered, golds, strict=True))
    assert sum(score.right) / 12 == pytest.approx(score.accuracy)


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
    assert len([one for one in tmp_path.iterdir() if one.suffix != ".lock"]) == 1
    mute = SimpleNamespace(config=teacher.config)
    assert where.ask(mute, TASKS[:1], (), 4, fingerprint=teacher.fingerprint) == first


def test_a_fingerprinted_model_is_asked_anew_where_other_code_computes(
    tiny_llama, tmp_path, monkeypatch
):
    teacher, where = open_folder(tiny_llama), bench(tiny_llama, cache=tmp_path)

    def kept():
        where.kept_log_likelihoods(teacher, [([1, 2, 3], [4])], teacher.fingerprint)
        return len([one for one in tmp_path.iterdir() if one.suffix != ".lock"])

    assert (kept(), kept()) == (1, 1)
    monkeypatch.setattr(machine, "version", lambda name: f"another {name}")
    assert kept() == 2
    monkeypatch.setattr(harness, "ALGORITHM", harness.ALGORITHM + 1)
    assert kept() == 3


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def one_answer_less(path):
    kept = storage.read_file(path)
    storage.write_file(path, {name: column[:-1].clone() for name, column in kept.items()})


def of_something_else(path):
    storage.write_file(path, {"other": torch.zeros(1)})


@pytest.mark.parametrize("damage", [cut_short, one_answer_less, of_something_else])
def test_damaged_answers_are_asked_again_and_replaced(tiny_llama, tmp_path, caplog, damage):
    teacher, where = open_folder(tiny_llama), bench(tiny_llama, cache=tmp_path)
    requests = [([1, 2, 3], [4]), ([5], [6, 7, 8])]
    first = where.kept_log_likelihoods(teacher, requests, teacher.fingerprint)
    [path] = (one for one in tmp_path.iterdir() if one.suffix != ".lock")
    whole = path.read_bytes()
    damage(path)
    assert where.kept_log_likelihoods(teacher, requests, teacher.fingerprint) == first
    assert path.read_bytes() == whole
    assert "asked again" in caplog.text


class Hub:
    """Stands for lm-eval's TaskManager: tasks by name, a group, and what it says of others."""

    says = KeyError("Spec 'pica' is not a registered task")

    def __init__(self, include_defaults):
        assert include_defaults, "lm-eval's own tasks are looked for"

    def load(self, names):
        kinds = dict.fromkeys(("piqa", "mmlu_law"), "multiple_choice") | {"gsm8k": "generate_until"}
        wanted = ["mmlu_law" if name == "mmlu" else name for name in names]
        if not set(wanted) <= kinds.keys():
            raise self.says
        return {"tasks": {name: SimpleNamespace(OUTPUT_TYPE=kinds[name]) for name in wanted}}


def test_tasks_of_lm_eval_are_loaded_by_a_check(monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Hub)
    check((), ["piqa"])
    with pytest.raises(EvaluationError, match=r"lm_eval_tasks piqa, pica: could not be loaded"):
        check((), ["piqa", "pica"])
    with pytest.raises(EvaluationError, match=r"'mmlu' is a group of tasks.*wanted: mmlu_law\."):
        check((), ["mmlu"])
    with pytest.raises(EvaluationError, match="'gsm8k' wants free generation"):
        check((), ["gsm8k"])


@pytest.mark.parametrize("said", [ConnectionError("no hub"), ValueError("no split 'validation'")])
def test_tasks_that_cannot_be_fetched_are_named_with_the_reason(monkeypatch, said):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Hub)
    monkeypatch.setattr(Hub, "says", said)
    with pytest.raises(EvaluationError, match=rf"hellaswag: could not be loaded \({said}\)"):
        check((), ["hellaswag"])


def test_a_check_of_shipped_tasks_loads_nothing(monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: pytest.fail("was asked"))
    check(TASKS, ())
    with pytest.raises(EvaluationError, match=r"'clozes'.*Known: cloze"):
        check(["cloze", "clozes"], ())


def test_an_unknown_task_is_named_with_those_there_are(tiny_llama):
    with pytest.raises(EvaluationError, match=r"'clozes'.*Known: cloze"):
        bench(tiny_llama).ask(open_folder(tiny_llama), ["clozes"], (), 1)
