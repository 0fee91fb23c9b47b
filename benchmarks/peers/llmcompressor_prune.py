"""Prune one teacher with llm-compressor, timed as ours is; its environment: llmcompressor_run.py.

    peer/bin/python llmcompressor_prune.py TEACHER_DIR WINDOWS.txt OUT_DIR --method sparsegpt
    peer/bin/python llmcompressor_prune.py TEACHER_DIR WINDOWS.txt OUT_DIR --pattern 2:4

Everything not on the command line is llm-compressor's own default (SparseGPT: blocks of 128
columns, damping 0.01, one sample a forward). Its magnitude pruning is not among the methods: it
waits for steps of training, which one-shot has none of, and leaves every weight as it was. Prints
one JSON line at the end.
"""

from __future__ import annotations

import argparse
from typing import Any

from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from llmcompressor_once import run
from quantizing import options

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def modifier(given: argparse.Namespace) -> Any:
    """Half of every linear but the head, or n of every m."""
    return MODIFIERS[given.method](
        sparsity=given.sparsity,
        mask_structure=given.pattern or "0:0",
        targets=["Linear"],
        ignore=["re:.*lm_head"],
    )


def main() -> None:
    """Prune, save, and print seconds, windows and versions as one JSON line."""
    parser = options("Prune one teacher with llm-compressor.")
    parser.add_argument("--method", choices=[*MODIFIERS], default="sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", help="n:m, with --sparsity 0.5 for 2:4")
    run(parser.parse_args(), modifier)


if __name__ == "__main__":
    main()
