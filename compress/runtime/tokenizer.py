"""Text to token ids and back, and the chat template: `tokenizers` and jinja2, no transformers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import ArtifactError, RequestError

if TYPE_CHECKING:
    import jinja2
    import tokenizers

Message = Mapping[str, Any]


class Tokenizer:
    """The tokenizer of a model folder: ``tokenizer.json`` with its chat template, if it has one."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        template: jinja2.Template | None,
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
        read_json(path)  # a broken file gets a message of ours: tokenizers raises a bare Exception
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        settings = read_json(folder / "tokenizer_config.json")
        special = _special(read_json(folder / "special_tokens_map.json")) | _special(settings)
        return cls(tokenizer, _template(folder, settings), special)

    @property
    def has_chat(self) -> bool:
        """Whether messages can be formatted."""
        return self._template is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with what the tokenizer puts around one (such as a first token)."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[Message]) -> str:
        """Format messages with the model's own template, up to where its answer begins.

        Raises:
            RequestError: there is no template, or it refuses these messages.
        """
        if self._template is None:
            raise RequestError(
                "messages: this model has no chat template. Give the prompt as one plain text."
            )
        import jinja2

        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._special
            )
        except jinja2.TemplateError as error:
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
        found = json.loads(path.read_text(encoding="utf-8"))
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


def _template(folder: Path, settings: Mapping[str, Any]) -> jinja2.Template | None:
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not source:
        return None
    import jinja2

    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise ArtifactError(
            f"{folder}: its chat template cannot be read ({error}). Fetch it again."
        ) from error


def _environment() -> jinja2.Environment:
    """What chat templates expect of jinja2, as in transformers; sandboxed, for they are code."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the model's words for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own escapes HTML


def _refuse(message: str) -> str:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
