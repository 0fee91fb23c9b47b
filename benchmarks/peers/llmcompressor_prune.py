"""Prune one teacher with llm-compressor, timed as ours is; its environment: llmcompressor_run.py.

    peer/bin/python llmcompressor_prune.py TEACHER_DIR WINDOWS.txt OUT_DIR --method sparsegpt
    peer/bin/python llmcompressor_prune.py TEACHER_DIR WINDOWS.txt OUT_DIR --pattern 2:4

Everything not on the command line is llm-compressor's own default (SparseGPT: blocks of 128
columns, damping 0.01, one sample a forward). Its magnitude pruning follows a schedule of epochs,
of which one-shot has none, so it is told that it begins where it ends. Prints one JSON line at
the end.
"""

from __future__ import annotations

import argparse
from typing import Any

from llmcompressor.modifiers.pruning.magnitude import MagnitudePruningModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from llmcompressor_once import run
from quantizing import options

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}
NAMES = r"re:.*_proj\.weight"  # magnitude pruning names parameters, the others modules


def modifier(given: argparse.Namespace) -> Any:
    """Half of every linear but the head, or n of every m."""
    if given.method == "magnitude":
        return MagnitudePruningModifier(
            targets=[NAMES], init_sparsity=given.sparsity, final_sparsity=given.sparsity,
            mask_structure=given.pattern or "unstructured", start=0.0, end=1.0,
        )  # fmt: skip
    return MODIFIERS[given.method](
        sparsity=given.sparsity,
        mask_structure=given.pattern or "0:0",
        targets=["Linear"],
        ignore=["re:.*lm_head"],
    )


def main() -> None:
    """Prune, save, and print seconds, windows and versions as one JSON line."""
    parser = options("Prune one teacher with llm-compressor.")
    parser.add_argument("--method", choices=[*MODIFIERS, "magnitude"], default="sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", help="n:m, with --sparsity 0.5 for 2:4")
    run(parser.parse_args(), modifier)


if __name__ == "__main__":
    main()
