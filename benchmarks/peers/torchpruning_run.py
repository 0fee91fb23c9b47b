"""Cut the MLPs of one teacher with Torch-Pruning, as its example for language models does.

    python3 -m venv torchpruning && torchpruning/bin/pip install torch==2.13.0
    torchpruning/bin/pip install torch-pruning==1.6.1 transformers accelerate
    torchpruning/bin/python torchpruning_run.py TEACHER_DIR WINDOWS.txt OUT_DIR --keep 0.75

As the example: groups of channels by their magnitude (p = 2, the mean over a group), every block to
the same width, nothing fitted or trained afterwards. `--importance taylor` is its first-order
score, from the gradients of the loss on the windows. Prints one JSON line at the end.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
import torch_pruning
from quantizing import flush, options, tell, windows_of
from torch_pruning.pruner.importance import GroupMagnitudeImportance, GroupTaylorImportance
from transformers import AutoModelForCausalLM, AutoTokenizer

IMPORTANCES = {
    "magnitude": partial(GroupMagnitudeImportance, p=2, group_reduction="mean"),
    "taylor": GroupTaylorImportance,
}
OTHERS = (torch.nn.Linear, torch.nn.Embedding)


def cut(model: Any, given: argparse.Namespace, windows: list[list[int]]) -> None:
    """Prune the channels between gate, up and down in place, and tell the config."""
    mlps = [block.mlp for block in model.model.layers]
    pruned = {linear for mlp in mlps for linear in (mlp.gate_proj, mlp.up_proj)}
    others = [x for x in model.modules() if isinstance(x, OTHERS) and x not in pruned]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs=torch.tensor([windows[0][:8]]),
        importance=IMPORTANCES[given.importance](),
        pruning_ratio=1 - given.keep,
        ignored_layers=others,
        root_module_types=[torch.nn.Linear],
        output_transform=lambda out: out.logits.sum(),
    )
    if given.importance == "taylor":
        for window in windows:
            ids = torch.tensor([window])
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    pruner.step()
    model.zero_grad()
    model.config.intermediate_size = mlps[0].gate_proj.out_features


def main() -> None:
    """Cut, save, and print seconds, windows and versions as one JSON line."""
    parser = options("Cut the MLPs of one teacher with Torch-Pruning.")
    parser.add_argument("--keep", type=float, default=0.75, help="share of the channels")
    parser.add_argument("--importance", choices=[*IMPORTANCES], default="magnitude")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    model = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=torch.float32)
    windows = windows_of(given, tokenizer)

    start = time.perf_counter()
    cut(model, given, windows)
    model.to(getattr(torch, given.dtype)).save_pretrained(given.out)
    flush(given.out)
    seconds = time.perf_counter() - start

    tokenizer.save_pretrained(given.out)
    tell(seconds, windows, ["torch-pruning", "transformers", "torch"])


if __name__ == "__main__":
    main()
