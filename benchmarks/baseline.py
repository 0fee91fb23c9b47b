"""The teacher as it is: its size, what it scores, how fast our runtime answers from it.

    python baseline.py TEACHER [--suite quick] [--threads 2]

Prints one JSON line. Seconds begin when the teacher is here.
"""

from __future__ import annotations

import argparse
import json
import os
import time

from compress import machine
from compress.evaluate import speed
from compress.pipeline import evaluate
from compress.teacher import sources


def main() -> None:
    """Fetch, judge, time, and print what was found."""
    parser = argparse.ArgumentParser(description="Measure a dense teacher.")
    parser.add_argument("teacher")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    teacher = sources.fetch(given.teacher)
    begun = (time.perf_counter(), machine.cpu_seconds())
    side, _ = evaluate(given.teacher, suite=given.suite, threads=given.threads)
    timings = speed.timings(teacher.folder)
    read = side.perplexity
    print(
        json.dumps(
            {
                "texts": [read.fingerprint] if read else [],
                "size_bytes": side.size_bytes,
                "bits_per_weight": side.bits_per_weight,
                "perplexity": read.perplexity if read else None,
                "decode_tokens_per_second": timings.decode_tokens_per_second if timings else None,
                "seconds": round(time.perf_counter() - begun[0], 1),
                "cpu_seconds": round(machine.cpu_seconds() - begun[1], 1),
                "peak_memory_bytes": machine.peak_memory_bytes(),
            }
        )
    )


if __name__ == "__main__":
    main()
