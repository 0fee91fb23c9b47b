"""Decode and prefill speed of our runtime on one folder, batch 1, greedy.

    python ours_speed.py MODEL_DIR --prompt TEXT --long-prompt TEXT [--tokens 128]

The speeds are the engine's own timings: model and sampler inside, text out of tokens outside. One
warm-up, then one measurement: the driver repeats. Prints one JSON line.
"""

from __future__ import annotations

import speed

from compress.runtime.engine import Engine, collect
from compress.runtime.request import Timings


def timings(engine: Engine, ids: list[int], tokens: int) -> Timings:
    """Timings of one greedy completion of exactly `tokens` tokens.

    Raises:
        SystemExit: it ended early.
    """
    found = collect(engine.generate(ids, max_new_tokens=tokens)).timings
    if found is None or found.new_tokens != tokens:
        raise SystemExit(f"ended after {found and found.new_tokens} of {tokens} tokens")
    return found


def main() -> None:
    """Print both speeds as one JSON line."""
    given = speed.arguments("Speed of our runtime.", dtypes=["bfloat16", "float32"])
    engine = Engine.open(given.model, threads=given.threads, dtype=given.dtype, speculate=False)
    engine.stop_ids = frozenset()  # the others are told to go on past the end of the text too
    short, long = (engine.tokenizer.encode(text) for text in (given.prompt, given.long_prompt))
    timings(engine, short, 8)
    decode = timings(engine, short, given.tokens)
    prefill = timings(engine, long, 1)
    speed.tell(
        decode=decode.decode_tokens_per_second,
        prefill=prefill.prefill_tokens_per_second,
        prompt_tokens=[len(short), len(long)],
        packages=["torch"],
    )


if __name__ == "__main__":
    main()
