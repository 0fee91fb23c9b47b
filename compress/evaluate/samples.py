"""What a model says to a few prompts, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compress.surgery import load
from compress.surgery.decode import Decoder
from compress.surgery.walk import Weights


def answers(
    weights: Weights,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    device: str,
    dtype: torch.dtype,
) -> list[str]:
    """Greedy continuations, all prompts in step.

    Args:
        weights: the model; held whole while it answers.
        tokenizer: the teacher's; where it has a chat template, a prompt is what the user says.
        prompts: at least one, none of them empty.
        max_new_tokens: for each answer; an end-of-text token ends it sooner.
        device: where to run.
        dtype: in which to run.
    """
    given = [_encoded(tokenizer, prompt) for prompt in prompts]
    steps = max(map(len, given)) + max_new_tokens
    decoder = Decoder(load.materialize(weights, dtype).to(device), steps)
    rows = [[ids[0]] for ids in given]
    for position in range(steps - 1):
        last = torch.tensor([row[-1] for row in rows], device=device)
        following = decoder.step(last).argmax(-1).tolist()
        for row, ids, token in zip(rows, given, following, strict=True):
            row.append(ids[position + 1] if position + 1 < len(ids) else token)
    new = [row[len(ids) : len(ids) + max_new_tokens] for row, ids in zip(rows, given, strict=True)]
    return [_decoded(tokenizer, ids) for ids in new]


def _encoded(tokenizer: Any, prompt: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        prompt = load.chat(tokenizer, [{"role": "user", "content": prompt}], answering=True)
        return list(tokenizer.encode(prompt, add_special_tokens=False))
    return list(tokenizer.encode(prompt))


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    ends = {tokenizer.eos_token_id}
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(ids[:stop], skip_special_tokens=True))
