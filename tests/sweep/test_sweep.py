"""Whole sweeps on Ray: nothing that is killed changes a byte, or loses what was finished."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from compress import pipeline
from compress import sweep as sweeps
from compress.artifact import manifest
from compress.recipe.load import load as load_recipe

pytestmark = pytest.mark.slow
TWELVE = (
    "recipes: ./mine.yaml\ngrid:\n  prune.sparsity: [0.25, 0.5]\n  quantize.bits: [3, 4, 8]\n"
    "  quantize.head: [null, 8]\nobjective: size\nworkers: 2\nthreads: 1"
)
FOUR = TWELVE.replace("[0.25, 0.5]", "[0.5]").replace("[3, 4, 8]", "[3, 4]")


@pytest.fixture
def run(swept, tmp_path):
    """Run a sweep in this process."""

    def run(text, watch=None, **fields):
        ready = sweeps.plan(swept(text, **fields))
        return sweeps.sweep(ready, out=tmp_path / "out", watch=watch)

    return run


def hashes(folder):
    assert manifest.check_manifest(folder) == []
    return json.loads((folder / "manifest.json").read_text())["files"]


def trials_at_work():
    """Processes of trials that are children of this one's."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if "ImplicitFunc.train" in " ".join(one.cmdline())]


def amid_a_trial(process, trials):
    """Whether a process that stands still has begun a trial, and not finished it."""
    held = [Path(one.path) for one in process.open_files() if one.path.endswith(".lock")]
    for name in (path.name[1:-5] for path in held if path.parent == trials):
        record = trials / f"{name}.json"
        if record.exists() and json.loads(record.read_text())["state"] == "running":
            return not (trials / name).exists()
    return False


def test_twelve_trials_one_of_them_killed_are_those_of_a_serial_run(run, tmp_path):
    killed = []

    def kill_one(board, name):
        if killed or sum(one.state == "made" for one in board.trials) < 4:
            return
        for victim in trials_at_work():  # what the board shows may be over by now
            victim.suspend()
            if amid_a_trial(victim, tmp_path / "out" / "trials"):
                victim.kill()
                killed.append(victim.pid)
                return
            victim.resume()

    found = run(TWELVE, kill_one)
    assert killed
    assert [one.state for one in found.trials] == ["made"] * 12
    assert sum(one.restarts for one in found.trials) == 1
    assert sum(one.shared_units > 0 for one in found.trials) >= 9
    for one in found.trials:
        sets = [f"{key}={value}" for key, value in one.fields.items()]
        alone = tmp_path / "alone" / one.name
        pipeline.apply(load_recipe("./mine.yaml", sets), out=alone, threads=1)
        assert hashes(tmp_path / "out" / "trials" / one.name) == hashes(alone)
    assert found.best in found.front
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert all(one.label in page for one in found.trials)
    best = load_recipe(str(tmp_path / "out" / "best.yaml"))
    assert best.resolved.threads == 1


def test_a_killed_driver_loses_nothing(swept, tmp_path):
    swept(FOUR)
    command = [sys.executable, "-m", "compress", "sweep", "./sweep.yaml", "--out", "out"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if "made" in line:
            break
    first.kill()
    first.wait()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/trials/mine*/")}
    again = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(again.stdout)
    assert [one["state"] for one in found["trials"]] == ["made"] * 4
    finished = [name for name in before if not name.endswith(".partial")]
    assert finished
    for name in finished:
        assert (tmp_path / "out" / "trials" / name).stat().st_mtime_ns == before[name]


def test_what_is_finished_is_taken_and_what_fails_does_not_end_the_sweep(run, tmp_path):
    text = FOUR.replace("[null, 8]", "[null]") + "\nset: {evaluate.gates: {size_max: 125 KB}}"
    found = run(text)
    assert [one.state for one in found.trials] == ["made", "rejected"]
    assert "size_max" in found.trials[1].reason
    begun = time.monotonic()
    again = run(text)
    assert time.monotonic() - begun < found.seconds / 2
    assert [one.state for one in again.trials] == ["made", "rejected"]


def test_hopeless_and_too_large_trials_cost_little_and_say_why(run):
    found = run(FOUR, budget="{size: 125 KB, kl_mean: 0.0001}")
    states = {json.loads(one.fields["quantize.head"]): one.state for one in found.trials[:2]}
    assert set(states.values()) == {"stopped"}
    assert found.best is None
    assert any(one.state == "too large" and "planned" in one.reason for one in found.trials)
    assert all(one.glance_kl_mean > 0.0002 for one in found.trials if one.state == "stopped")


def test_the_time_is_over_and_the_same_command_goes_on(run):
    found = run(FOUR, budget="{wall_clock: 1 s}")
    assert "wall_clock 1 s is over" in found.ended_by
    assert not [one for one in found.trials if one.state == "made"]
    assert [one.state for one in run(FOUR).trials] == ["made"] * 4


def test_a_search_goes_on_with_what_it_has_chosen(run):
    text = (
        "recipes: ./mine.yaml\nsearch:\n  quantize.bits: [3, 8]\n"
        "  quantize.damp_percent: {low: 0.001, high: 0.3, log: true}\nobjective: kl_mean\n"
        "workers: 2"
    )
    first = run(text, trials=2)
    more = run(text, trials=3)
    assert len(first.trials) == 2
    assert len(more.trials) == 3
    assert {one.name for one in first.trials} < {one.name for one in more.trials}
    assert all(one.state == "made" for one in more.trials)
