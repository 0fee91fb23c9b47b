"""Answers that follow a JSON schema: `llguidance` says which tokens may come next.

One matcher belongs to one request and follows its tokens one by one, proposed ones too when they
are verified, so that speculation needs nothing of its own here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.errors import RequestError, RunError, shown
from compress.runtime import schemas

if TYPE_CHECKING:
    import llguidance

ANY_OBJECT = '{"type": "object"}'  # what OpenAI's json_object asks for
_KEPT = 16  # schemas that were read


class Grammars:
    """Reads schemas for the tokenizer of one model. Any thread may ask."""

    def __init__(self, tokenizer_json: str, vocab_size: int, ends: Sequence[int]) -> None:
        """Nothing is imported and nothing built before the first schema.

        Args:
            tokenizer_json: the text of ``tokenizer.json``.
            vocab_size: rows of the head.
            ends: tokens that end an answer.
        """
        self._json, self._vocab_size, self._ends = tokenizer_json, vocab_size, list(ends)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._read: dict[str, llguidance.LLMatcher] = {}  # at their beginning; the latest is last
        self._lock = threading.Lock()

    def knows(self, schema: str) -> bool:
        """Whether `matcher` would neither check a schema nor read it anew."""
        return schema in self._read

    def matcher(self, schema: str) -> Matcher:
        """Begin to follow a JSON schema: in no time where it was lately begun, else in seconds.

        Raises:
            RequestError: it is none, or holds what cannot be followed, or reading it takes too
                long; llguidance is missing; the model has no token that ends an answer.
        """
        found = self._read.get(schema) or self._begun(schema)
        with self._lock:
            self._read.pop(schema, None)
            self._read[schema] = found  # as the last one
            while len(self._read) > _KEPT:
                del self._read[next(iter(self._read))]
            return Matcher(found.deep_copy())

    def _begun(self, schema: str) -> llguidance.LLMatcher:
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise RequestError(
                "grammar: a JSON schema is followed by llguidance, which is not installed. Run pip "
                "install llguidance, or leave the schema out."
            ) from error
        tokenizer = self._opened()
        try:
            schemas.check(schema)
        except ValueError as error:
            raise _refused(str(error)) from error
        matcher = LLMatcher(tokenizer, schemas.grammar(schema), log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return matcher

    def _opened(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            if not self._ends:
                raise RequestError(
                    "grammar: the model names no token that ends an answer (eos_token_id), so none "
                    "could end a complete one. Leave the schema out."
                )
            try:
                self._tokenizer = LLTokenizer(
                    self._json, n_vocab=self._vocab_size, eos_token=self._ends
                )
            except ValueError as error:
                raise RequestError(
                    f"grammar: llguidance cannot read this model's tokenizer ({error}). Leave the "
                    "schema out."
                ) from error
        return self._tokenizer


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        """Use `Grammars.matcher`."""
        self._matcher = matcher

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits [V] with -inf for every token that may not come next; the end counts as one.

        Raises:
            RunError: the grammar has grown past what llguidance follows.
        """
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._check()
        forbidden = allowed[: len(logits)] == 0
        return logits.masked_fill(forbidden.to(logits.device), -torch.inf)

    def follow(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            RunError: it may not come next.
        """
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> tuple[int, ...]:
        """The tokens that come next where there is no choice but of how a text is cut in tokens."""
        return tuple(self._matcher.compute_ff_tokens())

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RunError(
                f"grammar: the answer cannot go on ({_first_line(self._matcher.get_error())}). Use "
                "a simpler schema."
            )


def _refused(why: str) -> RequestError:
    return RequestError(
        f"grammar: not a JSON schema that can be followed ({_first_line(why)}). Give a smaller "
        "schema, or one with the keywords that llguidance knows."
    )


def _first_line(message: str) -> str:
    """What llguidance says first; the state of its parser follows."""
    return shown(message.partition("\n")[0])
