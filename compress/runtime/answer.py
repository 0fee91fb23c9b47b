"""One request on its way: what was said so far, and how long that took."""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass

from compress.runtime.request import FinishReason, Piece, Request, Timings
from compress.runtime.sampling import Chooser
from compress.runtime.scheduler import Job
from compress.runtime.stream import TextStream


@dataclass(eq=False)
class Answer:
    """A request on its way, beside what the scheduler knows of it: its job."""

    request: Request
    job: Job
    text: TextStream
    chooser: Chooser
    submitted: float
    started: float | None = None  # its first step
    ttft_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def new_tokens(self) -> int:
        """Tokens that were generated."""
        return len(self.job.tokens) - len(self.request.prompt)

    def spent(self, started: float, seconds: float) -> None:
        """Count a step that it took part in."""
        if self.started is None:
            self.started = started
        if self.new_tokens:
            self.decode_seconds += seconds
        else:
            self.ttft_seconds += seconds

    def timings(self) -> Timings:
        """How long it took."""
        queue = (time.perf_counter() if self.started is None else self.started) - self.submitted
        return Timings(
            len(self.request.prompt), self.new_tokens, self.job.cached or 0, queue,
            self.ttft_seconds, self.decode_seconds,
        )  # fmt: skip

    def take(self, chosen: Piece, stop_ids: Set[int]) -> Piece:
        """Go on with chosen tokens, up to the one that ends the answer, if one does.

        The tokens of the piece are those that were taken; `job` does not hold them yet.
        """
        taken, text = 0, ""
        reason: FinishReason | None = None
        for token in chosen.tokens:
            taken += 1
            if token in stop_ids and not self.request.ignore_eos:
                break  # the last one, and no text
            text += self.text.push(token)
            reason = self._ended(taken)
            if reason is not None:
                break
        # an error behind a token that ends the answer is of one that was only proposed
        if taken == len(chosen.tokens) and (reason is None or chosen.finish_reason == "stop"):
            reason = chosen.finish_reason or reason
        if reason is not None:
            text += self.text.flush()
        told, error = chosen.logprobs[:taken], chosen.error if reason == "error" else None
        return Piece(text, chosen.tokens[:taken], told, reason, error=error)

    def _ended(self, taken: int) -> FinishReason | None:
        if self.text.stopped:
            return "stop"
        return "length" if len(self.job.tokens) + taken >= self.job.limit else None
