"""Decode and prefill speed of transformers' `generate` on one folder, batch 1, greedy.

    python transformers_speed.py MODEL_DIR --prompt TEXT --long-prompt TEXT [--tokens 128]

Decode is timed between the first new token and the last, prefill from the call to the first token
of a long prompt. One warm-up, then one measurement: the driver repeats. Prints one JSON line.
"""

from __future__ import annotations

import time

import speed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Clock:
    """A streamer that keeps only the time at which each token arrived."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        """Take the prompt at once, then every new token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


@torch.inference_mode()
def token_times(model: torch.nn.Module, ids: torch.Tensor, tokens: int) -> list[float]:
    """Seconds after the call at which each of `tokens` new tokens was there; ids [1, T]."""
    clock, start = Clock(), time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        streamer=clock,
    )
    return [at - start for at in clock.times[1:]]


def main() -> None:
    """Print both speeds as one JSON line."""
    given = speed.arguments("Speed of transformers.", dtypes=["bfloat16", "float32"])
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype))
    model.eval()
    short, long = (
        tokenizer(text, return_tensors="pt").input_ids for text in (given.prompt, given.long_prompt)
    )
    token_times(model, short, 8)
    decode = token_times(model, short, given.tokens)
    (first,) = token_times(model, long, 1)
    speed.tell(
        decode=(given.tokens - 1) / (decode[-1] - decode[0]),
        prefill=long.shape[1] / first,
        prompt_tokens=[short.shape[1], long.shape[1]],
        packages=["transformers", "torch"],
    )


if __name__ == "__main__":
    main()
