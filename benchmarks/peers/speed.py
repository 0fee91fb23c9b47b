"""What the runners behind `decode.py` share: their arguments, and the one line that they print.

Standard library only: each runner has an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from collections.abc import Sequence


def arguments(description: str, *, dtypes: Sequence[str] = ()) -> argparse.Namespace:
    """Parse a runner's command line.

    Args:
        description: what is timed.
        dtypes: what the runner computes in, its default first; none where the file decides.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--long-prompt", required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    if dtypes:
        parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    return parser.parse_args()


def tell(
    *, decode: float, prefill: float, prompt_tokens: Sequence[int], packages: Sequence[str]
) -> None:
    """Print both speeds in tokens a second, and the versions of what was timed, as one JSON line.

    Args:
        decode: new tokens a second after the short prompt.
        prefill: tokens a second of the long prompt.
        prompt_tokens: of the short and of the long prompt.
        packages: whose versions stand beside the numbers.
    """
    print(
        json.dumps(
            {
                "decode_tokens_per_second": decode,
                "prefill_tokens_per_second": prefill,
                "prompt_tokens": list(prompt_tokens),
                "versions": {name: importlib.metadata.version(name) for name in packages},
            }
        )
    )
