"""What documents promise: commands parse, YAML loads, links lead somewhere, modules exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from compress.cli.app import app
from compress.recipe.load import load

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "recipes", "calib", "eval", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(page for one in FOLDERS for page in (ROOT / one).rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash", "console")


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
    inner, name, rest = typer.main.get_command(app), words[0], words[1:]
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


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_yaml_block_loads(page, tmp_path):
    for number, block in enumerate(blocks(page, "yaml")):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and {"version", "teacher"} <= set(data):
            path = tmp_path / f"{number}.yaml"
            path.write_text(block, encoding="utf-8")
            load(str(path))


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
