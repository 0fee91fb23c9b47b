"""How fast our runtime answers from an artifact, and in how much memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from compress import machine
from compress.apart import program
from compress.errors import EvaluationError, RequestError
from compress.results import NEW_TOKENS, PROMPT_TOKENS, Timed
from compress.runtime.engine import Engine, collect
from compress.runtime.request import Timings

ANSWERS = 5  # whose median a process of its own tells
_SKIPS = (50, 0, 10, 20, 30, 40)  # where prompts begin to count; the first is not timed


def timings(folder: Path, threads: int | None = None) -> Timings | None:
    """Time one greedy answer, one prompt at a time; None where the runtime cannot run the model.

    Args:
        folder: an artifact. An answer to another prompt comes first and is not counted; nothing is
            proposed, as the prompt repeats itself.
        threads: that compute; torch's own setting by default.
    """
    try:
        return next(_answered(folder, threads, answers=1))
    except RequestError:
        return None


def timed_alone(folder: Path, threads: int) -> Timed:
    """Medians of a few such answers in a process of its own, whose memory is that of answering.

    One comes before it and is not counted: it compiles what is not at hand for this machine yet.

    Args:
        folder: an artifact, or a dense model folder.
        threads: that compute.

    Raises:
        EvaluationError: the runtime does not run it, or the process was killed.
    """
    _alone(folder, threads, answers=1)
    return _alone(folder, threads, answers=ANSWERS)


def _alone(folder: Path, threads: int, answers: int) -> Timed:
    command, environment = program(
        "compress.evaluate.speed", str(folder), str(threads), str(answers)
    )
    done = subprocess.run(
        command, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode < 0:
        raise EvaluationError(f"killed by signal {-done.returncode} while it answered")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EvaluationError(reason)
    return Timed(**json.loads(done.stdout))


def _answered(folder: Path, threads: int | None, answers: int) -> Iterator[Timings | None]:
    """How long each of some answers took, no prompt beginning as another; None: it broke off.

    Raises:
        RequestError: the runtime cannot run the model.
    """
    other, *prompts = ([1 + (skip + i) % 100 for i in range(PROMPT_TOKENS)] for skip in _SKIPS)
    engine = Engine.open(folder, threads=threads, speculate=False)
    collect(engine.generate(other, max_new_tokens=4))
    engine.stop_ids = frozenset()  # an early end would be no measurement
    for prompt in prompts[:answers]:
        yield collect(engine.generate(prompt, max_new_tokens=NEW_TOKENS)).timings


def _main(arguments: Sequence[str]) -> int:
    folder, (threads, answers) = Path(arguments[0]), map(int, arguments[1:])
    try:
        found = [one for one in _answered(folder, threads, answers) if one]
    except RequestError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    if len(found) < answers:
        sys.stderr.write("an answer broke off\n")
        return 1
    told = Timed(
        statistics.median(one.decode_tokens_per_second or 0.0 for one in found),
        statistics.median(one.prefill_tokens_per_second for one in found),
        statistics.median(one.ttft_seconds for one in found),
        machine.most_resident_bytes(), answers, machine.hardware(), threads, machine.versions(),
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(told)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
