"""Where text lies: a text file, a file of JSON lines, a data set of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.calibrate.tokens import Document
from compress.errors import CalibrationError, shown
from compress.surgery import load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TEXT_BYTES = 256 * 1024**2
MAX_LINE_CHARACTERS = 16 * 1024**2


def from_text(path: Path) -> Iterator[Document]:
    """A text file, as one document.

    Raises:
        CalibrationError: it cannot be read, is not UTF-8, holds nothing, or is too large to be
            held.
    """
    try:
        if (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise CalibrationError(
                f"{path}: {size:,} bytes; {MAX_TEXT_BYTES:,} are read at most, for a text is held "
                "whole. Cut it, or write it as .jsonl, of which only what is needed is read."
            )
        with path.open("rb") as file:  # never past the bound, whatever its size claims to be
            text = str(file.read(MAX_TEXT_BYTES), "utf-8-sig")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path}: byte {error.object[error.start]:#04x} at {error.start:,} is not UTF-8. "
            "Save it as UTF-8 text."
        ) from error
    if not text.strip():
        raise CalibrationError(f"{path}: holds no text.")
    yield Document(text.replace("\r\n", "\n").replace("\r", "\n"))


def from_jsonl(
    path: Path, field: str | None, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Document]:
    """A file of JSON lines, a document each; empty lines are skipped.

    Args:
        path: the file.
        field: what holds the text or the messages; "messages", else "text", by default.
        tokenizer: renders conversations.

    Raises:
        CalibrationError: a line, named by its number, is not a record of that kind.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = iter(lambda: file.readline(MAX_LINE_CHARACTERS + 1), "")
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                if len(line) > MAX_LINE_CHARACTERS:
                    raise CalibrationError(
                        f"{where}: longer than {MAX_LINE_CHARACTERS:,} characters. Give each "
                        "document a line of its own."
                    )
                if line.strip():
                    yield _document(_parse(line, where), field, tokenizer, where)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error


def from_hub(
    dataset: str,
    config: str | None,
    split: str,
    revision: str | None,
) -> tuple[Iterator[dict[str, Any]], str | None]:
    """Records of a data set of the hub, streamed: only what is read is downloaded.

    Returns:
        The records, and the commit that `revision` was.

    Raises:
        CalibrationError: datasets is not installed, or the hub does not give the data set.
    """
    try:
        from datasets import load_dataset_builder
    except ImportError as error:
        raise CalibrationError(
            f"{dataset}: reading a hub data set needs the package datasets. pip install datasets, "
            "or use a .txt or .jsonl file."
        ) from error
    where = f"{dataset} ({config or 'default'}, {split})"
    try:
        builder = load_dataset_builder(dataset, config, revision=revision)
        stream = iter(builder.as_streaming_dataset(split=split))
    except (OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(_unreachable(where, error)) from error
    _, at, commit = str(builder.base_path or "").rpartition("@")
    return _guarded(stream, where), commit if at else None


def _guarded(stream: Iterator[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    try:
        yield from stream
    except (OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(_unreachable(where, error)) from error


def _unreachable(where: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{where}: the data set cannot be read from the hub ({reason}). Check the name, the split "
        "and the network, or use set: self, which needs neither."
    )


def render(
    records: Iterator[dict[str, Any]],
    field: str | None,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> Iterator[Document]:
    """Records of text or messages as documents; `where` names their source in errors."""
    for number, record in enumerate(records, 1):
        yield _document(record, field, tokenizer, f"{where}, record {number}")


def _parse(line: str, where: str) -> Any:
    try:
        return storage.parse_json(line)
    except ValueError as error:
        raise CalibrationError(
            f"{where}: not JSON ({error}). Each line is one record, as in "
            '{"text": "…"} or {"messages": [{"role": "user", "content": "…"}]}.'
        ) from error


def _document(
    record: Any, field: str | None, tokenizer: PreTrainedTokenizerBase, where: str
) -> Document:
    known = record if isinstance(record, dict) else {}
    value = known.get(field) if field else known.get("messages", known.get("text"))
    if isinstance(value, str):
        return Document(value)
    if conversation := _conversation(value):
        try:
            return Document(load.chat(tokenizer, conversation), rendered=True)
        except CalibrationError as error:
            raise CalibrationError(f"{where}: {error}") from error
    wanted = f"field {field!r}" if field else '"text" or "messages"'
    found = f"keys {shown(', '.join(map(repr, known)))}" if known else f"a {type(record).__name__}"
    raise CalibrationError(
        f"{where}: holds no {wanted} that is text or a list of messages (found {found}). Each "
        'message has a "role" and a "content". Name the right one with calibration.field.'
    )


def _conversation(value: Any) -> list[dict[str, str]]:
    """The messages that `value` is; empty when it is none."""
    messages = value if isinstance(value, list) else []
    spoken = all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
    if not spoken or not all(isinstance(m[k], str) for m in messages for k in ("role", "content")):
        return []
    return messages
