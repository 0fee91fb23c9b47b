"""What documents promise: commands and programs run, YAML is valid, links lead somewhere.

They run on the desk of tests/desk.py, which says what is mapped. What is not run is in a list here,
with the reason.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from desk import SIZES, furnish, lay_out, map_to, small

import compress
from compress import library
from compress import plan as plans
from compress.cli import app, manual
from compress.recipe import sweep, text_set
from compress.recipe.load import load
from compress.recipe.schema import Calibration, Recipe
from compress.recipe.source import mapping
from compress.recipe.suite import load_suite
from compress.teacher import headers

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "recipes", "calib", "eval", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(page for one in FOLDERS for page in (ROOT / one).rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash", "console")


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", tied=True, **SIZES)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, model):
    """What ships, made small; a cache; an artifact for pages that name one and make none."""
    folder = tmp_path_factory.mktemp("shelf")
    lay_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        map_to(patch, folder, folder / "cache")
        changes = {"teacher": {"model": model}, "artifact": {"format": "packed"}}
        compress.apply("w4g64-gptq", folder / "student", device="cpu", **changes)
        compress.apply("w4g64-rtn", folder / "other", device="cpu", **changes)
    return folder


@pytest.fixture
def desk(tmp_path, monkeypatch, shelf, model):
    """A folder to work in, with all that pages name."""
    map_to(monkeypatch, shelf, shelf / "cache")
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path, model, shelf)
    return tmp_path


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    yield from (body for language, body in FENCE.findall(text) if language in languages)


def commands(page: Path) -> Iterator[str]:
    """Lines of shell blocks that call compress, and what recipes say runs them."""
    for block in blocks(page, *SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").partition("#")[0].strip()
            if command.startswith("compress "):
                yield command


def parse(command: str) -> None:
    """Parse one command line with the real parser, without running it."""
    context, words = None, shlex.split(command)
    inner, name, rest = typer.main.get_command(app.app), words[0], words[1:]
    while inner is not None:
        context = inner.make_context(name, rest, parent=context)
        if not hasattr(inner, "resolve_command"):
            return
        name, inner, rest = inner.resolve_command(
            context, [*context._protected_args, *context.args]
        )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_parses(page):
    for command in commands(page):
        parse(command)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=name)
def test_the_command_in_a_recipe_runs_that_recipe(path):
    run = re.search(r"^# run:\s+(compress .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert run
    parse(run[1])
    assert shlex.split(run[1])[2] == path.stem


ELSEWHERE = {  # what a page shows and a test does not run: its beginning, and why not
    "compress serve student --device cuda": "needs a GPU",
    "compress bench student --device cuda": "needs a GPU",
    "compress verify student --vllm-python": "needs vLLM, in an environment of its own",
    "compress verify small --vllm-python": "needs vLLM, in an environment of its own",
    "compress verify student-gptq --vllm-python": "needs vLLM, in an environment of its own",
    "compress verify student-gguf --llama-python": "needs llama.cpp, in an environment of its own",
    "compress sweep small --out": "trials run in workers of their own: tests/sweep",
    "compress sweep small --track": "needs its library: tests/cli/test_tracking.py",
    "compress sweep mine.yaml": "trials run in workers of their own: tests/sweep",
    "compress auto": "plans every recipe and tries some: tests/auto",
    "compress bench": "times the runtime: its own tests, and seconds of compiling",
    "compress apply quickstart --track": "needs its library: tests/cli/test_tracking.py",
    "compress apply quickstart --nproc": "in processes of their own: tests/cli/test_processes.py",
    "torchrun": "in processes of their own: tests/cli/test_processes.py",
    "accelerate launch": "in processes of their own: tests/cli/test_processes.py",
    "make": "makes an environment, from a package index; CI runs it",
    "pip": "needs a package index",
    "python3 -m venv": "needs a package index",
    "vllm/bin/": "needs vLLM, in an environment of its own",
    "VLLM_CPU_KVCACHE_SPACE": "needs vLLM, in an environment of its own",
    "llama-server": "needs llama.cpp",
    "curl": "asks a running server: tests/runtime/server do",
    "python benchmarks/": "measures for minutes: tests/test_benchmarks.py",
}
OTHERS = {  # programs of other libraries, by their first import
    "import xllamacpp": "needs llama.cpp",
    "from transformers import AutoModelForCausalLM": "tests/verify/test_consumers.py does",
}
ENDS = {"compress diff": 1}  # exit codes that are no mistake
RECORDS = ("docs/results.md", "docs/log.md", "benchmarks/README.md")  # of what was run once
SLOW = ("docs/tutorial.md",)


def commands_of(block: str) -> list[str]:
    """Every line of a shell block that does something."""
    lines = block.replace("\\\n", " ").splitlines()
    return [*filter(None, (line.removeprefix("$ ").partition("  #")[0].strip() for line in lines))]


def elsewhere(one: str) -> bool:
    return one.startswith((*ELSEWHERE, *OTHERS))


def work(page: Path) -> list[str]:
    """Commands and programs of a page that are run, in its order."""
    found = []
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in SHELL:
            found += commands_of(body)
        elif language == "python":
            found.append(body)
    return [one for one in found if not elsewhere(one)]


def carry_out(one: str) -> None:
    """Run a command line, or a program, as a reader would who has not made anything yet."""
    made = re.findall(r"--out (\S+)", one) + re.findall(r'apply\(\s*"\w+",\s*"(\w+)"', one)
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)
    if one.startswith("compress "):
        ends = next((code for start, code in ENDS.items() if one.startswith(start)), 0)
        assert app.run(shlex.split(one)[1:]) == ends, one
    else:
        exec(compile(one, "<page>", "exec"), {"__name__": "__main__"})


WORKING = [page for page in PAGES if work(page)]


@pytest.mark.parametrize("page", [page for page in WORKING if name(page) not in SLOW], ids=name)
def test_every_command_and_program_of_a_page_runs(page, desk):
    for one in work(page):
        carry_out(one)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WORKING if name(page) in SLOW], ids=name)
def test_every_command_and_program_of_a_long_page_runs(page, desk):
    for one in work(page):
        carry_out(one)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_a_page_is_fenced_and_parses_run_or_not(page):
    if name(page) not in RECORDS:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        assert re.findall(r"^    (?:compress|accelerate|torchrun|pip) .*", text, re.MULTILINE) == []
    for block in blocks(page, *SHELL):
        for one in commands_of(block):
            if one.startswith("compress "):
                parse(one)


@pytest.mark.parametrize("command", dict.fromkeys(manual.examples()))
def test_every_example_of_the_help_parses(command):
    parse(command)


@pytest.mark.slow
def test_every_example_of_the_help_runs(desk):
    (desk / "keys.txt").write_text("key-for-a-test\n")
    shown = {one for page in WORKING if name(page) not in SLOW for one in work(page)}
    examples = [one for one in dict.fromkeys(manual.examples()) if one not in shown]
    assert app.run(["recipes", "copy", "quickstart", "mine.yaml"]) == 0
    for one in examples:
        if not elsewhere(one):
            carry_out(one)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_not_run_is_known(page):
    lines = [one for block in blocks(page, *SHELL) for one in commands_of(block)]
    unknown = [one for one in lines if not one.startswith("compress ") and not elsewhere(one)]
    assert unknown == [], "run it, or say in ELSEWHERE why not"


def validate(data: object, path: Path) -> None:
    """Hold a YAML block against the schema of what it is."""
    keys = set(data) if isinstance(data, dict) else set()
    if {"version", "teacher"} <= keys:
        recipe = load(path)
        plans.make(recipe, headers.of_recipe(recipe), cache=path.parent)
    elif keys and keys <= set(Recipe.model_fields):
        load({**mapping(library.find("recipes", "quickstart")), **data})
    elif "recipes" in keys:
        sweep.load(str(path))
    elif "kind" in keys:
        text_set.describe(Calibration(set=str(path)))
    elif "perplexity" in keys:
        load_suite(str(path))
    else:
        pytest.fail(f"say in validate() what this is: {sorted(keys)}")


@pytest.mark.parametrize("page", [one for one in PAGES if any(blocks(one, "yaml"))], ids=name)
def test_every_yaml_block_is_what_it_should_be(page, desk):
    for number, block in enumerate(blocks(page, "yaml")):
        path = desk / f"{number}.yaml"
        text = block.replace("../texts", str(library.root() / "eval/texts"))
        text = small(text) if "teacher:" in text else text
        path.write_text(text if "version:" in text else f"version: 1\n{text}", encoding="utf-8")
        validate(yaml.safe_load(text), path)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_inside_the_repository_leads_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [
        link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link
    ]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_the_architecture_names_every_module_and_no_other():
    tree = (
        (ROOT / "docs/architecture.md")
        .read_text(encoding="utf-8")
        .partition("```text\ncompress/\n")[2]
    )
    drawn, folders = set(), []
    for line in tree.partition("```")[0].splitlines():
        bars, entry = re.fullmatch(r"([│├└─ ]*)(\S+).*", line).groups()
        folders = folders[: len(bars) // 4 - 1]
        if entry.endswith("/"):
            folders.append(entry)
        else:
            drawn.add("".join([*folders, entry]))
    package = ROOT / "compress"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert drawn == {
        path for path in modules if "/" not in path or not path.endswith("__init__.py")
    }


def test_a_wrong_command_would_be_seen():
    with pytest.raises(typer.TyperException):
        parse("compress apply quickstart --no-such-flag")
    with pytest.raises(typer.TyperException):
        parse("compress recipes list")
