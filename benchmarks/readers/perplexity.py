"""Perplexity of any Hugging Face folder, read by transformers: shares no code with compress.

    python perplexity.py MODEL_DIR TEXT [--windows 40] [--seq-len 1024] [--dtype float32]

Protocol: the whole text is tokenized once and cut into consecutive windows, without overlap and
without a token added in front of each; a window of n tokens gives n - 1 losses; perplexity is exp
of the mean loss over all of them. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import transformers
from products import prefer_onednn
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def perplexity(
    model_dir: Path, text: Path, *, windows: int, seq_len: int, dtype: str
) -> dict[str, float | int]:
    """Perplexity of one model on the first windows of a text.

    Raises:
        SystemExit: the text holds not one window.
    """
    ids = AutoTokenizer.from_pretrained(model_dir)(text.read_text("utf-8")).input_ids
    count = min(windows, len(ids) // seq_len)
    if count == 0:
        raise SystemExit(f"{text}: {len(ids)} tokens, one window needs {seq_len}")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()
    loss = 0.0
    for window in torch.tensor(ids[: count * seq_len]).view(count, 1, seq_len):
        logits = model(window, use_cache=False).logits[0, :-1].float()  # [T-1, V]
        loss += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
    tokens = count * (seq_len - 1)
    return {"perplexity": math.exp(loss / tokens), "windows": count, "tokens": tokens}


def main() -> None:
    """Print the perplexity of one folder as a JSON line."""
    parser = argparse.ArgumentParser(description="Perplexity of a Hugging Face folder.")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    prefer_onednn()
    result = perplexity(
        given.model, given.text, windows=given.windows, seq_len=given.seq_len, dtype=given.dtype
    )
    print(json.dumps({**result, "dtype": given.dtype, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
