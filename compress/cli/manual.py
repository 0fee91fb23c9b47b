"""What the help of each command says behind its options: examples, exit codes, where to read on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import typer

_AS_IS = "\b\n"  # at the head of a paragraph: its lines stay as they are
_DONE, _FAILED, _WRONG = "done", "the run failed", "the request was wrong: nothing was run"
_LOOKED = {0: _DONE, 2: _WRONG}
_RUN = {0: _DONE, 1: _FAILED, 2: _WRONG, 130: "interrupted"}


@dataclass(frozen=True)
class Entry:
    """One command: how it is used, how it can end, and the page that tells all of it."""

    examples: tuple[str, ...]
    page: str
    codes: Mapping[int, str] = field(default_factory=lambda: _LOOKED)
    also: str = ""

    @property
    def text(self) -> str:
        """As paragraphs of a help page."""
        codes = tuple(f"{code:<5}{meaning}" for code, meaning in sorted(self.codes.items()))
        parts = [_listed("Examples:", self.examples), _listed("Exit codes:", codes), self.also]
        return "\n\n".join([*filter(None, parts), f"Read on in {self.page}."])


def write(app: typer.Typer, words: str = "") -> None:
    """Put each command's entry below its options; a command without one is left as it is."""
    app.info.epilog = MANUAL[words].text if words in MANUAL else None
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        if (entry := MANUAL.get(f"{words} {name}".strip())) is not None:
            command.epilog = entry.text
    for group in app.registered_groups:
        if inner := group.typer_instance:
            write(inner, f"{words} {inner.info.name}".strip())


def examples() -> Iterator[str]:
    """Every command line that a help page shows."""
    for entry in MANUAL.values():
        yield from entry.examples


def _listed(title: str, lines: tuple[str, ...]) -> str:
    return _AS_IS + "\n".join([title, *(f"  {line}" for line in lines)])


_ENVIRONMENT = _listed(
    "Environment:",
    (
        "COMPRESS_CACHE        folder for what can be made or fetched again",
        "COMPRESS_OFFLINE=1    ask no package index; HF_HUB_OFFLINE=1: no hub",
        "COMPRESS_DEBUG=1      as --debug",
        "COMPRESS_VLLM_PYTHON, COMPRESS_LLAMA_PYTHON    as verify's options",
        "NO_COLOR=1            plain text on a terminal, too",
    ),
)
MANUAL: dict[str, Entry] = {
    "": Entry(
        (
            "compress recipes ls",
            "compress apply quickstart --out small",
            "compress compare small",
            "compress serve small",
        ),
        "docs/tutorial.md; what an error means, in docs/errors.md",
        {**_RUN, 3: "the student was made and judged not good enough"},
        _ENVIRONMENT,
    ),
    "plan": Entry(
        ("compress plan quickstart", "compress plan w4g64-gptq --max-memory 4GiB --json"),
        "docs/plan.md",
    ),
    "apply": Entry(
        (
            "compress apply quickstart",
            "compress apply mine.yaml --set quantize.bits=3 --out three",
        ),
        "docs/tutorial.md, and of every field of a recipe in docs/recipes.md",
        {
            0: "done: OUT is whole, read back and verified",
            1: "the run failed; OUT.partial holds what was finished",
            2: _WRONG,
            3: "a gate was missed; OUT.rejected holds the student",
            130: "interrupted; OUT.partial holds what was finished",
        },
    ),
    "auto": Entry(
        (
            "compress auto ./model --max-size 80MB",
            "compress auto ./model --max-size 80MB --trials 1 --out smaller.yaml --json",
        ),
        "docs/auto.md",
        {**_RUN, 0: "done: a recipe was written", 3: "none keeps what is wanted; none was written"},
    ),
    "evaluate": Entry(
        ("compress evaluate small --suite smoke", "compress evaluate ./model --json"),
        "eval/README.md",
        _RUN,
    ),
    "generate": Entry(
        (
            'compress generate small "What is the capital of France?"',
            'compress generate small "Once upon a time" --raw --temperature 0.8 --seed 7',
        ),
        "docs/serving.md",
        _RUN,
    ),
    "serve": Entry(
        ("compress serve small", "compress serve small --port 8080 --api-key-file keys.txt"),
        "docs/serving.md#our-server",
        {
            0: "told to end (Ctrl-C, SIGTERM); answers on their way were finished",
            1: "an engine broke",
            2: "the request was wrong, or the artifact cannot be opened",
        },
    ),
    "bench": Entry(
        ("compress bench small", "compress bench small --batch 8 --json"),
        "docs/serving.md#how-fast-it-is-here",
        _RUN,
    ),
    "inspect": Entry(
        ("compress inspect small", "compress inspect ./model --json"), "docs/formats.md"
    ),
    "export": Entry(
        ("compress export small --format gguf --out small-gguf",),
        "docs/formats.md#compress-export",
        _RUN,
    ),
    "logits": Entry(
        ("compress logits half-depth-distill --out logits --top-k 64",),
        "docs/formats.md#compress-logits",
        _RUN,
    ),
    "verify": Entry(
        (
            "compress verify small",
            "compress verify small --no-consumers --json",
            "compress verify small --vllm-python vllm/bin/python",
        ),
        "docs/serving.md#what-verify-checks",
        {
            0: "it is what it should be",
            1: "something disagrees; verification.json names it",
            2: _WRONG,
        },
    ),
    "diff": Entry(
        ("compress diff small other", "compress diff small other --rehash --json"),
        "docs/formats.md",
        {0: "identical", 1: "they differ", 2: _WRONG},
    ),
    "compare": Entry(
        (
            "compress compare small other",
            "compress compare small other --html compare.html --csv compare.csv",
        ),
        "docs/compare.md",
        _RUN,
    ),
    "sweep": Entry(
        (
            "compress sweep small --dry-run",
            "compress sweep small --out smallest",
            "compress sweep mine.yaml --workers 8 --address auto",
        ),
        "docs/sweep.md",
        {
            0: "done: the best within the budget is made, and its recipe written",
            1: _FAILED,
            2: _WRONG,
            3: "done, and no trial is within the budget",
            130: "interrupted; OUT holds what was finished",
        },
    ),
    "report": Entry(("compress report small",), "docs/recipes.md"),
    "env": Entry(("compress env", "compress env --json"), "docs/errors.md#run", {0: _DONE}),
    "recipes": Entry(
        (
            "compress recipes ls",
            "compress recipes copy quickstart mine.yaml",
            "compress recipes check mine.yaml",
        ),
        "recipes/README.md; every field, in docs/recipes.md",
    ),
    "recipes ls": Entry(("compress recipes ls",), "recipes/README.md"),
    "recipes show": Entry(("compress recipes show quickstart",), "docs/recipes.md"),
    "recipes copy": Entry(("compress recipes copy quickstart mine.yaml",), "docs/recipes.md"),
    "recipes check": Entry(
        ("compress recipes check", "compress recipes check mine.yaml"),
        "docs/errors.md#recipe",
        {0: "no mistake", 2: "mistakes, each told with its line"},
    ),
}
