"""Text to token ids and back, and conversations to text: `tokenizers`, no transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import storage
from compress.chat import render
from compress.errors import ArtifactError, RequestError
from compress.storage.text import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    import tokenizers

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]
# Characters, or ids: so few that other threads may wait for them. Calls for one text hold the
# interpreter's lock, those for several, which take a little longer, release it.
_SHORT = 1024


class Tokenizer:
    """The tokenizer of a model folder: ``tokenizer.json`` with its chat template, if it has one."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        template: str | None,
        special: Mapping[str, str],
    ) -> None:
        """Use `Tokenizer.open`."""
        self._tokenizer, self._template, self._special = tokenizer, template, dict(special)

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of `folder`.

        Raises:
            ArtifactError: there is none, or one of its files is broken.
        """
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ArtifactError(
                f"{folder}: holds no tokenizer.json. Copy the tokenizer of the teacher into it."
            )
        try:
            text = storage.read_text(path, MAX_TOKENIZER_BYTES)
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing more precise
            raise ArtifactError(f"{path}: not a tokenizer ({error}). Fetch it again.") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = read_json(folder / "tokenizer_config.json")
        special = _special(read_json(folder / "special_tokens_map.json")) | _special(settings)
        return cls(tokenizer, _template(folder, settings), special)

    @property
    def has_chat(self) -> bool:
        """Whether messages can be formatted."""
        return self._template is not None

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added ones too."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def to_json(self) -> str:
        """What ``tokenizer.json`` holds."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with what the tokenizer puts around one (such as a first token)."""
        if len(text) <= _SHORT:
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        return list(self._tokenizer.encode_batch([text], add_special_tokens=special)[0].ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        if len(ids) <= _SHORT:
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        return str(self._tokenizer.decode_batch([list(ids)], skip_special_tokens=True)[0])

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; a text is one user message where there is a chat template.

        Raises:
            RequestError: it is a mixture, or messages that cannot be formatted.
        """
        if isinstance(prompt, str):
            if not self.has_chat:
                return self.encode(prompt)
            prompt = [{"role": "user", "content": prompt}]
        ids = [item for item in prompt if isinstance(item, int)]
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if len(ids) == len(prompt):
            return ids
        if len(messages) < len(prompt):
            raise RequestError(
                "prompt: give a text, a list of messages or a list of token ids, not a mixture."
            )
        return self.encode(self.chat(messages), special=False)  # the template has written them

    def chat(self, messages: Sequence[Message]) -> str:
        """Format messages with the model's own template, up to where its answer begins.

        Raises:
            RequestError: there is no template, or it refuses these messages.
        """
        if self._template is None:
            raise RequestError(
                "messages: this model has no chat template. Give the prompt as one plain text."
            )
        try:
            return render.render(self._template, messages, answering=True, special=self._special)
        except ValueError as error:
            raise RequestError(
                f"messages: the model's chat template refuses them ({error})."
            ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} when there is no such file.

    Raises:
        ArtifactError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        found = storage.read_json(path)
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}). Fetch it again.") from error
    if not isinstance(found, dict):
        raise ArtifactError(
            f"{path}: holds a {type(found).__name__}, not a JSON object. Fetch it again."
        )
    return found


def _special(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name (bos_token, eos_token, …), stored as text or as an object."""
    texts = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in settings.items()
    }
    return {
        key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)
    }


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    try:
        if file.is_file():
            source = storage.read_text(file, render.MAX_TEMPLATE_BYTES)
        else:
            source = _default(settings.get("chat_template"))
        render.check(source)
    except ValueError as error:
        raise ArtifactError(
            f"{folder}: its chat template cannot be read ({error}). Fetch it again."
        ) from error
    return source or None


def _default(template: Any) -> str:
    """The template that tokenizer_config.json holds: a text, or the default one of a list."""
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    if not isinstance(template, str | None):
        raise ValueError(f"it is a {type(template).__name__}, not a text")
    return template or ""
