"""Where documents are tried out: an empty folder, a tiny teacher, and every example made small.

Commands and programs of a page run there as they are written. What is mapped, and nothing else:

- the teachers of shipped recipes become one tiny Llama, `./model` on the desk, which is also what
  pages call `teacher-folder`; their samples and windows become few and short;
- calibration sets from a hub become the text that ships, suites become a few items;
- artifacts that a page names without making them (`small`, `student`, …) are there;
- consumers in processes of their own, and the time of a token, are left out of a run's end; a
  server is set up and not waited for.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import library

# widths that groups of 128 divide; heads too narrow for compiled steps, which take long to compile
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 8,
}  # fmt: skip
SMALL = (  # whatever a recipe says of how much
    (r"model: \S+\n(\s+(sha256|revision): \S+\n)*", "model: ./model\n"),
    (r"model: [^\s,}]+, (sha256|revision): [^\s,}]+", "model: ./model"),
    (r"samples: \d+", "samples: 12"),
    (r"seq_len: \d+", "seq_len: 32"),
    (r"batch_tokens: \S+?(?=[,}\s])", "batch_tokens: 64"),
    (r"(steps|epochs): [\d.]+", r"\1: 1"),
    (r"set: (wikitext2|c4|ultrachat)", "set: smoke"),
)
SUITE = """version: 1
description: a few items of each kind
perplexity: {set: ../texts/heldout.txt, seq_len: 32, windows: 2}
divergence: {set: ../texts/heldout.txt, seq_len: 32, windows: 2}
tasks: [cloze]
limit: 2
samples: {prompts: [Hello], max_new_tokens: 4}
"""


def small(text: str) -> str:
    """A recipe for the tiny teacher, in its own words."""
    for pattern, instead in SMALL:
        text = re.sub(pattern, instead, text)
    return text


def lay_out(shipped: Path) -> None:
    """A copy of what ships, made small."""
    for name in ("recipes", "calib", "eval"):
        shutil.copytree(library.root() / name, shipped / name)
    for path in (shipped / "recipes").glob("*.yaml"):
        path.write_text(small(path.read_text("utf-8")), encoding="utf-8")
    for path in (shipped / "eval" / "suites").glob("*.yaml"):
        path.write_text(SUITE, encoding="utf-8")


def furnish(folder: Path, model: Path, made: Path) -> None:
    """Lay all that pages name on the desk."""
    for name in ("model", "teacher-folder"):
        shutil.copytree(model, folder / name)
    for name in ("student", "small", "small-student"):
        shutil.copytree(made / "student", folder / name)
    shutil.copytree(made / "other", folder / "other")
    (folder / "keys.txt").write_text("key-for-a-test\n")


def map_to(patch: pytest.MonkeyPatch, shipped: Path, cache: Path) -> None:
    """Let commands find what was made small, and leave out what takes long or never ends."""
    from compress import pipeline
    from compress.cli import serve
    from compress.evaluate import speed
    from compress.verify import consumers

    patch.setenv("COMPRESS_CACHE", str(cache))
    patch.setenv("COMPRESS_OFFLINE", "1")
    patch.setattr(library, "root", lambda: shipped)
    patch.setattr(speed, "timings", lambda folder: None)
    patch.setattr(pipeline, "CONSUMERS", {})
    ours = {name: loads for name, loads in consumers.CONSUMERS.items() if name == "compress"}
    patch.setattr(consumers, "CONSUMERS", ours)
    patch.setattr(serve, "_listen", _listen(serve._listen))
    patch.setattr(serve, "_run", _set_up)


def _listen(listen: Callable[[str, int], Any]) -> Callable[[str, int], Any]:
    return lambda host, port: listen(host, 0)  # any that is free


def _set_up(server: Any, listening: Any, loops: dict[str, Any]) -> None:
    """In the place of serving: all is there that the server would be made of."""
    assert server.config.app
    assert loops
