"""Logits of the wanted rows in, tokens of every request out.

    logits ─ grammar ─ logit_bias ─ repetition ─ frequency, presence ─ temperature ─ top_k ─ top_p ─
    min_p ─▶ probabilities ─ one number ─▶ token

Rows are taken one by one: on a CPU a batch of rows of a whole vocabulary costs more, not less.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.errors import RunError
from compress.runtime.grammar import Matcher
from compress.runtime.request import FinishReason, Logprob, Piece, Request, Sampling
from compress.runtime.scheduler import NOTHING, Proposal

_LIKELY = 2.0**-10  # share of all from which a token races by itself: at most a thousand do
_ALL_OTHERS = np.array([-1])


def choose_all(logits: Tensor, turns: Sequence[tuple[Chooser, Proposal]]) -> list[Piece]:
    """Choose for every request of a step: who chooses, and what was proposed to it.

    Logits [M, V] float32 have k + 1 rows for each turn, one turn after the other. They leave the
    device where they are only if some turn needs more of them than the likeliest token.
    """
    best: list[int] = []
    if any(chooser.plain for chooser, _ in turns):
        # by numpy in a tenth of the time that torch takes on a CPU
        best = (logits.numpy().argmax(-1) if logits.is_cpu else logits.argmax(-1)).tolist()
    if not all(chooser.only_likeliest for chooser, _ in turns):
        logits = logits.cpu()
    rows = logits.split([len(proposal.tokens) + 1 for _, proposal in turns])
    likeliest = iter(best)
    return [
        chooser.choose(own, proposal, tuple(islice(likeliest, len(own))))
        for (chooser, proposal), own in zip(turns, rows, strict=True)
    ]


class Chooser:
    """Chooses the tokens of one request: its own chance, what it has seen, its grammar.

    Every token takes one number from the request's own source, so that a seed gives the same text
    whatever else is in the batch and however often the request was preempted.
    """

    def __init__(
        self, request: Request, ends: frozenset[int] = frozenset(), matcher: Matcher | None = None
    ) -> None:
        """Begin a request: `ends` are tokens that end its answer, which follows `matcher`."""
        self.sampling = sampling = request.sampling
        self._chance = random.Random(sampling.seed)  # the same numbers on every machine
        self._seen = Seen(request.prompt) if sampling.penalizes else None
        self._ends, self._matcher, self._logprobs = ends, matcher, request.logprobs
        changed = sampling.penalizes or sampling.logit_bias or matcher is not None
        # It takes the likeliest token of the logits as they are, and asks nothing else of them.
        self.plain = sampling.greedy and not changed
        self.only_likeliest = self.plain and request.logprobs is None

    def forced(self) -> tuple[int, ...]:
        """Tokens that come next whatever the logits say, as far as a grammar tells."""
        return () if self._matcher is None else self._matcher.forced()

    def choose(
        self, logits: Tensor, proposal: Proposal = NOTHING, likeliest: Sequence[int] = ()
    ) -> Piece:
        """Choose the next token and, as long as it is the proposed one, the one after it.

        Logits [k + 1, V] float32 are those behind the last token and behind each of k proposed
        ones, `likeliest` the argmax of each row. The piece has no text yet.
        """
        tokens: list[int] = []
        told: list[Logprob] = []
        finish: FinishReason | None = None
        why: str | None = None
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
                    finish = "stop"
                if finish or token != proposed:
                    break
        except RunError as error:  # of this request alone; the others go on
            finish, why = "error", str(error)
        return Piece("", tuple(tokens), tuple(told), finish, error=why)

    def _next(self, logits: Tensor, proposal: Proposal, row: int) -> int:
        if self._matcher is not None:
            logits = self._matcher.allowed(logits)
        if self.sampling.greedy:
            return int(adjusted(logits, self.sampling, self._seen).argmax(-1))
        target = distribution(logits, self.sampling, self._seen)
        if proposal.probabilities is None or row == len(proposal.tokens):
            return draw(target, self._chance)
        return accept(target, proposal.probabilities[row], proposal.tokens[row], self._chance)

    def _ended(self, token: int) -> bool:
        """Take note of a token; whether the answer ends with it."""
        if self._seen is not None:
            self._seen.times[token] += 1
        if self._matcher is None or token in self._ends:
            return token in self._ends
        self._matcher.follow(token)
        return self._matcher.complete


def logprob(logits: Tensor, token: int, count: int) -> Logprob:
    """How probable the model held a token, and its `count` likeliest ones, likeliest first.

    OpenAI's and vLLM's convention: of the softmax of logits [V] as the model gave them, before
    temperature, penalties, bias, filters and grammar. They describe the model, not the draw.
    """
    total = logits.logsumexp(-1)
    values, tokens = logits.topk(min(count, len(logits)))
    top = zip(tokens.tolist(), (values - total).tolist(), strict=True)
    return Logprob(token, float(logits[token] - total), tuple(top))


class Seen:
    """The tokens of one request as penalties count them."""

    def __init__(self, prompt: Sequence[int], generated: Sequence[int] = ()) -> None:
        self.prompt = torch.tensor(sorted(set(prompt)), dtype=torch.int64)
        self.times = Counter(generated)


def distribution(logits: Tensor, sampling: Sampling, seen: Seen | None = None) -> Tensor:
    """How probable each token is as the next one, [V] float32; speculation asks here too.

    Logits [V] are float32, on the CPU, and never written. Only penalties need `seen`. Greedy is one
    on the likeliest token.
    """
    logits = adjusted(logits, sampling, seen)
    if sampling.greedy:
        return torch.zeros_like(logits).index_fill_(-1, logits.argmax(-1), 1.0)
    kept = (logits - logits.amax()) / sampling.temperature  # at most 0: cannot overflow
    if sampling.top_k is not None:
        kept, tokens = kept.topk(min(sampling.top_k, len(kept)))
    if sampling.top_p is not None:
        kept = keep_top_p(kept, sampling.top_p)
    if sampling.min_p is not None:
        kept = keep_min_p(kept, sampling.min_p)
    shares = kept.softmax(-1)
    if sampling.top_k is None:
        return shares
    return torch.zeros_like(logits).scatter(-1, tokens, shares)


def adjusted(logits: Tensor, sampling: Sampling, seen: Seen | None = None) -> Tensor:
    """Logits [V] with what changes even the likeliest token: bias, then penalties."""
    if sampling.logit_bias:
        biases = torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype)
        logits = logits.index_add(-1, torch.tensor(list(sampling.logit_bias)), biases)
    if seen is None or not sampling.penalizes:
        return logits
    generated = torch.tensor(list(seen.times), dtype=torch.int64)
    if sampling.repetition_penalty != 1:
        both = torch.cat([seen.prompt, generated])
        logits = penalize_repetition(logits, both, sampling.repetition_penalty)
    times = torch.tensor(list(seen.times.values()), dtype=logits.dtype)
    taken = sampling.frequency_penalty * times + sampling.presence_penalty
    return logits.index_add(-1, generated, -taken)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make seen tokens less likely: logits divided by `penalty`, negative ones multiplied."""
    old = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(old < 0, old * penalty, old / penalty))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach p; the others become -inf.

    A token exactly as likely as the last one that is kept is kept too.
    """
    if p == 1:
        return logits
    rising = torch.from_numpy(np.sort(logits.numpy()))  # in an eightieth of torch's time
    held = rising.softmax(-1).cumsum(-1, dtype=torch.float64)  # by a token and all less likely ones
    dropped = (held <= 1 - p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(logits < rising.gather(-1, dropped), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens less probable than p times the likeliest become -inf."""
    if p == 0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -torch.inf)


