"""The teacher writes its own calibration text: no data set, and exactly the distribution it models.

Sampling at temperature 1 from the model itself; after LLM-QAT (Liu et al. 2023, arXiv:2305.17888).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress import storage
from compress.errors import CalibrationError, ModelError
from compress.results import Progress
from compress.surgery import load
from compress.surgery.decode import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compress.surgery.walk import Weights

log = logging.getLogger("compress")
ALGORITHM = 1  # raise it when the same seed gives another text
BATCH = 32
# First words of many kinds of text, so that what the teacher writes is not all alike.
OPENERS = (
    "The", "In the year", "According to", "She", "He said", "It was", "How to", "What is",
    "When the", "A study of", "After the war", "Once upon a time", "Chapter 1", "# Introduction",
    "def ", "Q:",
    "The following", "import ", "<html>", "To solve", "Let x be", "Scientists", "The city of", "My",
    "I have always", "Dear", "Ingredients:", "Step 1:", "The law", "The team", "The patient", "1.",
    "Born in", "Located in", "Music", "- ", "The company", "On Monday", "Researchers at", "You",
    "The river", "Why do", "There are", "Most people", "The history of", "Water", "For example,",
)  # fmt: skip
QUESTIONS = (
    "How do plants make their food?", "Write a short story about a lighthouse.", "Hello!",
    "Give me three tips for sleeping better.", "Summarize the causes of the First World War.",
    "Write a Python function that reverses a list.", "Who was Marie Curie?", "What is inflation?",
    "What is the difference between a virus and a bacterium?", "Why is the sea salty?",
    "A train goes 60 miles in 45 minutes. How fast is it?", "Plan a weekend in a small town.",
    "Explain recursion to a child.", "Write a polite email asking for a day off.",
    "Suggest a simple dinner with rice.", "List five words that rhyme with light.",
)  # fmt: skip


@dataclass(frozen=True)
class Author:
    """A teacher that can be asked for text; built whole only when something is to be written."""

    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # the teacher's: with the settings and the seed it decides the text
    cache: Path  # folder of the texts already written
    device: str = "cpu"
    watch: Callable[[Progress], None] | None = None

    def __call__(
        self,
        samples: int,
        seq_len: int,
        seed: int,
        *,
        seeding: str = "openers",
        temperature: float = 1.0,
        top_k: int = 0,
    ) -> Tensor:
        """Write windows of tokens, or read them back.

        Args:
            samples: windows wanted.
            seq_len: tokens in each.
            seed: decides every draw.
            seeding: what a document begins with: "openers", a few fixed words or, half of the
                time when there is a chat template, a question; "bos", the beginning-of-text token.
            temperature: divides the logits.
            top_k: draw among the k likeliest tokens only; 0 among all.

        Returns:
            [samples, seq_len] int64.

        Raises:
            CalibrationError: no such seeding, or a tokenizer without the token that it needs.
        """
        settings = (samples, seq_len, seed, seeding, temperature, top_k)
        path = self.cache / f"{self._key(settings)}.safetensors"
        if (found := _read(path, samples, seq_len)) is not None:
            return found
        with storage.locked(path.with_suffix(".lock")):  # another run may be at it
            if (found := _read(path, samples, seq_len)) is None:
                found = self._written(settings)
                storage.write_file(path, {"ids": found})
        return found

    def _written(self, settings: tuple[int, int, int, str, float, int]) -> Tensor:
        samples, seq_len, seed, seeding, temperature, top_k = settings
        openers = _openers(self.tokenizer, seeding)
        model = load.materialize(self.weights, torch.bfloat16).to(self.device)
        generator = torch.Generator().manual_seed(seed)
        batches = []
        for start in range(0, samples, BATCH):
            page = _Page(
                openers, self.tokenizer.eos_token_id, min(BATCH, samples - start), generator
            )
            decoder = Decoder(model, seq_len)
            for position in range(seq_len - 1):
                logits = decoder.step(page.last().to(self.device)).cpu()
                page.append(draw(logits, temperature, top_k, generator))
                self._tell(start * seq_len + len(page.rows) * (position + 2), samples * seq_len)
            batches.append(torch.tensor(page.rows))
        return torch.cat(batches)

    def _key(self, settings: tuple[object, ...]) -> str:
        machine = (self.device, torch.get_num_threads(), torch.__version__)
        key = repr((ALGORITHM, BATCH, self.fingerprint, settings, machine))
        return hashlib.sha256(key.encode()).hexdigest()

    def _tell(self, done: int, total: int) -> None:
        if self.watch:
            self.watch(Progress("calibrate", done, total, "token", "the teacher writes"))


def draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """Draw one token a row.

    Args:
        logits: [B, V] float32.
        temperature: divides them.
        top_k: draw among the k likeliest; 0 among all.
        generator: gives one number a row.

    Returns:
        [B] int64.
    """
    scores = logits / temperature
    if top_k:
        least = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    # Inverting the distribution takes one random number a row; torch.multinomial takes one a word.
    reached = scores.softmax(-1).cumsum(-1)
    level = torch.rand(len(scores), 1, generator=generator) * reached[:, -1:]
    return torch.searchsorted(reached, level, right=True).clamp(max=scores.shape[1] - 1)[:, 0]


class _Page:
    """Rows of tokens being written; a row whose document ends begins another."""

    def __init__(
        self, openers: Sequence[list[int]], end: int | None, rows: int, generator: torch.Generator
    ) -> None:
        self._openers, self._end, self._generator = openers, end, generator
        self._forced = [self._opener() for _ in range(rows)]
        self.rows = [[forced.pop(0)] for forced in self._forced]

    def last(self) -> Tensor:
        """[B] the newest token of each row."""
        return torch.tensor([row[-1] for row in self.rows])

    def append(self, drawn: Tensor) -> None:
        """Append to each row what is drawn, [B], unless its opener is still being spelled."""
        for row, forced, token in zip(self.rows, self._forced, drawn.tolist(), strict=True):
            if not forced and row[-1] == self._end:
                forced += self._opener()
            row.append(forced.pop(0) if forced else token)

    def _opener(self) -> list[int]:
        pick = torch.randint(len(self._openers), (1,), generator=self._generator)
        return list(self._openers[int(pick)])


def _openers(tokenizer: PreTrainedTokenizerBase, seeding: str) -> list[list[int]]:
    """Token ids that a document may begin with."""
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    if seeding == "bos":
        if not begin:
            raise CalibrationError(
                "seeding: bos: the teacher has no such token. Use seeding: openers."
            )
        return [begin]
    if seeding != "openers":
        raise CalibrationError(f"seeding: {seeding!r} is neither openers nor bos.")
    texts = [tokenizer(text)["input_ids"] for text in OPENERS]
    turns = [_turn(tokenizer, question) for question in QUESTIONS if tokenizer.chat_template]
    return texts + turns * (len(texts) // len(QUESTIONS))


def _turn(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """A question, and the beginning of the turn that answers it."""
    text = load.chat(tokenizer, [{"role": "user", "content": question}], answering=True)
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _read(path: Path, samples: int, seq_len: int) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        ids = storage.read_file(path, ["ids"])["ids"]
    except ModelError as error:
        log.warning("%s; the text is written again.", error)
        return None
    return ids.clone() if ids.shape == (samples, seq_len) else None
