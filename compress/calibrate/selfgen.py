"""The teacher writes its own text: no data set, and exactly the distribution it models.

Sampling from the model itself, from first words or from any token; after LLM-QAT (Liu et al. 2023,
arXiv:2305.17888), whose first token is drawn from the whole vocabulary. To prompts, with
reasons before answers: Hsieh et al. 2023 (Distilling Step-by-Step), arXiv:2305.02301.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress import machine, storage
from compress.calibrate import prompts
from compress.calibrate.pages import ANSWER, GIVEN, REASON, Page, Part, Row, Script, plain
from compress.errors import CalibrationError, ModelError
from compress.forwards import writing_rows
from compress.kernels.drawing import drawn
from compress.results import Progress
from compress.surgery import load
from compress.surgery.decode import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compress.surgery.walk import Weights

log = logging.getLogger("compress")
ALGORITHM = 3  # raise it when the same seed gives another text
_TRIED = 4  # documents for one that differs from all before it, beyond which writing ends
_PATIENCE = 128  # documents before that is asked
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
class Rationale:
    """The teacher reasons before it answers: after so many tokens it is asked for the answer."""

    cue: str  # what it is asked with
    most_tokens: int  # of the reasons
    answer_tokens: int  # of the answer, at most


@dataclass(frozen=True)
class Asked:
    """What the teacher is asked to write, and how it chooses its words."""

    seeding: str = "openers"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    prompts: str | tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()
    deduplicate: bool = False
    rationale: Rationale | None = None


@dataclass(frozen=True)
class Author:
    """A teacher that can be asked for text; built whole only when something is to be written."""

    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # the teacher's: with the settings and the seed it decides the text
    cache: Path  # folder of the texts already written
    device: str = "cpu"
    watch: Callable[[Progress], None] | None = None

    def __call__(self, samples: int, seq_len: int, seed: int, **options: Any) -> Tensor:
        """Write windows of tokens, or read them back.

        Args:
            samples: windows wanted.
            seq_len: tokens in each.
            seed: decides every draw.
            options: the fields of `Asked`. `seeding` says what a document begins with where there
                are no prompts: "openers", a few fixed words or, half of the time when there is a
                chat template, a question; "vocabulary", any of its tokens that are text; "bos",
                the beginning-of-text token. `deduplicate`
                leaves out a document that was written before, token by token.

        Returns:
            [samples, seq_len] int64; with a rationale [2, samples, seq_len]: the ids, and the part
            of its document that each belongs to (`pages.GIVEN`, REASON, ANSWER).

        Raises:
            CalibrationError: no such seeding, a tokenizer without the token that it needs, prompts
                that cannot be read or leave no room, or a teacher that repeats itself.
        """
        asked = Asked(**options)
        scripts = self._scripts(asked, seq_len)
        path = self.cache / f"{self._key((samples, seq_len, seed), asked, scripts)}.safetensors"
        shape = (2, samples, seq_len) if asked.rationale else (samples, seq_len)
        if (found := _read(path, shape)) is not None:
            return found
        with storage.locked(path.with_suffix(".lock")):  # another run may be at it
            if (found := _read(path, shape)) is None:
                found = self._written(scripts, asked, (samples, seq_len), seed)
                storage.write_file(path, {"ids": found})
        return found

    def _written(
        self, scripts: Sequence[Script], asked: Asked, size: tuple[int, int], seed: int
    ) -> Tensor:
        samples, seq_len = size
        model = load.materialize(self.weights, torch.bfloat16).to(self.device)
        generator = torch.Generator().manual_seed(seed)
        pages = self._pages(model, scripts, asked, (samples, seq_len), generator)
        gather = _without_twins if asked.deduplicate else _as_written
        ids, kinds = gather(pages, samples, seq_len)
        return torch.stack([ids, kinds]) if asked.rationale else ids

    def _pages(
        self, model: Any, scripts: Sequence[Script], asked: Asked, size: tuple[int, int],
        generator: torch.Generator,
    ) -> Iterator[Page]:  # fmt: skip
        """Page after page; the last of those that are needed, if nothing is left out, is short."""
        (samples, seq_len), written = size, 0
        most = writing_rows(self.weights.anatomy, seq_len)
        while True:
            rows = min(most, samples - written if written < samples else samples)
            page = Page(scripts, self.tokenizer.eos_token_id, rows, generator)
            decoder = Decoder(model, seq_len)
            for position in range(seq_len - 1):
                logits = decoder.step(page.last().to(self.device)).cpu()
                levels = torch.rand(rows, generator=generator)
                page.append(
                    drawn(
                        logits, levels, temperature=asked.temperature, top_k=asked.top_k,
                        top_p=asked.top_p,
                    )
                )  # fmt: skip
                done = written * seq_len + rows * (position + 2)
                self._tell(min(done, samples * seq_len), samples * seq_len)
            written += rows
            yield page

    def _scripts(self, asked: Asked, seq_len: int) -> list[Script]:
        """How documents may go."""
        openers = _openers(self.tokenizer, asked.seeding)
        if asked.prompts is not None:
            given = prompts.read(asked.prompts)
            openers = prompts.encode(self.tokenizer, given, asked.templates)
            longest = max(map(len, openers))
            if longest >= seq_len:
                raise CalibrationError(
                    f"prompts: one takes {longest} tokens, and a window holds {seq_len}. Ask for a "
                    "longer seq_len, or shorten it."
                )
        if asked.rationale is None:
            return [plain(opener) for opener in openers]
        told = asked.rationale
        cue = tuple(self.tokenizer(told.cue, add_special_tokens=False)["input_ids"])
        behind = (
            Part(REASON, most=told.most_tokens), Part(GIVEN, cue),
            Part(ANSWER, most=told.answer_tokens),
        )  # fmt: skip
        return [(Part(GIVEN, tuple(opener)), *behind) for opener in openers]

    def _key(self, size: tuple[int, int, int], asked: Asked, scripts: Sequence[Script]) -> str:
        """sha256 over all that decides the text; what a prompt says, not where it is written."""
        settings: tuple[object, ...] = (*size, asked.seeding, asked.temperature, asked.top_k)
        if asked != Asked(asked.seeding, asked.temperature, asked.top_k):
            settings += (asked.top_p, asked.deduplicate, scripts)
        here = machine.arithmetic(self.device, torch.float32)
        key = repr((ALGORITHM, self.fingerprint, settings, here))
        return hashlib.sha256(key.encode()).hexdigest()

    def _tell(self, done: int, total: int) -> None:
        if self.watch:
            self.watch(Progress("calibrate", done, total, "token", "the teacher writes"))


def _as_written(pages: Iterator[Page], samples: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Windows as rows were written: ids and parts, [samples, seq_len] both."""
    rows: list[Row] = []
    while len(rows) < samples:
        rows += next(pages).rows
    return torch.tensor([row.tokens for row in rows]), torch.tensor([row.kinds for row in rows])


