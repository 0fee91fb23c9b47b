"""The words that ship: our own items and texts, and the suites and sets that name them."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"common_knowledge": 4, "cloze": 4, "everyday_reasoning": 2}  # name -> choices per item
SUITES = ("smoke", "quick", "full")
SUITE_FIELDS = {
    "version", "description", "perplexity", "divergence",
    "tasks", "lm_eval_tasks", "limit", "samples",
}  # fmt: skip
SETS = {
    "self": {"seeding", "temperature", "top_k"},
    "text": {"path"},
    "hub": {"dataset", "config", "split", "field", "revision"},
}
TEXTS = {"eval/texts/heldout.txt": 4500, "calib/smoke.txt": 1200}  # file -> least number of words


def items(task: str) -> list[dict[str, Any]]:
    """Every item of one task, as written."""
    lines = (ROOT / "eval/tasks" / f"{task}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    """Its words in lower case, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    """Every run of `size` words."""
    found = words(text)
    return list(zip(*(found[start:] for start in range(size)), strict=False))


def load(path: str) -> dict[str, Any]:
    """One shipped YAML file."""
    found = yaml.safe_load((ROOT / path).read_text("utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_every_item_is_well_formed(task: str) -> None:
    for item in items(task):
        assert set(item) == {"query", "choices", "gold"}
        assert len(item["choices"]) == len(set(item["choices"])) == TASKS[task], item
        assert item["gold"] in range(TASKS[task]), item
        assert item["query"] == item["query"].strip(), item
        # The space belongs to the choice: tokenizers join it to the word that follows.
        assert all(re.fullmatch(r" \S(.*\S)?", choice) for choice in item["choices"]), item


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_at_least_150_different_items(task: str) -> None:
    queries = [" ".join(words(item["query"])) for item in items(task)]
    assert len(queries) >= 150
    assert len(set(queries)) == len(queries)


@pytest.mark.parametrize("task", TASKS)
def test_gold_positions_are_balanced(task: str) -> None:
    counts = Counter(item["gold"] for item in items(task))
    assert set(counts) == set(range(TASKS[task]))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_the_longest_choice_is_not_a_hint(task: str) -> None:
    found = items(task)
    longest = [max(item["choices"], key=len) == item["choices"][item["gold"]] for item in found]
    assert sum(longest) / len(longest) < 1 / TASKS[task] + 0.2


@pytest.mark.parametrize("task", TASKS)
def test_no_two_items_come_from_one_template(task: str) -> None:
    queries = [words(item["query"]) for item in items(task)]
    starts = Counter(tuple(query[:5]) for query in queries)
    assert starts.most_common(1)[0][1] <= 2, starts.most_common(3)
    for one, other in itertools.combinations(queries, 2):
        shared, both = set(one) & set(other), set(one) | set(other)
        assert len(shared) / len(both) <= 0.5, (one, other)


def test_no_question_is_asked_by_two_tasks() -> None:
    queries = [" ".join(words(item["query"])) for task in TASKS for item in items(task)]
    assert len(set(queries)) == len(queries)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_file_names_the_items_beside_it(task: str) -> None:
    found = load(f"eval/tasks/{task}.yaml")
    assert found["task"] == task
    assert found["output_type"] == "multiple_choice"
    assert found["dataset_kwargs"] == {"data_files": {"test": f"{task}.jsonl"}}
    fields = {found["doc_to_text"], found["doc_to_choice"], found["doc_to_target"]}
    assert fields == set(items(task)[0])
    assert found["target_delimiter"] == ""
    assert [metric["metric"] for metric in found["metric_list"]] == ["acc", "acc_norm"]
    assert found["metadata"] == {"version": 1}


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_names_what_is_there(suite: str) -> None:
    found = load(f"eval/suites/{suite}.yaml")
    assert set(found) == SUITE_FIELDS
    assert found["tasks"] == list(TASKS)
    assert set(found["samples"]) == {"prompts", "max_new_tokens"}
    for part in ("perplexity", "divergence"):
        named = found[part]["set"]
        folder = ROOT / "eval/suites" if "/" in named else ROOT / "calib"
        assert (folder / (named if "/" in named else f"{named}.yaml")).is_file()
        assert found[part]["seq_len"] > 0
        assert found[part]["windows"] > 0


@pytest.mark.parametrize("suite", ["smoke", "quick"])
def test_small_suites_need_no_hub(suite: str) -> None:
    found = load(f"eval/suites/{suite}.yaml")
    assert found["lm_eval_tasks"] == []
    assert found["perplexity"]["set"] == found["divergence"]["set"] == "../texts/heldout.txt"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "calib").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_set_has_the_fields_of_its_kind(path: Path) -> None:
    found = load(str(path.relative_to(ROOT)))
    assert (
        set(found) - {"separator", "deduplicate"}
        == {"version", "kind", "description"} | SETS[found["kind"]]
    )
    if found["kind"] == "text":
        assert (path.parent / found["path"]).is_file()


@pytest.mark.parametrize(("path", "least"), TEXTS.items())
def test_a_text_is_long_enough_and_does_not_repeat_itself(path: str, least: int) -> None:
    text = (ROOT / path).read_text("utf-8")
    assert len(text.split()) >= least
    assert Counter(grams(text, 12)).most_common(1)[0][1] == 1


def test_no_text_is_judged_on_what_it_was_calibrated_on() -> None:
    heldout, smoke = ((ROOT / path).read_text("utf-8") for path in TEXTS)
    assert not set(grams(heldout, 6)) & set(grams(smoke, 6))
    seen = set(grams(heldout + smoke, 8))
    for item in itertools.chain.from_iterable(map(items, TASKS)):
        assert not seen & set(grams(item["query"] + item["choices"][item["gold"]], 8)), item
