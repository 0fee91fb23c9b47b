"""Decode and prefill speed of llama.cpp built for this processor, batch 1, greedy.

    export CMAKE_ARGS="-DGGML_NATIVE=ON"
    native/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    native/bin/python llamacpp_native_speed.py MODEL.gguf --prompt TEXT --long-prompt TEXT

llama.cpp's own calls through `llama_cpp`'s bindings, no sampler: the likeliest token is taken from
its logits. One warm-up, then one measurement: the driver repeats. Prints one JSON line.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp
import numpy as np
import speed


def read(model: Any, tokens: list[int]) -> int:
    """Read tokens behind what was read; the likeliest next one."""
    given = (llama_cpp.llama_token * len(tokens))(*tokens)
    if llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(given, len(tokens))):
        raise SystemExit("llama_decode failed")
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())


def timings(model: Any, prompt: str, tokens: int) -> tuple[int, float, float]:
    """Tokens of the prompt, its seconds, and those of `tokens` - 1 more steps."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    ids = model.tokenize(prompt.encode())
    started = time.perf_counter()
    token = read(model, ids)
    first = time.perf_counter()
    for _ in range(tokens - 1):
        token = read(model, [token])
    return len(ids), first - started, time.perf_counter() - first


def main() -> None:
    """Print both speeds as one JSON line."""
    given = speed.arguments("Speed of llama.cpp, built here.")
    model = llama_cpp.Llama(
        given.model, n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=given.threads,
        n_threads_batch=given.threads, verbose=False,
    )  # fmt: skip
    timings(model, given.prompt, 8)
    short, _, decode = timings(model, given.prompt, given.tokens)
    long, prefill, _ = timings(model, given.long_prompt, 1)
    speed.tell(
        decode=(given.tokens - 1) / decode,
        prefill=long / prefill,
        prompt_tokens=[short, long],
        packages=["llama-cpp-python"],
    )


if __name__ == "__main__":
    main()
