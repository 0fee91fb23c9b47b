import contextlib
import io
import json
import math
import os
import re

import pytest

from compress.cli import console, progress, sweep
from compress.results import GateResult, Progress, Verdict
from compress.results.swept import Trial
from compress.sweep.board import Board, Row


def gates(outcome):
    missed = GateResult("kl_mean_max", 0.05, 0.09, outcome == "ACCEPT", "20,460 tokens of [text]")
    return console.gate_table(Verdict(outcome, (missed, GateResult("size_max", 10, 9, True))))


def test_gates_are_a_table_that_begins_with_the_verdict(capsys):
    console.show(gates("REGRESSION"))
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "REGRESSION: 1 of 2 gates missed"
    assert any("✗ missed" in line and "20,460 tokens of [text]" in line for line in others)
    assert any(line.split()[:3] == ["size_max", "✓", "passed"] for line in others)


def test_the_verdict_is_green_or_red_on_a_terminal():
    for outcome, colour in (("ACCEPT", "green"), ("REGRESSION", "red"), ("INFEASIBLE", "red")):
        title = gates(outcome).title
        assert [span.style for span in title.spans] == [f"bold {colour}"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_sentences_break_between_words_on_a_terminal_and_nowhere_in_a_pipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = "one two three four five six\n  a list, whose lines stay apart"
    assert console.fitted(text, io.StringIO()) == text
    told = console.fitted(text, Terminal())
    assert max(map(len, told.splitlines())) <= 20
    assert told.split() == text.split()
    assert "\n  a list" in told


def test_a_table_in_a_pipe_is_as_wide_as_columns_says(capsys, monkeypatch):
    facts = {"name": "many words " * 20}
    monkeypatch.setenv("COLUMNS", "60")
    console.show(console.fact_table(facts))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
    monkeypatch.delenv("COLUMNS")
    console.show(console.fact_table(facts))
    assert 60 < max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_json_has_no_number_that_is_not_one(capsys):
    estimate = {"value": 0.3, "high": math.inf}
    console.emit_json({"trials": ({"kl": estimate}, [math.nan, 1, True, None, "inf"])})
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert told == {"trials": [{"kl": {"value": 0.3, "high": None}}, [None, 1, True, None, "inf"]]}


def read_to_the_end(terminal):
    """What was written to a terminal that nobody writes to any more: it comes in pieces."""
    pieces = []
    with os.fdopen(terminal, "rb", buffering=0) as stream, contextlib.suppress(OSError):
        while piece := stream.read(4096):  # ends in an error on Linux
            pieces.append(piece)
    return b"".join(pieces)


@pytest.fixture
def styles(monkeypatch):
    """What a terminal is told of bold, dim and colours, by what is shown on it."""
    monkeypatch.setenv("TERM", "xterm-256color")

    def styles(show):
        ours, theirs = os.openpty()
        with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patched:
            patched.setattr("sys.stdout", stream)
            patched.setattr("sys.stderr", stream)
            show()
        written = read_to_the_end(ours).decode()
        assert "trial" in written
        return re.findall(r"\x1b\[[\d;]*m", written)

    return styles


def trials():
    rows = [Row(Trial("trial", "w4", {}, "made")), Row(Trial("other", "w8", {}, "failed"))]
    return sweep.trial_table(rows, best="trial")


def a_table():
    console.show(trials())


def progress_bars():
    with progress.watching(quiet=False) as watch:
        watch(Progress("trial", 1, 3, detail="a block"))


def a_live_table():
    with sweep._watching(quiet=False) as shown:
        shown(Board({"trial": Row(Trial("trial", "w4", {}, "failed"))}), "trial")
        shown.live.refresh()


@pytest.mark.parametrize("show", [a_table, progress_bars, a_live_table])
def test_no_color_leaves_plain_text_on_a_terminal(show, styles, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styles(show)
    monkeypatch.setenv("NO_COLOR", "1")
    assert styles(show) == []
