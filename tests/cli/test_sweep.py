"""`compress sweep` as it is typed: what it says, without a Ray."""

import dataclasses
import json
import time

import pytest

from compress.cli import sweep as command
from compress.results import Progress
from compress.results.swept import Swept, Trial
from compress.sweep.board import Board

MADE = Trial(
    "mine-bits-4-0a", "./mine.yaml", {"quantize.bits": "4", "quantize.head": "null"}, "made",
    size_bytes=120_000_000, kl_mean=0.04321, perplexity=21.0, decode_tokens_per_second=210.4,
    seconds=61.0,
)  # fmt: skip
OVER = dataclasses.replace(MADE, name="b", kl_mean=0.5, over=("kl_mean",))
STOPPED = dataclasses.replace(
    MADE, name="c", state="stopped", kl_mean=None, glance_kl_mean=0.7, reason="KL 0.7 nats",
)  # fmt: skip


def swept(*trials, best=None):
    return Swept(
        "mine", "mine-sweep", "size", trials, (), best, "compress apply mine-sweep/best.yaml",
        "mine-sweep/compare.html", 90.0,
    )  # fmt: skip


@pytest.fixture
def sweeping(monkeypatch, recipe, tmp_path):
    """Stands for `compress.sweep.sweep`; a grid of two lies in sweep.yaml."""
    recipe("[{quantize: {method: rtn, group_size: 32}}]")
    (tmp_path / "sweep.yaml").write_text(
        "version: 1\nrecipes: ./mine.yaml\ngrid: {quantize.bits: [3, 4]}\nobjective: size\n"
    )
    found = {}

    def sweep(ready, **asked):
        found["asked"] = asked
        board = Board()
        board.show([dataclasses.replace(MADE, state="running")])
        asked["watch"] and asked["watch"](board, MADE.name)
        board.show([MADE])
        asked["watch"] and asked["watch"](board, MADE.name)
        return found["swept"]

    monkeypatch.setattr("compress.sweep.sweep", sweep)
    return found


def test_a_pipe_gets_lines_and_one_table(run, sweeping):
    sweeping["swept"] = swept(MADE, OVER, STOPPED, best=MADE.name)
    code, out, err = run("sweep", "./sweep.yaml", "--workers", "3")
    assert code == 0
    assert sweeping["asked"]["workers"] == 3
    assert "2 trials, of 1 thread each" in err
    assert "./mine.yaml (bits 4, head none): made, 120 MB, KL 0.0432, 210 tokens/s" in err
    assert "./mine.yaml (bits 4, head none) ★" in out
    assert "0.5000 !" in out
    assert "≈ 0.7000" in out
    assert "stopped: ./mine.yaml (bits 4, head none): KL 0.7 nats" in out
    assert out.rstrip().endswith("compress apply mine-sweep/best.yaml")
    assert "\x1b" not in out + err


def test_none_within_the_budget_is_exit_3(run, sweeping):
    sweeping["swept"] = swept(OVER)
    code, out, _ = run("sweep", "./sweep.yaml")
    assert code == 3
    assert "None is within the budget." in out


@pytest.mark.parametrize(
    ("states", "told", "expected"),
    [
        (("cut", "waiting"), "None is finished; the same command goes on.", 1),
        (("failed", "failed"), "No trial was made: the reasons stand above.", 1),
        (("rejected", "cut"), "None that is finished is within the budget; the same command", 3),
    ],
)
def test_what_was_never_held_against_the_budget_is_not_said_to_be_beyond_it(
    run, sweeping, states, told, expected
):
    sweeping["swept"] = swept(*(dataclasses.replace(OVER, state=state) for state in states))
    code, out, _ = run("sweep", "./sweep.yaml")
    assert code == expected
    assert told in out
    assert "Allow more" not in out


def test_json_and_quiet(run, sweeping):
    sweeping["swept"] = swept(MADE, best=MADE.name)
    code, out, err = run("sweep", "./sweep.yaml", "--json", "--quiet")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["schema_version"], told["best"]) == (1, MADE.name)
    assert told["trials"][0]["fields"] == {"quantize.bits": "4", "quantize.head": "null"}


def test_a_dry_run_plans_and_runs_nothing(run, sweeping):
    code, out, _ = run("sweep", "./sweep.yaml", "--dry-run")
    assert code == 0
    assert "./mine.yaml (bits 3" in out
    told = json.loads(run("sweep", "./sweep.yaml", "--dry-run", "--json")[1])["trials"]
    assert [one["fields"] for one in told] == [{"quantize.bits": "3"}, {"quantize.bits": "4"}]
    assert "asked" not in sweeping


def test_a_folder_of_something_else_is_refused_before_anything_is_planned(run, sweeping, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    code, out, err = run("sweep", "./sweep.yaml", "--out", "there")
    assert (code, out) == (2, "")
    assert err.startswith("there: exists, and is no sweep's: it holds mine.txt.")
    assert "asked" not in sweeping


def test_a_wrong_sweep_is_exit_2(run, sweeping, tmp_path):
    (tmp_path / "sweep.yaml").write_text("version: 1\nrecipes: mine\nobjektive: size\n")
    code, out, err = run("sweep", "./sweep.yaml")
    assert (code, out) == (2, "")
    assert "sweep.yaml:3  objektive: unknown field. Did you mean objective?" in err


def test_what_is_cut_short_says_where_it_goes_on(run, sweeping, monkeypatch):
    def interrupted(ready, **asked):
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.sweep.sweep", interrupted)
    code, _, err = run("sweep", "./sweep.yaml", "--out", "here")
    assert code == 130
    assert "Cut short. here holds what is finished" in err


def test_a_terminal_gets_a_row_a_trial(capsys):
    from rich.console import Console

    board, shown = Board(), command.Shown()
    board.show([dataclasses.replace(MADE, state="running", seconds=None)])
    board.advance(MADE.name, Progress("quantize", 3, 30, "block"))
    shown(board, MADE.name)
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(shown.table())
    assert "quantize block 3/30" in captured.get()
    assert "0 of 1 done" in captured.get()


def test_lines_are_few(capsys, monkeypatch):
    import sys

    lines, board = command.Lines(sys.stderr), Board()
    board.show([dataclasses.replace(MADE, state="running", seconds=None)])
    for done in range(50):
        board.advance(MADE.name, Progress("quantize", done, 50, "block"))
        lines(board, MADE.name)
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    lines(board, MADE.name)
    assert "quantize block 49/50" in capsys.readouterr().err
