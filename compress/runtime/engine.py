"""Prompt in, pieces of text out: open an artifact and generate from it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from compress.artifact.layout import open_artifact
from compress.errors import RequestError
from compress.runtime.model import Model, Stored, resident_bytes
from compress.runtime.sampling import Sampling, choose
from compress.runtime.stream import TextStream
from compress.runtime.tokenizer import Message, Tokenizer, read_json

Prompt = str | Sequence[Message] | Sequence[int]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NO_CHAT = "This model has no chat template: a prompt is continued as it stands."


@dataclass(frozen=True)
class Timings:
    """How long one generation took; times inside the model and the sampler only."""

    prompt_tokens: int
    new_tokens: int
    ttft_seconds: float  # from the prompt's first pass to the first token
    prefill_tokens_per_second: float
    decode_tokens_per_second: (
        float | None
    )  # over all tokens but the first; None when there is no other


@dataclass(frozen=True)
class Piece:
    """A piece of text as it comes; the last, often empty, says why and how fast it ended."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class Description:
    """What an engine runs and how."""

    model_type: str
    format: str
    dtype: str
    threads: int
    max_tokens: int
    resident_bytes: int  # weights in memory
    paths: Mapping[str, str]  # linear → the path it takes, see `compress.runtime.linear`
    notes: tuple[str, ...]  # what a user should know before prompting


@dataclass
class _Clock:
    steps: list[float] = field(default_factory=list)

    def timings(self, prompt_tokens: int) -> Timings:
        first, rest = self.steps[0], self.steps[1:]
        decode = len(rest) / sum(rest) if rest else None
        return Timings(prompt_tokens, len(self.steps), first, prompt_tokens / first, decode)


class Engine:
    """One artifact, ready to answer one prompt at a time."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, stop_ids: frozenset[int], stored: str, kind: str
    ) -> None:
        """Use `Engine.open`."""
        self.model, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids
        self._format, self._kind = stored, kind

    @classmethod
    def open(
        cls, folder: Path | str, *, threads: int | None = None, dtype: str = "bfloat16"
    ) -> Engine:
        """Open an artifact (packed or compressed-tensors) or a dense model folder.

        Args:
            folder: where it lies; nothing is written there.
            threads: compute threads; None leaves torch's own setting.
            dtype: bfloat16, with packed products; or float32, every weight expanded, for exactness.

        Raises:
            ArtifactError, ModelError: the folder is broken or holds a model that is not run here.
            RequestError: an unknown dtype, or fewer than one thread.
        """
        if dtype not in DTYPES:
            raise RequestError(f"dtype: {dtype!r} is not run here. Use {' or '.join(DTYPES)}.")
        if threads is not None:
            if threads < 1:
                raise RequestError(f"threads: {threads} must be 1 or more.")
            torch.set_num_threads(threads)
        folder = Path(folder)
        stored = open_artifact(folder)
        model = Model(stored, DTYPES[dtype])
        stop_ids = _stop_ids(stored, read_json(folder / "generation_config.json"))
        return cls(
            model, Tokenizer.open(folder), stop_ids, str(stored.format), stored.anatomy.model_type
        )

    def generate(  # noqa: PLR0913 (what a user may turn, by its usual names)
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Piece]:
        """Generate from a prompt. The request is checked now; the model runs as pieces are taken.

        Args:
            prompt: a text (one user message where there is a chat template, else continued as it
                stands), a list of messages (role and content), or token ids, used as they are.
            max_new_tokens: at most so many; a full context ends earlier, also as "length".
            temperature: divides the logits; 0 is greedy.
            top_k: draw from the k likeliest tokens only.
            top_p: draw from the fewest tokens that hold this probability.
            min_p: draw from tokens this probable relative to the likeliest.
            repetition_penalty: above 1 makes tokens already seen less likely.
            seed: fixes the draws; None draws anew each time.
            stop: texts that end the answer and are left out of it.

        Returns:
            Pieces whose texts join to the answer.

        Raises:
            RequestError: the prompt is empty, too long or not for this model, or a setting is out
                of range.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens: {max_new_tokens} must be 1 or more.")
        if isinstance(stop, str) or not all(stop):
            raise RequestError(f"stop: {stop!r} must be a list of texts, none of them empty.")
        ids = self.encode(prompt)
        room = self.model.settings.max_tokens - len(ids) + 1  # the last new token is never read
        return self._pieces(ids, min(max_new_tokens, room), sampling, stop)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, as `generate` reads it.

        Raises:
            RequestError: it is empty, too long, or holds what this model does not know.
        """
        ids = self._ids(prompt)
        limit, vocabulary = self.model.settings.max_tokens, self.model.vocab_size
        if not ids:
            raise RequestError("prompt: empty. Give at least one token.")
        if len(ids) > limit:
            raise RequestError(
                f"prompt: {len(ids):,} tokens, the model reads at most {limit:,} "
                "(max_position_embeddings). Shorten it."
            )
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise RequestError(
                f"prompt: token ids from {min(ids)} to {max(ids)}; the vocabulary is 0 to "
                f"{vocabulary - 1}."
            )
        return ids

    def describe(self) -> Description:
        """What runs here, and which path each linear takes."""
        return Description(
            model_type=self._kind,
            format=self._format,
            dtype=str(self.model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            max_tokens=self.model.settings.max_tokens,
            resident_bytes=resident_bytes(self.model),
            paths={name: one.path for name, one in self.model.linears()},
            notes=() if self.tokenizer.has_chat else (NO_CHAT,),
        )

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not self.tokenizer.has_chat:
                return self.tokenizer.encode(prompt)
            prompt = [{"role": "user", "content": prompt}]
        ids = [item for item in prompt if isinstance(item, int)]
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if len(ids) == len(prompt):
            return ids
        if len(messages) < len(prompt):
            raise RequestError(
                "prompt: give a text, a list of messages or a list of token ids, not a mixture."
            )
        return self.tokenizer.encode(
            self.tokenizer.chat(messages), special=False
        )  # the template has written them

    def _pieces(
        self, ids: list[int], limit: int, sampling: Sampling, stop: Sequence[str]
    ) -> Iterator[Piece]:
        cache, generator = self.model.cache(), sampling.generator()
        text = TextStream(self.tokenizer.decode, ids, stop)
        clock, seen, unread = _Clock(), list(ids), ids
        reason: Literal["stop", "length"] = "length"
        for _ in range(limit):
            started = time.perf_counter()
            logits = self.model.next_logits(torch.tensor([unread]), cache)[0]
            token = int(choose(logits, sampling, generator=generator, seen=torch.tensor(seen)))
            clock.steps.append(time.perf_counter() - started)
            if token in self.stop_ids:
                reason = "stop"
                break
            if piece := text.push(token):
                yield Piece(piece)
            if text.stopped:
                reason = "stop"
                break
            seen.append(token)
            unread = [token]
        yield Piece(text.flush(), reason, clock.timings(len(ids)))


def collect(pieces: Iterable[Piece]) -> Piece:
    """The whole answer as one piece."""
    every = list(pieces)
    return Piece("".join(piece.text for piece in every), every[-1].finish_reason, every[-1].timings)


def _stop_ids(stored: Stored, generation: Mapping[str, Any]) -> frozenset[int]:
    """Tokens that end an answer: what generation_config.json says, else config.json."""
    found = generation.get("eos_token_id", stored.config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    return frozenset(int(one) for one in ids if one is not None)