def _without_twins(pages: Iterator[Page], samples: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """The same of documents that differ, one behind the other."""
    wanted, seen = samples * seq_len, set[tuple[int, ...]]()
    tokens, kinds, written = list[int](), list[int](), 0
    for page in pages:
        for document, parts in (one for row in page.rows for one in row.documents()):
            written += 1
            if (key := tuple(document)) not in seen:
                seen.add(key)
                tokens += document
                kinds += parts
        if len(tokens) >= wanted:
            found = (torch.tensor(one[:wanted]) for one in (tokens, kinds))
            ids, parts_of = (one.view(samples, seq_len) for one in found)
            return ids, parts_of
        if written > _TRIED * max(1, len(seen)) and written > _PATIENCE:
            break
    raise CalibrationError(
        f"deduplicate: of {written} documents that the teacher wrote {len(seen)} differ: "
        f"{len(tokens):,} of {wanted:,} tokens. Raise temperature, give more prompts, or ask for "
        "fewer samples."
    )


def _openers(tokenizer: PreTrainedTokenizerBase, seeding: str) -> list[list[int]]:
    """Token ids that a document may begin with."""
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    if seeding == "bos":
        if not begin:
            raise CalibrationError(
                "seeding: bos: the teacher has no such token. Use seeding: openers."
            )
        return [begin]
    if seeding == "vocabulary":
        return _words(tokenizer)
    if seeding != "openers":
        raise CalibrationError(f"seeding: {seeding!r} is none of openers, vocabulary, bos.")
    texts = [tokenizer(text)["input_ids"] for text in OPENERS]
    turns = [prompts.turn(tokenizer, question) for question in QUESTIONS if tokenizer.chat_template]
    return texts + turns * (len(texts) // len(QUESTIONS))


def _words(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Every token that is text by itself, behind what the tokenizer puts in front of a text."""
    front = tokenizer("")["input_ids"]
    ids = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    texts = tokenizer.batch_decode([[one] for one in ids])
    return [[*front, one] for one, text in zip(ids, texts, strict=True) if _is_text(text)]


def _is_text(text: str) -> bool:
    """Whether a token holds something to read, and no half of a character."""
    return bool(text.strip()) and "\ufffd" not in text


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        ids = storage.read_file(path, ["ids"])["ids"]
    except ModelError as error:
        log.warning("%s; the text is written again.", error)
        return None
    return ids.clone() if ids.shape == shape else None
