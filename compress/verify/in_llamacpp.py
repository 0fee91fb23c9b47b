"""Answer prompts with llama.cpp: ``python in_llamacpp.py REQUEST ANSWER``, by way of xllamacpp."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(asked: Path, answer: Path) -> None:
    """Read a request, write an answer; `compress.verify.consumers` says what they hold."""
    try:
        import xllamacpp  # type: ignore[import-not-found]  # it has an environment of its own
    except ModuleNotFoundError as error:
        if error.name != "xllamacpp":
            raise
        answer.write_text(json.dumps({"missing": "no xllamacpp there"}), encoding="utf-8")
        return
    request = json.loads(asked.read_text(encoding="utf-8"))
    settings = xllamacpp.CommonParams()
    settings.model.path = str(Path(request["folder"]) / "model.gguf")
    settings.n_ctx = max(map(len, request["prompts"])) + request["new_tokens"] + 1
    settings.n_parallel, settings.n_gpu_layers, settings.warmup = 1, 0, False
    if threads := os.environ.get("OMP_NUM_THREADS"):  # idle ones of its own spin
        settings.cpuparams.n_threads = int(threads)
    server = xllamacpp.Server(settings)
    answers = [
        _continued(server, ids, request["new_tokens"], request["top"]) for ids in request["prompts"]
    ]
    told = {"version": importlib.metadata.version("xllamacpp"), "answers": answers}
    answer.write_text(json.dumps(told), encoding="utf-8")


def _continued(server: Any, prompt: list[int], new_tokens: int, top: int) -> dict[str, Any]:
    """Greedy tokens, with the log-probabilities of the likeliest before any sampling.

    Of a token that ends inside a character it tells none: those rows are empty.
    """
    said = server.handle_completions(
        {
            "prompt": prompt, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True,
            "n_probs": top, "cache_prompt": False, "post_sampling_probs": False, "verbose": True,
        }
    )  # fmt: skip
    if "__verbose" not in said:
        raise RuntimeError(f"llama.cpp refuses to answer: {said}")
    tokens: list[int] = said["__verbose"]["tokens"]
    told = iter(said["__verbose"]["completion_probabilities"])
    likeliest, step = [], next(told, None)
    for token in tokens:
        known = step is not None and step["id"] == token
        rows = step["top_logprobs"] if step is not None and known else []
        likeliest.append({one["id"]: one["logprob"] for one in rows})
        step = next(told, None) if known else step
    return {"tokens": tokens, "top": likeliest}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
