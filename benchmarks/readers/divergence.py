"""KL divergence of Hugging Face folders to their teacher; shares no code with compress.

    python divergence.py TEACHER_DIR MODEL_DIR… --text A.txt B.txt [--windows 20] [--seq-len 1024]

At every position of the first windows of each text: KL(teacher || model) in nats over the whole
vocabulary, from float32 log-softmax of the logits; and the perplexity over these windows, a window
of n tokens giving n - 1 losses. The teacher runs once a window and every model is compared to that
one answer. Prints one JSON line: {text: [the teacher's result, one a model, in order]}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from products import prefer_onednn
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Tally:
    """What was seen of one model on one text."""

    divergences: list[Tensor] = field(default_factory=list)  # one [T] a window, nats
    losses: list[Tensor] = field(default_factory=list)  # one [T - 1] a window, nats
    agreements: int = 0

    def add(self, expected: Tensor, found: Tensor, window: Tensor) -> None:
        """Compare log-probabilities [T, V] of teacher and model for the tokens [1, T]."""
        self.divergences.append((expected.exp() * (expected - found)).sum(-1))
        self.losses.append(-found[:-1].gather(-1, window[0, 1:, None])[:, 0])
        self.agreements += int((expected.argmax(-1) == found.argmax(-1)).sum())

    def result(self) -> dict[str, float | int]:
        """Mean, median and 99th percentile in nats, and how often the first choice is the same."""
        kl = torch.cat(self.divergences)
        return {
            "kl_mean": kl.double().mean().item(),
            "kl_p50": kl.quantile(0.5).item(),
            "kl_p99": kl.quantile(0.99).item(),
            "top1_agreement": self.agreements / kl.numel(),
            "perplexity": torch.cat(self.losses).double().mean().exp().item(),
            "tokens": kl.numel(),
        }


@torch.inference_mode()
def compare(
    teacher_dir: Path,
    model_dirs: Sequence[Path],
    texts: Sequence[Path],
    *,
    windows: int,
    seq_len: int,
    dtype: str,
) -> dict[str, list[dict[str, float | int]]]:
    """Divergence of teacher and models from the teacher on each text, with its tokenizer.

    Raises:
        SystemExit: a text holds not one window.
    """
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    teacher, *models = [_open(folder, dtype) for folder in [teacher_dir, *model_dirs]]
    results = {}
    for text in texts:
        ids = tokenizer(text.read_text("utf-8")).input_ids
        count = min(windows, len(ids) // seq_len)
        if count == 0:
            raise SystemExit(f"{text}: {len(ids)} tokens, one window needs {seq_len}")
        own, *tallies = Tally(), *(Tally() for _ in models)
        for window in torch.tensor(ids[: count * seq_len]).view(count, 1, seq_len):
            expected = _log_probabilities(teacher, window)
            own.add(expected, expected, window)
            for tally, model in zip(tallies, models, strict=True):
                tally.add(expected, _log_probabilities(model, window), window)
        results[str(text)] = [tally.result() for tally in (own, *tallies)]
    return results


def _open(folder: Path, dtype: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def _log_probabilities(model: torch.nn.Module, window: Tensor) -> Tensor:
    return model(window, use_cache=False).logits[0].float().log_softmax(-1)  # [T, V]


def main() -> None:
    """Print the divergence of each folder on each text as one JSON line."""
    parser = argparse.ArgumentParser(description="KL divergence of folders to their teacher.")
    parser.add_argument("teacher", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    prefer_onednn()
    results = compare(
        given.teacher,
        given.models,
        given.text,
        windows=given.windows,
        seq_len=given.seq_len,
        dtype=given.dtype,
    )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
