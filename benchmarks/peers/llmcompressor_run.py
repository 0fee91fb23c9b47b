"""Quantize one teacher with llm-compressor, timed as ours is.

    python3 -m venv peer && peer/bin/pip install torch==2.13.0
    peer/bin/pip install llmcompressor==0.14.0.1
    peer/bin/python llmcompressor_run.py TEACHER_DIR WINDOWS.txt OUT_DIR [--method gptq]
    peer/bin/python llmcompressor_run.py TEACHER_DIR WINDOWS.txt OUT_DIR --scheme W8A8

An environment of its own because its pins clash with ours; torch first, because an open range
brings the CUDA build. Everything not on the command line is llm-compressor's own default (GPTQ:
static act order, damping 0.01, min-max scales, one sample a forward). `--scheme W8A8` is the recipe
of its own examples: SmoothQuant of strength 0.8, then GPTQ, inputs rounded token by token. Any
width from 1 to 8 bits is packed without gaps. The clock is that of llmcompressor_once.py. Prints
one JSON line at the end.
"""

from __future__ import annotations

import argparse
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor_once import run
from quantizing import options

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


def recipe(given: argparse.Namespace) -> Any:
    """What the command line asks for."""
    if given.scheme:
        return preset(given.scheme, method=given.method)
    return modifier(
        method=given.method,
        bits=given.bits,
        group_size=given.group_size,
        observer=given.observer,
    )


def main() -> None:
    """Quantize, save, and print seconds, windows and versions as one JSON line."""
    parser = options("Quantize one teacher with llm-compressor.")
    parser.add_argument("--method", choices=sorted(MODIFIERS), default="gptq")
    parser.add_argument("--observer", help="how scales are found; default: the peer's own, min-max")
    parser.add_argument("--scheme", help="a preset instead of bits and group size, as W8A8")
    run(parser.parse_args(), recipe)


if __name__ == "__main__":
    main()
