import os
import re
import subprocess
import sys

import pytest
import typer
from conftest import imported_by

from compress import errors
from compress.cli.app import app

FLAGS = {
    "": {"--debug", "--version", "--install-completion", "--show-completion"},
    "apply": {
        "RECIPE", "--out", "--set", "--device", "--threads", "--nproc", "--fresh", "--max-memory",
        "--sign", "--track", "--json", "--quiet", "--shard",
    },
    "plan": {"RECIPE", "--set", "--max-memory", "--threads", "--nproc", "--json"},
    "auto": {
        "TEACHER", "--max-size", "--max-kl", "--min-speed", "--trials", "--out", "--work",
        "--suite", "--set", "--device", "--threads", "--json", "--quiet",
    },
    "evaluate": {"ARTIFACT|TEACHER", "--suite", "--device", "--threads", "--json", "--quiet"},
    "generate": {
        "ARTIFACT", "PROMPT", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--min-p",
        "--repetition-penalty", "--presence-penalty", "--frequency-penalty", "--logit-bias",
        "--seed", "--stop", "--json-schema", "--draft", "--raw", "--threads", "--device",
        "--json",
    },
    "serve": {
        "ARTIFACT", "--draft", "--teacher", "--host", "--port", "--api-key-file", "--max-queued",
        "--max-running", "--threads", "--device", "--dtype", "--kv-cache", "--speculate",
        "--name",
    },
    "bench": {
        "ARTIFACT", "--draft", "--batch", "--prompt-tokens", "--context-tokens", "--new-tokens",
        "--runs", "--threads", "--device", "--dtype", "--kv-cache", "--json",
    },
    "inspect": {"ARTIFACT", "--json"},
    "verify": {
        "ARTIFACT", "--no-consumers", "--vllm-python", "--llama-python", "--signature", "--json",
        "--quiet",
    },
    "export": {"ARTIFACT", "--format", "--out", "--output", "--json", "--quiet"},
    "logits": {
        "RECIPE", "--out", "--top-k", "--set", "--device", "--threads", "--json", "--quiet",
    },
    "diff": {"A", "B", "--rehash", "--json"},
    "compare": {
        "ARTIFACT…", "--html", "--csv", "--markdown", "--json", "--evaluate", "--teacher",
        "--device", "--threads", "--quiet",
    },
    "report": {"DIR", "--json"},
    "sweep": {
        "SWEEP", "--out", "--workers", "--address", "--device", "--dry-run", "--track",
        "--json", "--quiet",
    },
    "env": {"--json"},
    "recipes": set(),
    "recipes ls": {"--json"},
    "recipes show": {"RECIPE", "--json"},
    "recipes copy": {"RECIPE", "FILE", "--json"},
    "recipes check": {"[RECIPE]…", "--json"},
}  # fmt: skip


def flags(command, name=""):
    """Every command by its words, with the names of its arguments and options."""
    found = {
        text
        for parameter in command.params
        for text in (parameter.opts if parameter.opts[0].startswith("-") else [parameter.metavar])
    }
    yield name, found - {"--help", "-h"}
    for word, inner in getattr(command, "commands", {}).items():
        yield from flags(inner, f"{name} {word}".strip())


def test_flags_are_frozen():
    assert dict(flags(typer.main.get_command(app))) == FLAGS


def test_starts_without_torch():
    program = (
        "import sys; from compress.cli.app import run\n"
        "heavy = set(sys.argv[1].split())\n"
        "for line in sys.argv[2:]:\n"
        "    assert run(line.split()) == 0, line\n"
        "    assert not heavy & set(sys.modules), (line, heavy & set(sys.modules))\n"
    )
    heavy = (
        "torch numpy transformers lm_eval datasets matplotlib starlette uvicorn prometheus_client"
    )
    commands = (
        "--help", "apply --help", "serve --help", "recipes ls", "recipes ls --json",
        "recipes check", "recipes check quickstart",
    )  # fmt: skip
    assert "compress.cli.app" in imported_by(program, heavy, *commands)


def test_help_takes_at_most_half_a_second_of_processor():
    before = os.times()
    subprocess.run([sys.executable, "-m", "compress", "--help"], check=True, capture_output=True)
    after = os.times()
    assert (
        after.children_user + after.children_system - before.children_user - before.children_system
        < 0.5
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RecipeError(["mine.yaml:3  bits: 5 is not one of 2, 3, 4, 8."]), 2),
        (errors.ModelError("teacher: holds a pickle."), 2),
        (errors.StorageError("small.partial: cannot be written (No space left on device)."), 1),
        (errors.SolveError("model.layers.0: could not be solved."), 1),
        (errors.GateMissed("perplexity: rose by 0.20, at most 0.10."), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_library_errors_become_exit_codes(run, pipeline, error, code):
    pipeline.fails = error
    found, out, err = run("apply", "quickstart", "--quiet")
    assert (found, out) == (code, "")
    assert str(error) in err
    assert err.endswith(f"   {error.page}\n")
    assert err.count(error.page) == 1


def test_an_unexpected_error_is_one_line_and_a_traceback_only_when_asked(
    run, pipeline, monkeypatch
):
    pipeline.fails = OSError(28, "No space left on device", "small.partial/journal")
    code, out, err = run("apply", "quickstart", "--json")
    assert (code, out) == (1, "")
    assert "Unexpected OSError: [Errno 28] No space left on device: 'small.partial/journal'" in err
    assert "compress --debug" in err
    assert "Traceback" not in err

    monkeypatch.setenv("COMPRESS_DEBUG", "")  # so that what --debug sets is taken back
    assert "Traceback" in run("--debug", "apply", "quickstart")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aply"], "Did you mean 'apply'?"),
        (["apply"], "Missing argument 'RECIPE'"),
        (["apply", "quickstart", "--treads", "2"], "--threads"),
        (["apply", "quickstart", "--threads", "0"], "greater than or equal to 1"),
        (["apply", "quickstart", "--device", "tpu"], "'auto', 'cpu', 'cuda'"),
        (["apply", "quikstart"], "Did you mean quickstart?"),
        (["apply", "./quickstart.yaml"], "no such file"),
        (["apply", "quickstart", "--set", "evaluate.siute=quick"], "suite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_exit_2_and_says_what_is_right(run, pipeline, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert re.search(r"   docs/errors\.md#(request|recipe)\n$", err)
    assert err.count("docs/errors.md") == 1
    assert not pipeline.asked


def test_a_bare_command_shows_its_help(run):
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "apply" in out


def test_version(run):
    import compress

    assert run("--version") == (0, f"compress {compress.__version__}\n", "")


def test_a_reader_that_leaves_early_is_no_traceback():
    code = (
        "import sys; from compress.cli.app import main;"
        "sys.argv[1:] = ['recipes', 'show', 'quickstart']; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout
    child.stdout.close()
    assert child.stderr
    assert child.stderr.read() == ""
    assert child.wait() == 1


def test_openmp_policy_is_set_for_the_command_only(monkeypatch):
    from compress.cli.app import _prepare_process

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    _prepare_process()
    assert os.environ["GOMP_SPINCOUNT"] == "100000"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    _prepare_process()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
