import io
import json
import math
import sys

import pytest

from compress.cli import console
from compress.results import GateResult, Progress, Verdict


@pytest.fixture
def lines(monkeypatch):
    """Plain lines with a clock that is moved by hand: (show, clock, what was written)."""
    monkeypatch.setattr(console, "resident_bytes", lambda: 900_000_000)
    stream, clock = io.StringIO(), [100.0]
    return console.PlainLines(stream, lambda: clock[0]), clock, stream


def test_lines_are_few(lines):
    show, clock, stream = lines
    for done in range(31):
        show(Progress("quantize", done, 30))
        clock[0] += 1.0
    written = stream.getvalue().splitlines()
    assert [text.split(",")[0] for text in written] == [
        f"quantize: block {done}/30" for done in (0, 5, 10, 15, 20, 25, 30)
    ]
    assert written[1] == "quantize: block 5/30, 5.0 s elapsed, 25.0 s left, 900 MB resident"
    assert written[-1] == "quantize: block 30/30, 30.0 s elapsed, 900 MB resident"


def test_a_slow_first_block_does_not_lengthen_what_is_left(lines):
    show, clock, stream = lines
    show(Progress("quantize", 0, 30))
    for done, seconds in enumerate((40.0, 6.0, 6.0, 60.0, 6.0), 1):
        clock[0] += seconds
        show(Progress("quantize", done, 30))
    told = [text.split(", ")[2] for text in stream.getvalue().splitlines()[1:]]
    later = [f"2 min {seconds} s left" for seconds in (48, 42, 36, 30)]
    assert told == ["19 min 20 s left", *later]


def test_what_is_left_is_not_guessed_in_the_first_second_nor_across_a_new_beginning(lines):
    show, clock, stream = lines
    show(Progress("evaluate", 0, 4, "window"))
    clock[0] += 0.5
    show(Progress("evaluate", 4, 4, "window"))
    clock[0] += 60.0
    show(Progress("evaluate", 0, 4, "window"))
    clock[0] += 6.0
    show(Progress("evaluate", 2, 4, "window"))
    written = stream.getvalue().splitlines()
    assert [("left" in text) for text in written] == [False, False, False, True]
    assert "6.0 s elapsed, 6.0 s left" in written[-1]


def test_steps_inside_steps_do_not_flood(lines):
    show, clock, stream = lines
    for block in range(30):
        show(Progress("quantize", block, 30))
        for batch in range(4):
            show(Progress("forward", batch, 5, "batch"))
            clock[0] += 0.01
    assert len(stream.getvalue().splitlines()) == 2


def test_downloads_count_bytes(lines):
    show, clock, stream = lines
    for megabytes in (0, 30, 60):
        show(Progress("download", megabytes * 10**6, 90 * 10**6, "byte"))
        clock[0] += 6.0
    assert "download: 30.0 MB/90.0 MB, 6.0 s elapsed, 12.0 s left" in stream.getvalue()
    show(Progress("a server that does not tell", 10**6, 0, "byte"))
    assert "does not tell: 1.00 MB, 0.0 s elapsed, 900 MB resident" in stream.getvalue()


def test_live_bars_show_step_block_linear_times_and_memory(monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(console, "resident_bytes", lambda: 900_000_000)
    bars = console._bars(Console(file=io.StringIO(), width=160))
    clock = [100.0]
    watch = console.LiveBars(bars, lambda: clock[0])
    watch(Progress("evaluate", 12, 12, "window"))
    watch(Progress("quantize", 2, 30))
    clock[0] += 3.0
    watch(Progress("quantize", 3, 30, detail="model.layers.2.mlp.[up]_proj"))
    screen = Console(file=io.StringIO(), width=160)
    screen.print(bars.get_renderable())
    text = screen.file.getvalue()
    assert "window 12/12" in text
    assert "1 min 21 s left" in text
    for word in ("quantize", "block 3/30", "900 MB", "model.layers.2.mlp.[up]_proj"):
        assert word in text
    watch(Progress("quantize", 1, 30))
    assert [task.completed for task in bars.tasks] == [12, 1]


def test_a_terminal_gets_live_bars(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with console.watching(quiet=False) as watch:
        assert isinstance(watch, console.LiveBars)
        watch(Progress("quantize", 1, 30))
    assert capsys.readouterr().out == ""


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


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with console.watching(quiet=False) as watch:
        watch(Progress("quantize", 1, 2))
    assert terminal.getvalue().startswith("quantize: block 1/2")
    assert "\x1b" not in terminal.getvalue()


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
