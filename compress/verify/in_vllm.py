"""Answer prompts with vLLM: ``python in_vllm.py REQUEST ANSWER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(asked: Path, answer: Path) -> None:
    """Read a request, write an answer; `compress.verify.consumers` says what they hold."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; by default it takes half of memory
    try:
        import vllm  # type: ignore[import-not-found]  # it has an environment of its own
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        answer.write_text(json.dumps({"missing": "no vllm there"}), encoding="utf-8")
        return
    request = json.loads(asked.read_text(encoding="utf-8"))
    longest = max(map(len, request["prompts"])) + request["new_tokens"]
    engine = vllm.LLM(
        model=request["folder"], dtype=request["dtype"], max_model_len=longest, seed=0,
        enforce_eager=True, gpu_memory_utilization=0.5,
    )  # fmt: skip
    sampling = vllm.SamplingParams(
        temperature=0, max_tokens=request["new_tokens"], ignore_eos=True, logprobs=request["top"]
    )
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    answers = [
        {
            "tokens": list(out.outputs[0].token_ids),
            "top": [
                {token: told.logprob for token, told in row.items()}
                for row in out.outputs[0].logprobs
            ],
        }
        for out in engine.generate(prompts, sampling, use_tqdm=False)
    ]
    told = {"version": vllm.__version__, "answers": answers}
    answer.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
