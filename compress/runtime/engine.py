"""Requests in, pieces of answers out: open an artifact and have it answer.

One step of the engine computes tokens of every request that runs:

    propose ─▶ schedule ─▶ gather ─▶ forward ─▶ choose ─▶ advance ─▶ pieces
"""

from __future__ import annotations

import importlib.util
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch

from compress.artifact.layout import Artifact, open_artifact
from compress.errors import RequestError
from compress.machine import computing_with, find_device, give_back_memory
from compress.runtime.answer import Answer
from compress.runtime.batch import gather
from compress.runtime.draft import Draft, open_draft
from compress.runtime.grammar import Grammars
from compress.runtime.ledger import PAGE_TOKENS, Ledger
from compress.runtime.limits import Limits, limits
from compress.runtime.model import Model
from compress.runtime.request import Piece, Request, Sampling
from compress.runtime.sampling import Chooser, choose_all
from compress.runtime.scheduler import Job, Scheduler
from compress.runtime.speculative import Speculation
from compress.runtime.status import Description, Status
from compress.runtime.stream import TextStream
from compress.runtime.tokenizer import Prompt, Tokenizer, read_json

DEVICES = ("cpu", "cuda")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NO_CHAT = "This model has no chat template: a prompt is continued as it stands."


class Engine:
    """One artifact, answering many requests together. For one thread at a time."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        artifact: Artifact,
        limits: Limits,
        speculation: Speculation,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.stop_ids, self.max_tokens = _stop_ids(artifact), limits.context_tokens
        self._format, self._kind = str(artifact.format), artifact.anatomy.model_type
        self._pages = model.pages(limits.kv_tokens, limits.scales)
        self._ledger = Ledger(-(-limits.kv_tokens // PAGE_TOKENS))
        self._scheduler = Scheduler(
            self._ledger, limits.step_tokens, limits.max_running, limits.beside_tokens
        )
        self._speculation = speculation
        self._answers: dict[int, Answer] = {}
        self._tickets = count(1)
        self._inboxes: dict[int, deque[Piece]] = {}  # of tickets that `answer` has drawn
        self._ready: list[tuple[int, Piece]] = []  # of others, while `answer` made the steps

    @classmethod
    def open(  # noqa: PLR0913 (what a user may turn, by its usual names)
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        dtype: str = "bfloat16",
        device: str = "cpu",
        context_tokens: int | None = None,
        kv_tokens: int | None = None,
        kv_cache: Literal["auto", "int8"] = "auto",
        step_tokens: int = 512,
        beside_tokens: int = 24,
        max_running: int = 32,
        speculate: bool = True,
        draft: Path | str | None = None,
    ) -> Engine:
        """Open an artifact of any format, or a dense model folder.

        Args:
            folder: where it lies; nothing is written there.
            threads: compute threads; None leaves torch's own setting.
            dtype: bfloat16, with packed products; or float32, every weight expanded, for exactness.
            device: where weights, keys and values are: cpu or cuda.
            context_tokens: of one request, prompt and answer; None: all that model and pool allow.
            kv_tokens: of all requests, whose keys and values there is room for; None: a full
                context or 32,768, within a quarter of the memory.
            kv_cache: auto: keys and values as the artifact says; int8: with a scale for each head
                of each token, where it says nothing.
            step_tokens: computed in one step, of all requests together.
            beside_tokens: of prompts, in steps that give others tokens of their answers: fewer
                make those come more evenly, and a new request wait longer.
            max_running: requests that run at once; others wait.
            speculate: verify proposed tokens where that pays; but for near-ties in bfloat16 the
                text stays what it would be.
            draft: an artifact that proposes them; None looks them up in a request's own text.

        Raises:
            ArtifactError, ModelError: the folder is broken or holds a model that is not run here.
            RequestError: a setting out of its range, no such device, or a draft with other tokens.
        """
        if dtype not in DTYPES:
            raise RequestError(f"dtype: {dtype!r} is not run here. Use {' or '.join(DTYPES)}.")
        check_device(device)
        if threads is not None:
            if threads < 1:
                raise RequestError(f"threads: {threads} must be 1 or more.")
            torch.set_num_threads(threads)
        if draft is not None and not speculate:
            raise RequestError("draft: given, but speculate is off. Leave one of them out.")
        stored = open_artifact(Path(folder))
        model = Model(stored, DTYPES[dtype], device)
        give_back_memory()
        told = limits(
            model, context_tokens=context_tokens, kv_tokens=kv_tokens, kv_cache=kv_cache,
            step_tokens=step_tokens, beside_tokens=beside_tokens, max_running=max_running,
        )  # fmt: skip
        tokenizer = Tokenizer.open(stored.folder)
        source: Draft | Literal["lookup"] | None = "lookup" if speculate else None
        if draft is not None:
            room = {"kv_tokens": told.kv_tokens, "step_tokens": step_tokens}
            source = open_draft(Path(draft), model, tokenizer, **room)
        return cls(model, tokenizer, stored, told, Speculation(source))

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Answer one prompt: texts of the pieces join to the answer.

        The request is checked now; the engine steps as pieces are taken. Others that were submitted
        go on meanwhile; their pieces come with the next `step`.

        Args:
            prompt: a text (one user message where there is a chat template, else continued as it
                stands), a list of messages (role and content), or token ids, used as they are.
            max_new_tokens: at most so many; a full context ends earlier, also as "length".
            stop: texts that end the answer and are left out of it.
            **sampling: temperature, top_k, seed and all else that `Sampling` has, by name.

        Raises:
            RequestError: the prompt is empty, too long or not for this model, or a setting is out
                of range.
        """
        if isinstance(stop, str):
            raise RequestError(f"stop: {stop!r} must be a list of texts.")
        ids = tuple(self.encode(prompt))
        return self.answer(Request(ids, Sampling(**sampling), max_new_tokens, tuple(stop)))

    def answer(self, request: Request) -> Iterator[Piece]:
        """Answer one request: the engine steps as pieces are taken; refused with the first one."""
        ticket = self.submit(request)
        inbox = self._inboxes[ticket] = deque()
        try:
            while ticket in self._answers or inbox:
                while not inbox:
                    self._ready += self._advance()
                yield inbox.popleft()
        finally:  # whoever takes no more pieces wants no more work
            del self._inboxes[ticket]
            self.cancel(ticket)

    def submit(self, request: Request) -> int:
        """Let a request wait for its turn; pieces of its answer carry the ticket that is returned.

        Raises:
            RequestError: its prompt is too long or not for this model, or so is its sampling; its
                schema cannot be followed.
        """
        self._check(request.prompt)
        request.sampling.check(self.model.vocab_size)
        ticket, prompt = next(self._tickets), list(request.prompt)
        room = self.max_tokens + 1  # the last new token is never read
        job = Job(ticket, prompt, min(len(prompt) + request.max_new_tokens, room), request.salt)
        text = TextStream(self.tokenizer.decode, prompt, request.stop)
        ends = frozenset() if request.ignore_eos else self.stop_ids
        matcher = None if request.grammar is None else self.grammars.matcher(request.grammar)
        chooser = Chooser(request, ends, matcher)
        self._answers[ticket] = Answer(request, job, text, chooser, time.perf_counter())
        self._scheduler.waiting.append(job)
        return ticket

    def step(self) -> list[tuple[int, Piece]]:
        """Compute one step; a piece for each request that got a token, with its ticket."""
        ready, self._ready = self._ready, []
        return ready + self._advance()

    def cancel(self, ticket: int) -> None:
        """Stop working for a request; its pages are free, and no piece of it comes any more."""
        if ticket in self._answers:
            self._forget(ticket)
        self._ready = [one for one in self._ready if one[0] != ticket]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing to hand out."""
        return not self._answers and not self._ready

    def status(self) -> Status:
        """What the engine is doing."""
        scheduler, ledger, speculation = self._scheduler, self._ledger, self._speculation
        return Status(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages=ledger.pages,
            used_pages=ledger.pages - ledger.available,
            prefix_queried_tokens=scheduler.queried_tokens,
            prefix_hit_tokens=scheduler.hit_tokens,
            preemptions=scheduler.preemptions,
            computed_tokens=scheduler.computed_tokens,
            drafts=speculation.drafts,
            draft_tokens=speculation.proposed,
            kept_tokens=speculation.kept,
            kept_at=tuple(speculation.kept_at),
        )

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, as `generate` reads it; RequestError where it does not."""
        ids = self.tokenizer.ids(prompt)
        self._check(ids)
        return ids

    def describe(self) -> Description:
        """What runs here, and which path each linear takes."""
        model, pool_tokens = self.model, self._ledger.pages * PAGE_TOKENS
        resident_bytes = sum(one.weight.nbytes for one in model.linears.values())
        looked_up = 0 if model.embedding is model.head else model.embedding.weight.nbytes
        return Description(
            model_type=self._kind,
            format=self._format,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device,
            threads=model.threads,
            max_tokens=self.max_tokens,
            pool_tokens=pool_tokens,
            resident_bytes=resident_bytes,
            read_bytes=resident_bytes - looked_up,  # a row of it is next to nothing
            kv_bytes=self._pages.nbytes / pool_tokens,
            weights=model.weights,
            paths={name: one.path for name, one in model.linears.items()},
            notes=() if self.tokenizer.has_chat else (NO_CHAT,),
        )

    def _check(self, ids: Sequence[int]) -> None:
        vocabulary = self.model.vocab_size
        if not ids:
            raise RequestError("prompt: empty. Give at least one token.")
        if len(ids) > self.max_tokens:
            raise RequestError(
                f"prompt: {len(ids):,} tokens, at most {self.max_tokens:,} are read here "
                "(max_position_embeddings, or what the engine was opened with). Shorten it."
            )
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise RequestError(
                f"prompt: token ids from {min(ids)} to {max(ids)}; the vocabulary is 0 to "
                f"{vocabulary - 1}."
            )

    def _advance(self) -> list[tuple[int, Piece]]:
        """One step; the pieces that nobody has an inbox for."""
        with computing_with(1):  # but for the model, what is computed is too little to share
            pieces = self._stepped()
        for ticket, piece in pieces:
            if ticket in self._inboxes:
                self._inboxes[ticket].append(piece)
        return [one for one in pieces if one[0] not in self._inboxes]

    def _stepped(self) -> list[tuple[int, Piece]]:
        started, running = time.perf_counter(), self._scheduler.running
        self._speculation.propose([(job, self._answers[job.ticket].chooser) for job in running])
        plan = self._scheduler.schedule()
        if not plan:
            return []
        self._pages.copy(self._ledger.copies)
        logits = self.model.next_logits(gather([span for _, span in plan]), self._pages)
        asked = [job for job, span in plan if span.wanted]
        turns = [(self._answers[job.ticket].chooser, job.proposal) for job in asked]
        found = iter(choose_all(logits, turns))
        chosen = [next(found) if span.wanted else Piece("") for _, span in plan]
        self._speculation.learn(plan, [one.tokens for one in chosen])
        seconds, pieces = time.perf_counter() - started, []
        for (job, span), one in zip(plan, chosen, strict=True):
            answer = self._answers[job.ticket]
            answer.spent(started, seconds)
            piece = answer.take(one, self.stop_ids)
            self._scheduler.advance(job, span, piece.tokens)
            if piece.finish_reason is not None:
                self._forget(job.ticket)
                piece = replace(piece, timings=answer.timings())
            if piece.tokens or piece.finish_reason:
                pieces.append((job.ticket, piece))
        return pieces

    def _forget(self, ticket: int) -> None:
        self._scheduler.remove(self._answers.pop(ticket).job)
        self._speculation.forget(ticket)

    @cached_property
    def grammars(self) -> Grammars:
        """What schemas are read by, for any thread: one that it knows takes `submit` no time."""
        return Grammars(self.tokenizer.to_json(), self.model.vocab_size, sorted(self.stop_ids))


def check_device(device: str) -> None:
    """Raise RequestError where weights cannot be there: no such device, or no triton."""
    if device not in DEVICES:
        raise RequestError(f"device: {device!r} is not computed on. Use {' or '.join(DEVICES)}.")
    if device == "cuda" and find_device(device) and not importlib.util.find_spec("triton"):
        raise RequestError(
            "device: cuda multiplies by kernels of triton, which is not installed. Run pip install "
            "'compress-llm[cuda]', or use cpu."
        )


def collect(pieces: Iterable[Piece]) -> Piece:
    """The whole answer as one piece."""
    every = list(pieces)
    return replace(
        every[-1],
        text="".join(piece.text for piece in every),
        tokens=tuple(token for piece in every for token in piece.tokens),
        logprobs=tuple(one for piece in every for one in piece.logprobs),
    )


def _stop_ids(artifact: Artifact) -> frozenset[int]:
    """Tokens that end an answer: what generation_config.json says, else config.json."""
    told = artifact.config | read_json(artifact.folder / "generation_config.json")
    found = told.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return frozenset(int(one) for one in ids if one is not None)
