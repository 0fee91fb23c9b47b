"""Quantize one teacher with auto-round, timed as ours is.

    python3 -m venv autoround && autoround/bin/pip install torch==2.13.0
    autoround/bin/pip install auto-round==0.16.1 compressed-tensors
    autoround/bin/python autoround_run.py TEACHER_DIR WINDOWS.txt OUT_DIR [--iterations 200]

An environment of its own; torch first, because an open range brings the CUDA build. Everything not
on the command line is auto-round's own default. The clock runs from "token windows ready" to "last
shard flushed": tuning, saving and an fsync. Prints one JSON line at the end.
"""

from __future__ import annotations

import time

import torch
from auto_round import AutoRound
from quantizing import flush, options, tell, windows_of
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize, save, and print seconds, windows and versions as one JSON line."""
    parser = options("Quantize one teacher with auto-round.")
    parser.add_argument("--iterations", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    model = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=getattr(torch, given.dtype))
    windows = windows_of(given, tokenizer)
    data = [{"input_ids": torch.tensor([window])} for window in windows]

    start = time.perf_counter()
    tuned = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=f"W{given.bits}A16G{given.group_size}",
        dataset=data,
        iters=given.iterations,
        nsamples=given.samples,
        seqlen=given.seq_len,
        device_map="cpu",
    )
    tuned.quantize_and_save(str(given.out), format="llm_compressor")
    shards = next(given.out.rglob("*.safetensors")).parent
    flush(shards)
    seconds = time.perf_counter() - start

    for file in [] if shards == given.out else shards.iterdir():  # it makes a folder of its own
        file.rename(given.out / file.name)
    tell(seconds, windows, ["auto-round", "compressed-tensors", "transformers", "torch"])


if __name__ == "__main__":
    main()
