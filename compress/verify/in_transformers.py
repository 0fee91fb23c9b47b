"""Answer prompts with transformers: ``python in_transformers.py REQUEST ANSWER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(asked: Path, answer: Path) -> None:
    """Read a request, write an answer; `compress.verify.consumers` says what they hold."""
    import torch
    import transformers

    request = json.loads(asked.read_text(encoding="utf-8"))
    options: dict[str, Any] = {k: request[k] for k in ("gguf_file",) if k in request}
    if request["dequantize"]:  # see docs/formats.md, asymmetric grids
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=getattr(torch, request["dtype"]), local_files_only=True,
        trust_remote_code=False, **options,
    ).eval()  # fmt: skip
    with torch.inference_mode():
        answers = [
            _continued(model, ids, request["new_tokens"], request["top"])
            for ids in request["prompts"]
        ]
    told = {"version": transformers.__version__, "answers": answers}
    answer.write_text(json.dumps(told), encoding="utf-8")


def _continued(model: Any, unread: list[int], new_tokens: int, top: int) -> dict[str, Any]:
    """Greedy tokens, through its cache, with the log-probabilities of the likeliest."""
    import torch

    cache, tokens, likeliest = None, [], []
    for _ in range(new_tokens):
        out = model(input_ids=torch.tensor([unread]), past_key_values=cache, use_cache=True)
        values = out.logits[0, -1].float().log_softmax(-1)
        best = values.topk(min(top, len(values)))
        likeliest.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        cache, unread = out.past_key_values, [int(best.indices[0])]
        tokens += unread
    return {"tokens": tokens, "top": likeliest}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
