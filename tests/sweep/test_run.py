"""What a sweep finds in its folder, and what it leaves there: no Ray, no run."""

from __future__ import annotations

import json

import pytest

from compress import machine, storage
from compress.errors import ArtifactError
from compress.recipe.sweep import Dimension
from compress.results import to_json
from compress.results.swept import Trial
from compress.sweep import run
from compress.sweep.board import Board
from compress.sweep.worker import Order

SEARCH = "recipes: ./mine.yaml\nobjective: size\ntrials: 20\nsearch: "


@pytest.fixture
def order(swept, tmp_path):
    """A sweep's order; trials that were noted in its folder."""

    def make(text, *noted, **fields):
        found = Order(swept(text, **fields), tmp_path / "out", "cpu", tmp_path, machine.made_with())
        for number, values in enumerate(noted):
            told = {key: json.dumps(value) for key, value in values.items()}
            one = Trial(f"t{number}", "./mine.yaml", told, "made")
            storage.make_folder(found.record("").parent)
            storage.write_text(found.record(one.name), to_json(one))
        return found

    return make


def board(*states):
    found = Board()
    found.show([Trial(f"t{n}", "a", {}, state) for n, state in enumerate(states)])
    return found


@pytest.mark.parametrize(
    ("dimension", "held", "others"),
    [
        (Dimension(low=1, high=4), (1, 4), (0, 5, 2.0, True, "2", None)),
        (Dimension(low=0.01, high=0.1, log=True), (0.01, 0.05), (0.2, 0.001, "0.05")),
        (Dimension(values=(None, "mse", 4)), (None, "mse", 4), ("hessian", 4.5, False)),
    ],
)
def test_a_dimension_holds_what_it_may_choose(dimension, held, others):
    assert all(dimension.holds(one) for one in held)
    assert not any(dimension.holds(one) for one in others)


def test_what_a_search_may_no_longer_choose_is_not_told_to_its_sampler(order):
    wide = [{"quantize.damp_percent": 0.01}, {"quantize.damp_percent": 0.3}]
    narrowed = order(SEARCH + "{quantize.damp_percent: {low: 0.001, high: 0.1}}", *wide)
    assert [one.name for one in run._noted(narrowed)] == ["t0"]
    fewer = order(SEARCH + "{quantize.damp_percent: [0.3]}")
    assert [one.name for one in run._noted(fewer)] == ["t1"]


def test_of_what_was_begun_no_more_goes_on_than_is_asked_for(order, monkeypatch):
    noted = [{"quantize.damp_percent": one} for one in (0.01, 0.02, 0.03)]
    text = SEARCH.replace("trials: 20", "trials: 2")
    two = order(text + "{quantize.damp_percent: {low: 0.01, high: 0.1}}", *noted)
    monkeypatch.setattr(run, "_known", lambda *asked: (None, asked[3].name))
    shown = Board()
    work = run._begun_search(two, None, shown)
    assert (len(work.begun), work.left) == (2, 2)
    assert [one.name for one in shown.trials] == ["t0", "t1"]


def test_a_search_that_has_chosen_all_there_is_says_so_and_not_that_time_was_over(order):
    two = order(SEARCH + "{quantize.bits: [4, 8]}", budget="{wall_clock: 30 min}")
    assert two.located.sweep.most == 2
    assert "can choose no more than 2" in run._ended(two, board("made", "made"), 100.0)
    assert "wall_clock 30 min is over" in run._ended(two, board("made", "running"), 100.0)
    assert "wall_clock 30 min is over" in run._ended(two, board("made"), 1900.0)
    assert "chose some of 1 trials again" in run._ended(two, board("made"), 100.0)
    assert run._ended(two, board(*["made"] * 20), 1900.0) == ""


def test_a_grid_that_is_made_was_not_ended_by_anything(order):
    text = "recipes: ./mine.yaml\nobjective: size\ngrid: {quantize.bits: [4, 8]}"
    grid = order(text, budget="{wall_clock: 30 min}")
    assert run._ended(grid, board("made", "made"), 9999.0) == ""
    assert "is over" in run._ended(grid, board("made", "waiting"), 1800.0)


def test_nothing_is_drawn_where_all_that_a_search_can_choose_is_tried(order, monkeypatch):
    text = SEARCH + "{quantize.bits: [4, 8]}"
    monkeypatch.setattr(run, "_known", lambda order, planner, chosen, one: (one, one.name))
    half = order(text, {"quantize.bits": 4})
    assert run._begun_search(half, None, board()).left == 19
    both = order(text, {"quantize.bits": 4}, {"quantize.bits": 8})
    assert run._begun_search(both, None, board()).left == 0


def test_what_an_earlier_sweep_has_chosen_goes_where_nothing_is_chosen(order, tmp_path):
    grid = order("recipes: ./mine.yaml\nobjective: size\ngrid: {quantize.bits: [4]}")
    storage.make_folder(tmp_path / "out")
    for name in (run.BEST, run.PAGE):
        (tmp_path / "out" / name).write_text("of an earlier budget")
    swept = run._concluded(grid, tmp_path / "out", board("stopped"), 1.0, "")
    assert (swept.best, swept.page) == (None, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [run.RECORD]


def test_trials_go_by_their_labels_and_by_their_folders_where_two_have_the_same():
    fields = [{"quantize.bits": "4"}, {"quantize.bits": "8"}, {"allocate.bits": "8"}]
    made = [Trial(f"mine-{place}", "mine", one, "made") for place, one in enumerate(fields)]
    called = {"mine (bits 4)": "mine-0", "mine-1": "mine-1", "mine-2": "mine-2"}
    assert run._called(made) == called


def test_what_a_killed_driver_had_not_finished_writing_locks_nobody_out(tmp_path):
    out = tmp_path / "out"
    (out / "trials").mkdir(parents=True)
    for name in (run.PAGE, run.BEST, run.RECORD):
        (out / f"{name}.4242.tmp").touch()
    with run._mine(out):
        assert [path.name for path in out.iterdir()] == ["trials"]


@pytest.mark.parametrize("name", ["notes.txt", "notes.4242.tmp", "compare.html.tmp"])
def test_a_folder_that_holds_anything_else_is_refused_by_its_name_and_left_as_it_is(tmp_path, name):
    out = tmp_path / "out"
    (out / "trials").mkdir(parents=True)
    (out / name).touch()
    with pytest.raises(ArtifactError, match=f"it holds {name}"), run._mine(out):
        pass
    assert (out / name).exists()
    with pytest.raises(ArtifactError, match="is no folder"), run._mine(out / name):
        pass