def draw(probabilities: Tensor, chance: random.Random) -> int:
    """A token as often as its share of probabilities [V] says, by one number of `chance`.

    Tokens race: each arrives after a time drawn from the exponential distribution of its share, and
    the first is taken. Its time follows from the number and the token alone. So where sums of
    another order change the last bits of shares, the token stays unless two came in within those
    bits, or one crossed the line of the likely; a number held against sums of shares would move
    with every share. Unlikely tokens run as one, and among themselves only where that is first.

    Raises RunError where they are not numbers, because the logits were not.
    """
    shares, key = probabilities.numpy(), chance.getrandbits(64)
    total = float(shares.sum(dtype=np.float64))
    if not total > 0:
        raise RunError("sampling: the logits are not numbers. Open the model in float32.")
    alone = shares >= _LIKELY * total
    likely = np.flatnonzero(alone)
    others = total - float(shares[likely].sum(dtype=np.float64))
    first, arrived = _first(key, likely, shares)
    if len(likely) and not _times(key, _ALL_OTHERS)[0] < arrived * others:
        return first
    unlikely = np.flatnonzero((shares > 0) & ~alone)
    return _first(key, unlikely, shares)[0] if len(unlikely) else first


def _first(key: int, tokens: NDArray[np.int64], shares: NDArray[Any]) -> tuple[int, float]:
    """Which of some tokens arrives first, and when; of none nobody, never."""
    if not len(tokens):
        return -1, math.inf
    times = _times(key, tokens) / shares[tokens]
    place = int(times.argmin())
    return int(tokens[place]), float(times[place])


def _times(key: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each token an exponentially distributed number: SplitMix64 (Steele et al. 2014)."""
    z = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    times: NDArray[np.float64] = -np.log1p(-((z >> np.uint64(11)) * 2.0**-53))
    return times


def accept(target: Tensor, draft: Tensor, token: int, chance: random.Random) -> int:
    """Keep `token`, drawn from `draft` [V], or draw another, so that it follows `target` [V]."""
    if chance.random() * float(draft[token]) < float(target[token]):
        return token
    rest = (target - draft).clamp(min=0)
    # Nothing is left when both are equal up to rounding.
    return draw(rest if float(rest.sum()) > 0 else target, chance)
