"""Completion, asked the way shells ask."""

import os
import subprocess
import sys

import pytest

from compress import library
from compress.cli import app, completion


@pytest.fixture
def press_tab(monkeypatch, capsys):
    """Words of a command line, the last one unfinished → what bash is offered for it."""

    def press(*words):
        monkeypatch.setenv(completion.ASKED, "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(("compress", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        app.main()
        return capsys.readouterr().out.split()

    return press


def test_commands_and_flags(press_tab):
    assert press_tab("com") == ["compare"]
    assert {"ls", "show", "copy", "check"} <= set(press_tab("recipes", ""))
    assert "--max-memory" in press_tab("apply", "quickstart", "--max")


@pytest.mark.parametrize(
    "words", [("apply",), ("plan",), ("recipes", "show"), ("recipes", "copy"), ("recipes", "check")]
)
def test_recipes_by_name(press_tab, words):
    assert press_tab(*words, "quick") == ["quickstart"]
    assert press_tab(*words, "") == library.names("recipes")
    assert press_tab(*words, "./mi") == []  # the shell offers files then


def test_suites_sets_and_formats(press_tab):
    assert press_tab("evaluate", "small", "--suite", "s") == ["short", "smoke"]
    assert press_tab("compare", "small", "--evaluate", "") == library.names("eval")
    assert "compressed-tensors" in press_tab("export", "small", "--format", "")
    sets = press_tab("apply", "quickstart", "--set", "calibration.set", "=", "")
    assert sets == library.names("calib")
    assert press_tab("apply", "q", "--set", "artifact.format", "=", "ge") == []
    assert press_tab("apply", "q", "--set", "artifact.format", "=", "gg") == ["gguf"]
    assert "none" in press_tab("apply", "q", "--set", "evaluate.suite", "=")


def test_fields_of_a_recipe(press_tab):
    assert press_tab("apply", "q", "--set", "calibration.sam") == ["calibration.samples="]
    assert "quantize.bits=4" in press_tab("apply", "q", "--set", "quantize.bits")
    assert {"quantize.damp_percent=", "distill.text.set="} <= set(
        press_tab("plan", "q", "--set", "")
    )
    assert press_tab("apply", "q", "--set", "quantize.sym", "=", "t") == ["true"]
    # one that is finished does not disturb the next
    assert press_tab("apply", "q", "--set", "calibration.seed", "=", "1", "--devi") == ["--device"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_hand_whole_words_over(monkeypatch, capsys, shell):
    monkeypatch.setenv(completion.ASKED, f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "compress apply q --set calibration.set=wi")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    app.main()
    assert "calibration.set=wikitext2" in capsys.readouterr().out


def test_it_starts_without_torch():
    code = (
        "import sys; from compress.cli.app import main; main();"
        "sys.exit(bool({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    asked = {
        completion.ASKED: "complete_bash",
        "COMP_WORDS": "compress\napply\n",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, library.names("recipes"))
