import io
import sys

import pytest

from compress.cli import progress
from compress.results import Progress


@pytest.fixture
def lines(monkeypatch):
    """Plain lines with a clock that is moved by hand: (show, clock, what was written)."""
    monkeypatch.setattr(progress, "resident_bytes", lambda: 900_000_000)
    stream, clock = io.StringIO(), [100.0]
    return progress.PlainLines(stream, lambda: clock[0]), clock, stream


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

    monkeypatch.setattr(progress, "resident_bytes", lambda: 900_000_000)
    bars = progress._bars(Console(file=io.StringIO(), width=160))
    clock = [100.0]
    watch = progress.LiveBars(bars, lambda: clock[0])
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
    with progress.watching(quiet=False) as watch:
        assert isinstance(watch, progress.LiveBars)
        watch(Progress("quantize", 1, 30))
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with progress.watching(quiet=False) as watch:
        watch(Progress("quantize", 1, 2))
    assert terminal.getvalue().startswith("quantize: block 1/2")
    assert "\x1b" not in terminal.getvalue()
