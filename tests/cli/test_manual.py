"""Help of a man page's quality: every command has examples, exit codes and a page to read on."""

import re
from pathlib import Path

import pytest
import typer

from compress.cli import manual
from compress.cli.app import app

ROOT = Path(__file__).parents[2]


def commands(command, words=()):
    yield " ".join(words)
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, word))


COMMANDS = list(commands(typer.main.get_command(app)))


def test_every_command_has_its_entry():
    assert set(manual.MANUAL) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_it_is_used_and_how_it_ends(run, name):
    code, out, err = run(*name.split(), "--help")
    assert (code, err) == (0, "")
    for words in ("Usage: compress", "Examples:", "Exit codes:", "  2    " * (name != "env")):
        assert words in out
    page = re.search(r"Read on in (\S+?\.md)(#[\w-]+)?", " ".join(out.split()))
    text = (ROOT / page[1]).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert page[2] is None or page[2] in anchors


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_help_fits_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = run("apply", "--help")
    assert max(map(len, out.splitlines())) <= max(int(columns), 72)
    assert "\x1b" not in out


def test_no_summary_is_cut_at_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["recipes"]):
        _, out, _ = run(*words, "--help")
        assert "..." not in out.replace("[ARGS]...", "")
