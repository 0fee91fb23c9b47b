"""What the teacher is asked to write: prompts and templates of a recipe, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.calibrate import documents
from compress.errors import CalibrationError, shown
from compress.surgery import load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOLE = "{prompt}"


def read(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """Prompts, as listed, or of a file.

    Args:
        prompts: the prompts; or a path: of a .txt with one in each line, or of a .jsonl with one
            in the field "prompt" of each record.

    Raises:
        CalibrationError: the file cannot be read, or holds none.
    """
    if not isinstance(prompts, str):
        return tuple(prompts)
    path = Path(prompts)
    if path.suffix.lower() == ".jsonl":
        lines = _of_jsonl(path)
    else:
        lines = [line for text in documents.from_text(path) for line in text.text.split("\n")]
    found = tuple(line for line in lines if line.strip())
    if not found:
        raise CalibrationError(f"{path}: holds no prompt. Write one in each line.")
    return found


def _of_jsonl(path: Path) -> list[str]:
    found = []
    for number, text in enumerate("".join(x.text for x in documents.from_text(path)).split("\n")):
        if not text.strip():
            continue
        record = _record(text)
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise CalibrationError(
                f'{path}:{number + 1}: holds no "prompt" that is text (found {shown(text)}). Each '
                'line is one record, as in {"prompt": "…"}.'
            )
        found.append(record["prompt"])
    return found


def _record(text: str) -> Any:
    try:
        return storage.parse_json(text)
    except ValueError:
        return None


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], templates: Sequence[str]
) -> list[list[int]]:
    """Token ids with which documents begin: every prompt in every template.

    Args:
        tokenizer: the teacher's.
        prompts: what is asked.
        templates: texts with a hole for the prompt; without any, a prompt is the first turn of a
            conversation where the tokenizer has a chat template, and else stands as it is.
    """
    if not templates and tokenizer.chat_template:
        return [turn(tokenizer, prompt) for prompt in prompts]
    filled = (text.replace(HOLE, prompt) for prompt in prompts for text in templates or (HOLE,))
    return [[int(token) for token in tokenizer(text)["input_ids"]] for text in filled]


def turn(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """A question, and the beginning of the turn that answers it."""
    text = load.chat(tokenizer, [{"role": "user", "content": question}], answering=True)
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
