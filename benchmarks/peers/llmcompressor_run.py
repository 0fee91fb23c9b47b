"""Quantize one teacher with llm-compressor, timed as ours is.

    python3 -m venv peer && peer/bin/pip install torch==2.13.0
    peer/bin/pip install llmcompressor==0.14.0.1
    peer/bin/python llmcompressor_run.py TEACHER_DIR WINDOWS.txt OUT_DIR [--method gptq]
    peer/bin/python llmcompressor_run.py TEACHER_DIR WINDOWS.txt OUT_DIR --scheme W8A8

An environment of its own because its pins clash with ours; torch first, because an open range
brings the CUDA build. Everything not on the command line is llm-compressor's own default (GPTQ:
static act order, damping 0.01, min-max scales, one sample a forward). `--scheme W8A8` is the recipe
of its own examples: SmoothQuant of strength 0.8, then GPTQ, inputs rounded token by token. Any
width from 1 to 8 bits is packed without gaps. The clock runs from "token windows ready" to "last
shard flushed": `oneshot`, `save_pretrained` and an fsync. Prints one JSON line at the end.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from quantizing import flush, options, tell, windows_of
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"gptq": GPTQModifier, "rtn": QuantizationModifier}


def modifier(*, method: str, bits: int, group_size: int, observer: str | None) -> Any:
    """Symmetric integer weights in groups, -1 a row each; every linear but the head."""
    chosen: dict[str, Any] = {} if observer is None else {"observer": observer}
    grouped = {"strategy": "group", "group_size": group_size}
    chosen |= {"strategy": "channel"} if group_size == -1 else grouped
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, **chosen)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return MODIFIERS[method](config_groups={"group_0": scheme}, ignore=["lm_head"])


def preset(scheme: str, *, method: str) -> list[Any]:
    """What its examples do for a preset; the integer products of W8A8 are smoothed before."""
    first = [SmoothQuantModifier(smoothing_strength=0.8)] if scheme == "W8A8" else []
    return [*first, MODIFIERS[method](targets="Linear", scheme=scheme, ignore=["lm_head"])]


def main() -> None:
    """Quantize, save, and print seconds, windows and versions as one JSON line."""
    parser = options("Quantize one teacher with llm-compressor.")
    parser.add_argument("--method", choices=sorted(MODIFIERS), default="gptq")
    parser.add_argument("--observer", help="how scales are found; default: the peer's own, min-max")
    parser.add_argument("--scheme", help="a preset instead of bits and group size, as W8A8")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    model = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=getattr(torch, given.dtype))
    windows = windows_of(given, tokenizer)
    data = Dataset.from_dict(
        {"input_ids": windows, "attention_mask": [[1] * len(window) for window in windows]}
    )
    if given.scheme:
        recipe = preset(given.scheme, method=given.method)
    else:
        recipe = modifier(
            method=given.method,
            bits=given.bits,
            group_size=given.group_size,
            observer=given.observer,
        )

    start = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=given.seq_len,
        num_calibration_samples=given.samples,
    )
    model.save_pretrained(given.out, save_compressed=True)
    flush(given.out)
    seconds = time.perf_counter() - start

    tokenizer.save_pretrained(given.out)
    tell(seconds, windows, ["llmcompressor", "compressed-tensors", "transformers", "torch"])


if __name__ == "__main__":
    main()
