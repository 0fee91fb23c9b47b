"""Answer prompts with llama.cpp: ``python in_llamacpp.py REQUEST ANSWER``, by way of xllamacpp."""

from __future__ import annotations

import importlib.metadata
import json
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
    server = xllamacpp.Server(settings)
    answers = [
        _continued(server, ids, request["new_tokens"], request["top"]) for ids in request["prompts"]
    ]
    told = {"version": importlib.metadata.version("xllamacpp"), "answers": answers}
    answer.write_text(json.dumps(told), encoding="utf-8")


def _continued(server: Any, prompt: list[int], new_tokens: int, top: int) -> dict[str, Any]:
    """Greedy tokens, with the log-probabilities of the likeliest before any sampling."""
    said = server.handle_completions(
        {
            "prompt": prompt, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True,
            "n_probs": top, "cache_prompt": False, "post_sampling_probs": False,
        }
    )  # fmt: skip
    if "choices" not in said:
        raise RuntimeError(f"llama.cpp refuses to answer: {said}")
    steps = said["choices"][0]["logprobs"]["content"]
    return {
        "tokens": [step["id"] for step in steps],
        "top": [{one["id"]: one["logprob"] for one in step["top_logprobs"]} for step in steps],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
