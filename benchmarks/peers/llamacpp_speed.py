"""Decode and prefill speed of llama.cpp (PyPI `xllamacpp`) on one GGUF file, batch 1, greedy.

    python3 -m venv llama && llama/bin/pip install xllamacpp
    llama/bin/python llamacpp_speed.py MODEL.gguf --prompt TEXT --long-prompt TEXT [--tokens 128]

The speeds are llama.cpp's own timings of one completion: sampling inside, HTTP outside. One
warm-up, then one measurement: the driver repeats. Prints one JSON line.
"""

from __future__ import annotations

import json
from typing import Any

import speed
import xllamacpp


def serve(model: str, threads: int) -> Any:
    """One in-process server with one slot."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def timings(server: Any, prompt: str, tokens: int) -> dict[str, float]:
    """llama.cpp's timings of one greedy completion of exactly `tokens` tokens."""
    request = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": False}
    answer = server.handle_completions({**request, "ignore_eos": True, "cache_prompt": False})
    parsed: dict[str, Any] = json.loads(answer) if isinstance(answer, str) else answer
    return parsed["timings"]


def main() -> None:
    """Print both speeds as one JSON line."""
    given = speed.arguments("Speed of llama.cpp.")
    server = serve(given.model, given.threads)
    timings(server, given.prompt, 8)
    decode = timings(server, given.prompt, given.tokens)
    prefill = timings(server, given.long_prompt, 4)
    speed.tell(
        decode=decode["predicted_per_second"],
        prefill=prefill["prompt_per_second"],
        prompt_tokens=[decode["prompt_n"], prefill["prompt_n"]],
        packages=["xllamacpp"],
    )


if __name__ == "__main__":
    main()
