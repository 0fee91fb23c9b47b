"""How fast our runtime answers from an artifact, and in how much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from compress import machine
from compress.errors import EvaluationError, RequestError
from compress.results import NEW_TOKENS, PROMPT_TOKENS, Timed
from compress.runtime.engine import Engine, collect
from compress.runtime.request import Timings


def timings(folder: Path, threads: int | None = None) -> Timings | None:
    """Time one greedy answer, one prompt at a time; None where the runtime cannot run the model.

    Args:
        folder: an artifact. An answer to another prompt comes first and is not counted; nothing is
            proposed, as the prompt repeats itself.
        threads: that compute; torch's own setting by default.
    """
    try:
        return _answered(folder, threads)
    except RequestError:
        return None


def timed_alone(folder: Path, threads: int) -> Timed:
    """The same in a process of its own, whose memory is that of answering and of nothing else.

    One comes before it and is not counted: it compiles what is not at hand for this machine yet.

    Args:
        folder: an artifact, or a dense model folder.
        threads: that compute.

    Raises:
        EvaluationError: the runtime does not run it, or the process was killed.
    """
    _alone(folder, threads)
    return _alone(folder, threads)


def _alone(folder: Path, threads: int) -> Timed:
    package = str(Path(__file__).resolve().parents[2])  # a checkout need not be installed
    paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        # -P: the working folder, which may be a stranger's, is no place to import from
        [sys.executable, "-P", "-m", "compress.evaluate.speed", str(folder), str(threads)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode < 0:
        raise EvaluationError(f"killed by signal {-done.returncode} while it answered")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EvaluationError(reason)
    return Timed(**json.loads(done.stdout))


def _answered(folder: Path, threads: int | None) -> Timings | None:
    """How long an answer took; None where it broke off.

    Raises:
        RequestError: the runtime cannot run the model.
    """
    other, prompt = ([1 + (skip + i) % 100 for i in range(PROMPT_TOKENS)] for skip in (50, 0))
    engine = Engine.open(folder, threads=threads, speculate=False)
    collect(engine.generate(other, max_new_tokens=4))
    engine.stop_ids = frozenset()  # an early end would be no measurement
    return collect(engine.generate(prompt, max_new_tokens=NEW_TOKENS)).timings


def _main(arguments: Sequence[str]) -> int:
    folder, threads = Path(arguments[0]), int(arguments[1])
    try:
        found = _answered(folder, threads)
    except RequestError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    if found is None:
        sys.stderr.write("its answer broke off\n")
        return 1
    told = Timed(
        found.decode_tokens_per_second, found.prefill_tokens_per_second, found.ttft_seconds,
        machine.most_resident_bytes(), machine.hardware(), threads, machine.versions(),
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(told)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
