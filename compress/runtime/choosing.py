"""Logits of the wanted rows in, tokens of every request out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from compress.errors import RunError
from compress.runtime.grammar import Matcher
from compress.runtime.logprobs import logprob
from compress.runtime.request import Logprob
from compress.runtime.sampling import Sampling, Seen, adjusted, distribution, draw
from compress.runtime.speculative import NOTHING, Proposal, accept


@dataclass(frozen=True)
class Chosen:
    """What one request got in one step: one token, and one more for every proposal kept."""

    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()  # of each token, where they are asked for
    finish: Literal["stop", "error"] | None = None  # stop: the last token ends the answer
    error: str | None = None


class Chooser:
    """Chooses the tokens of one request: its own chance, what it has seen, its grammar.

    Every token takes one number from the request's own source, so that a seed gives the same text
    whatever else is in the batch and however often the request was preempted.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        *,
        ends: frozenset[int] = frozenset(),
        matcher: Matcher | None = None,
        logprobs: int | None = None,
    ) -> None:
        """Begin a request.

        Args:
            sampling: how to choose.
            prompt: its token ids.
            ends: tokens that end the answer.
            matcher: what the answer must follow.
            logprobs: alternatives to tell with each token; None: no log-probabilities at all.
        """
        self.sampling = sampling
        self._chance: random.Random = sampling.source()
        self._seen = Seen(prompt) if sampling.penalizes else None
        self._ends, self._matcher, self._logprobs = ends, matcher, logprobs

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token of the logits as they are."""
        changed = self.sampling.penalizes or self.sampling.logit_bias
        return self.sampling.greedy and not changed and self._matcher is None

    @property
    def only_likeliest(self) -> bool:
        """Whether that is all it asks of the logits."""
        return self.plain and self._logprobs is None

    def forced(self) -> tuple[int, ...]:
        """Tokens that come next whatever the logits say, as far as a grammar tells."""
        return () if self._matcher is None else self._matcher.forced()

    def choose(
        self, logits: Tensor, proposal: Proposal = NOTHING, likeliest: Sequence[int] = ()
    ) -> Chosen:
        """Choose the next token and, as long as it is the proposed one, the one after it.

        Args:
            logits: [k + 1, V] float32: behind the last token and behind each proposed one.
            proposal: k tokens.
            likeliest: argmax of each row.
        """
        tokens: list[int] = []
        told: list[Logprob] = []
        try:
            for row, proposed in enumerate([*proposal.tokens, None]):
                if self.plain and likeliest:
                    token = likeliest[row]
                else:
                    token = self._next(logits[row], proposal, row)
                tokens.append(token)
                if self._logprobs is not None:
                    told.append(logprob(logits[row], token, self._logprobs))
                if self._ended(token):
                    return Chosen(tuple(tokens), tuple(told), "stop")
                if token != proposed:
                    break
        except RunError as error:  # of this request alone; the others go on
            return Chosen(tuple(tokens), tuple(told), "error", str(error))
        return Chosen(tuple(tokens), tuple(told))

    def _next(self, logits: Tensor, proposal: Proposal, row: int) -> int:
        if self._matcher is not None:
            logits = self._matcher.allowed(logits)
        if self.sampling.greedy:
            return int(adjusted(logits, self.sampling, self._seen).argmax(-1))
        target = distribution(logits, self.sampling, self._seen)
        if proposal.probabilities is None or row == len(proposal.tokens):
            return draw(target, self._chance.random())
        return accept(target, proposal.probabilities[row], proposal.tokens[row], self._chance)

    def _ended(self, token: int) -> bool:
        """Take note of a token; whether the answer ends with it."""
        if self._seen is not None:
            self._seen.add(token)
        if token in self._ends:
            return True
        if self._matcher is None:
            return False
        self._matcher.follow(token)
        return self._matcher.complete


def choose_all(logits: Tensor, turns: Sequence[tuple[Chooser, Proposal]]) -> list[Chosen]:
    """Choose for every request of a step.

    Args:
        logits: [M, V] float32: k + 1 rows for each turn, one turn after the other. They leave the
            device where they are only if some turn needs more of them than the likeliest token.
        turns: who chooses, and what was proposed to it.

    Returns:
        One for each turn.
    """
    best: list[int] = []
    if any(chooser.plain for chooser, _ in turns):
        best = _likeliest(logits)
    if not all(chooser.only_likeliest for chooser, _ in turns):
        logits = logits.cpu()
    chosen, start = [], 0
    for chooser, proposal in turns:
        stop = start + len(proposal.tokens) + 1
        chosen.append(chooser.choose(logits[start:stop], proposal, best[start:stop]))
        start = stop
    return chosen


def _likeliest(logits: Tensor) -> list[int]:
    """Argmax of each row; on a CPU by numpy, in a tenth of the time that torch takes."""
    found = logits.numpy().argmax(-1) if logits.is_cpu else logits.argmax(-1)
    return [int(token) for token in found.tolist()]
