"""The house's rules, read from the source: imports point down; each dependency has its doors."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "compress"
ROOT = ("__init__", "__main__")  # the package's face may name anything, on use
RANKS = [
    {"errors", "results", "library", "families", "apart"},
    {"recipe", "kernels", "anatomy", "storage", "chat", "catalogue"},
    {"shape", "forwards", "machine"},
    {"smaller", "searched"},
    {"surgery", "artifact"},
    {"teacher", "calibrate", "journal", "student", "runtime"},
    {"stages", "evaluate", "report", "verify", "plan", "diff", "tracking"},
    {"prefixes"},
    {"run"},
    {"staged"},
    {"attempts"},
    {"pipeline", "export", "logits"},
    {"compare", "api"},
    {"sweep", "auto"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
DOORS = {
    "typer": {"cli"}, "rich": {"cli"}, "uvicorn": {"cli"},
    "ray": {"sweep.tuned", "sweep.cluster"}, "optuna": {"sweep.tuned"},
    "psutil": {"cli"}, "mlflow": {"tracking"}, "wandb": {"tracking"},
    "accelerate": {"stages"}, "peft": {"stages"},
    "lm_eval": {"evaluate"},
    "scipy": {"kernels"},
    "jinja2": {"report", "chat"}, "markupsafe": {"report"}, "matplotlib": {"report"},
    "huggingface_hub": {"teacher"}, "pypi_simple": {"teacher"}, "platformdirs": {"library"},
    "datasets": {"calibrate", "evaluate"},  # lm-eval reads its tasks through it
    "tokenizers": {"runtime"}, "llguidance": {"runtime"},
    "numba": {"runtime"}, "llvmlite": {"runtime"}, "triton": {"runtime.triton"},
    "transformers": {"surgery", "verify"}, "greenlet": {"surgery"},
    # consumers, as transformers is: each in a process of its own
    "vllm": {"verify"}, "xllamacpp": {"verify"},
    "starlette": {"runtime.server"}, "prometheus_client": {"runtime.server"},
    "pydantic": {"recipe", "runtime.server"},
    "yaml": {"recipe", "evaluate"},  # lm-eval's tasks are YAML
    "model_signing": {"artifact"}, "cryptography": {"artifact"},
    "safetensors": {"storage"}, "gguf": {"storage"},
}  # fmt: skip
TENSORS = {"torch", "numpy"}
WITHOUT_TORCH = {
    "errors",
    "results",
    "library",
    "families",
    "apart",
    "recipe",
    "catalogue",
    "anatomy",
    "shape",
    "smaller",
    "searched",
    "forwards",
    "report",
    "plan",
}
TORCH_ON_USE = {"storage", "cli", "api"}  # start without it, import it inside functions
FORBIDDEN = [  # subfolders and rooms that stay apart although their ranks would allow it
    ("verify", "compress.artifact", "an independent reader shares no code with the writer"),
    ("verify.reader", "compress.storage", "an independent reader reads its own bytes"),
    ("verify", "compress.kernels.pack", "an independent reader shares no packing code"),
    ("runtime", "compress.surgery", "the runtime opens an artifact without transformers"),
    ("artifact.formats", "compress.artifact.write", "a format knows nothing of who writes it"),
    ("artifact.formats", "compress.artifact.layout", "a format knows nothing of who opens it"),
]
FILES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, dotted name and when it happens (start, use, or only for types) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {ast.FunctionDef: "use", ast.AsyncFunctionDef: "use"}
    when = {
        id(child): "types" if isinstance(node, ast.If) else functions[type(node)]
        for node in ast.walk(tree)
        if type(node) in functions
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name, when.get(id(node), "start")) for name in names)


def broken(path: Path) -> Iterator[str]:
    here = module(path)
    room = here.split(".")[0]
    for line, name, when in imports(path):
        where, top = (
            f"{path.relative_to(PACKAGE.parent)}:{line}: {here} imports {name}",
            name.split(".")[0],
        )
        if top == "compress":
            other = [*name.split("."), "__init__"][1]
            if other in RANK and other != room and RANK[other] >= RANK[room]:
                yield f"{where}: rank {RANK[other]} from rank {RANK[room]}; imports point down"
            yield from (
                f"{where}: {why}"
                for inside, apart, why in FORBIDDEN
                if (here + ".").startswith(inside + ".") and (name + ".").startswith(apart + ".")
            )
        elif when == "types":
            continue  # a name in a signature needs no library
        elif top in TENSORS:
            if room in WITHOUT_TORCH and top == "torch":
                yield f"{where}: {room} works without torch"
            elif room in TORCH_ON_USE and when == "start":
                yield f"{where}: {room} starts without torch; import it on use"
        elif top not in sys.stdlib_module_names and not any(
            (here + ".").startswith(door + ".") for door in DOORS.get(top, ())
        ):
            yield f"{where}: the doors of {top} are {sorted(DOORS.get(top, set())) or 'none'}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_down_and_use_their_doors(path: Path):
    if module(path) not in ROOT:
        assert module(path).split(".")[0] in RANK, f"{path.name}: a room without a rank"
        assert not (found := list(broken(path))), "\n".join(found)


def test_the_rules_see_what_they_forbid(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "compress")
    wrong = tmp_path / "compress" / "recipe" / "wrong.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(
        "import torch\nimport rich\nfrom compress import kernels\nfrom compress.cli import app\n"
    )
    assert [text.split(":")[1] for text in broken(wrong)] == ["1", "2", "3", "4"]


def test_heavy_libraries_are_imported_on_use():
    heavy = {
        "transformers",
        "lm_eval",
        "datasets",
        "matplotlib",
        "huggingface_hub",
        "gguf",
        "rich.live",
        "mlflow",
        "wandb",
    }
    eager = [
        f"{path.relative_to(PACKAGE.parent)}:{line} {name}"
        for path in FILES
        for line, name, when in imports(path)
        if when == "start" and name.split(".")[0] in heavy
    ]
    assert not eager
