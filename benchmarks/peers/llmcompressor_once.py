"""One run of llm-compressor on a teacher, timed as ours is, whatever its recipe does."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from quantizing import flush, tell, windows_of
from transformers import AutoModelForCausalLM, AutoTokenizer


def run(given: argparse.Namespace, recipe: Callable[[argparse.Namespace], Any]) -> None:
    """Compress, save, and print seconds, windows and versions as one JSON line.

    The clock runs from "token windows ready" to "last shard flushed": `oneshot`, `save_pretrained`
    and an fsync.

    Args:
        given: what `quantizing.options` and the runner's own options were told.
        recipe: makes llm-compressor's modifiers of it.
    """
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    model = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=getattr(torch, given.dtype))
    windows = windows_of(given, tokenizer)
    data = Dataset.from_dict(
        {"input_ids": windows, "attention_mask": [[1] * len(window) for window in windows]}
    )
    modifiers = recipe(given)

    start = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        recipe=modifiers,
        max_seq_length=given.seq_len,
        num_calibration_samples=given.samples,
    )
    model.save_pretrained(given.out, save_compressed=True)
    flush(given.out)
    seconds = time.perf_counter() - start

    tokenizer.save_pretrained(given.out)
    tell(seconds, windows, ["llmcompressor", "compressed-tensors", "transformers", "torch"])
