"""Tasks paired with the teacher's: the same numbers as lm-eval's reader, told item by item."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from compress.evaluate.harness import Bench
from compress.surgery import load
from compress.teacher.folder import open_folder

WORDS = ("cat", "dog", "cow", "owl", "fox", "hen", "bee", "ant")
SETTINGS = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "metric_list": [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm")
    ],
}


@pytest.fixture
def tasks(tmp_path):
    """Two tasks: choices after one context, and contexts before one ending, as in WinoGrande."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    items = [
        {"query": f"Which of them is no {one}?", "choices": [one, two, f"{two} {three}"], "gold": 1}
        for one, two, three in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)
    ]
    lines = "\n".join(json.dumps(item) for item in items)
    (folder / "items.jsonl").write_text(lines)
    fields = {
        "after": ("{{query}}", "{{gold}}", "{{choices}}"),
        "before": ("{{gold}}", "{{query}}", "{{choices}}"),
    }
    for name, (text, target, choice) in fields.items():
        task = {
            **SETTINGS,
            "task": name,
            "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
            **{"doc_to_text": text, "doc_to_target": target, "doc_to_choice": choice},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


def requests_of(generator, count):
    def ids(most):
        length = int(torch.randint(1, most, (1,), generator=generator))
        return torch.randint(0, 256, (length,), generator=generator).tolist()

    context = ids(20)
    return [(context, ids(9)) for _ in range(count)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_row_answers_as_every_request_would_by_itself(bench, tiny_model, family):
    shared_prefix, folder = bench("shared_prefix"), tiny_model(family)
    generator = torch.Generator().manual_seed(0)
    items = [requests_of(generator, count) for count in (4, 2, 1, 3)]
    items.append([([1, 2, 3], [7]), ([1, 2, 3], [8])])  # nothing to read but the context
    items.append([([1, 2, 3, 4], [9, 9]), ([1, 2, 5], [9, 9])])  # two contexts, one ending
    items.append([([1, 2], [3, 4, 5]), ([1, 2], [3, 4, 6])])  # choices that begin alike
    reader = shared_prefix.Reader(open_folder(folder), torch.float32)
    found = reader.answers([shared_prefix.row_of(item) for item in items])
    plain = Bench(load.tokenizer(folder), "cpu", torch.float32)
    for item, answers in zip(items, found, strict=True):
        wanted = plain.log_likelihoods(open_folder(folder), item)
        for (a, greedy_a), (b, greedy_b) in zip(answers, wanted, strict=True):
            assert a == pytest.approx(b, abs=1e-4)
            assert greedy_a == greedy_b


def test_a_row_holds_what_is_shared_once(bench):
    row = bench("shared_prefix").row_of([([1, 2, 3], [4, 5]), ([1, 2, 3], [6, 7, 8])])
    assert row.ids == [1, 2, 3, 4, 6, 7]
    assert row.positions == [0, 1, 2, 3, 3, 4]
    assert row.segments == [0, 0, 0, 1, 2, 2]
    assert row.places == [2, 3, 2, 4, 5]
    assert row.targets == [4, 5, 6, 7, 8]
    assert row.owners == [0, 0, 1, 1, 1]


def test_batches_hold_every_row_once_and_no_more_tokens_than_allowed(bench):
    shared_prefix = bench("shared_prefix")
    rows = {n: shared_prefix.row_of([([0] * (n + 1), [1])]) for n in range(20)}
    found = list(shared_prefix.batches(rows, 40))
    assert sorted(key for batch in found for key in batch) == list(range(20))
    sizes = [len(batch) * max(len(rows[key].ids) for key in batch) for batch in found]
    assert max(sizes) <= 40
    assert all(len(rows[a[-1]].ids) >= len(rows[b[0]].ids) for a, b in pairwise(found))


def test_students_are_paired_with_their_teacher_and_asked_once(
    bench, tiny_model, tasks, tmp_path, capsys, monkeypatch
):
    teacher, student = tiny_model("llama"), tiny_model("llama", tied=True)
    words = [f"--teacher={teacher}", f"--students={student}", f"--tasks={tasks}"]
    words += [f"--data={tasks}", f"--out={tmp_path / 'out'}", "--threads=1"]
    assert bench("tasks").main([*words, "--hold=4"]) == 0
    printed = capsys.readouterr().out
    gaps = [float(line.split()[-1]) for line in printed.splitlines() if "largest gap" in line]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    of_task = first["students"][student.name]
    assert set(of_task) == {"after", "before", "all"}
    assert of_task["all"]["items"] == 12
    assert of_task["all"]["flipped"] >= abs(of_task["all"]["lost"] - of_task["all"]["gained"]) > 0

    monkeypatch.setattr(bench("shared_prefix"), "Reader", lambda *_: pytest.fail("asked again"))
    assert bench("tasks").main(words) == 0
    again = json.loads((tmp_path / "out" / "result.json").read_text())
    assert again["students"] == first["students"]


def test_answers_that_were_cut_off_are_asked_again_and_others_are_refused(bench, tmp_path):
    kept = bench("multiple_choice").Kept
    path = tmp_path / "model" / "task.jsonl"
    kept(path, {"model": "a"}).add({3: [(-1.5, True), (-2.0, False)], 4: [(-1.0, False)]})
    path.write_text(path.read_text()[:-5])
    assert kept(path, {"model": "a"}).items == {3: [(-1.5, True), (-2.0, False)]}
    kept(path, {"model": "a"}).add({4: [(-1.0, False)]})
    assert set(kept(path, {"model": "a"}).items) == {3, 4}
    with pytest.raises(ValueError, match="of another model"):
        kept(path, {"model": "b"})


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (5, 5), (30, 12), (7, 61)])
def test_mcnemar_is_the_exact_test_of_a_fair_coin(bench, lost, gained):
    from scipy.stats import binomtest  # a second of imports

    found = bench("paired").mcnemar(lost, gained)
    wanted = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(("count", "items"), [(0, 50), (3, 200), (199, 200), (0, 0)])
def test_an_interval_is_wilsons(bench, count, items):
    from scipy.stats import binomtest

    found = bench("paired").wilson(count, items)
    told = binomtest(count, items).proportion_ci(method="wilson") if items else (0.0, 1.0)
    assert found == pytest.approx(tuple(told), abs=1e-6)


def test_pairs_count_flips_losses_and_gains(bench):
    paired = bench("paired")
    right, wrong, other = (paired.Answered(*one) for one in ((0, True), (1, False), (2, False)))
    teacher = {0: right, 1: right, 2: wrong, 3: wrong, 4: right}
    student = {0: right, 1: wrong, 2: other, 3: right, 4: right}
    found = paired.pair(teacher, student)
    assert (found.items, found.teacher_right, found.student_right) == (5, 3, 3)
    assert (found.flipped, found.lost, found.gained) == (3, 1, 1)
    assert paired.together([found, found]).flipped == 6
    with pytest.raises(ValueError, match="not the same"):
        paired.pair(teacher, {0: right})
