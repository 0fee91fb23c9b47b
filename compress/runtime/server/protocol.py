"""What a client may ask: OpenAI's fields and a few of vLLM's. Every other field is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from compress.errors import RequestError, shown
from compress.runtime.grammar import ANY_OBJECT

MAX_CHOICES = 32  # answers to one request: prompts times n
MAX_MESSAGES = 1024
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
MAX_SALT_CHARACTERS = 256
MAX_TOKEN = 2**31 - 1
MAX_COUNT = 2**31 - 1
_LISTED = 8  # mistakes in one message

Token = Annotated[int, Field(ge=0, le=MAX_TOKEN)]
Tokens = list[Token]
Penalty = Annotated[float, Field(ge=-2, le=2)]


T = TypeVar("T", bound="Strict")


def _is_text(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


def _prompt_kind(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else 0
    if isinstance(first, str):
        return "<texts>"
    return "<lists>" if isinstance(first, list) else "<tokens>"


class Strict(BaseModel):
    """Takes nothing it does not know, and no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message; only text is read here."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES), Tag("<list>")],
        Discriminator(_is_text),
    ]

    @property
    def text(self) -> str:
        """What was said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """What a stream tells beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage in every chunk


class NamedSchema(Strict):
    """A JSON schema as OpenAI wraps it. It is always kept to, whatever `strict` says."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class PlainText(Strict):
    """No form is asked for."""

    type: Literal["text"]


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]
Stop = Annotated[
    Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS), Tag("<text>")]
    | Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
        Field(max_length=MAX_STOPS),
        Tag("<list>"),
    ],
    Discriminator(_is_text),
]


class Generation(Strict):
    """What completions and chat have in common. A null is the field left out."""

    model: str | None = Field(None, description="a name of /v1/models; left out: the artifact")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MAX_BIASES),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    response_format: ResponseFormat | None = None
    # vLLM's extensions
    top_k: Annotated[int, Field(ge=-1, le=MAX_COUNT)] | None = Field(
        None, description="0 and -1: all"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_CHARACTERS)] | None = Field(
        None, description="prompts share cached prefixes only with those of the same salt"
    )

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only a stream has them. Set stream to true.")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def grammar(self) -> str | None:
        """The JSON schema that the answer is held to, as text."""
        asked = self.response_format
        if isinstance(asked, JsonSchema):
            return json.dumps(asked.json_schema.schema_)
        return ANY_OBJECT if isinstance(asked, JsonObject) else None


class CompletionRequest(Generation):
    """`/v1/completions`: text to be continued as it stands."""

    prompt: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES), Tag("<texts>")]
        | Annotated[Tokens, Field(min_length=1), Tag("<tokens>")]
        | Annotated[
            list[Annotated[Tokens, Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_CHOICES),
            Tag("<lists>"),
        ],
        Discriminator(_prompt_kind),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str] | list[Tokens]:
        """Each prompt: its text, or its token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def limit(self) -> int | None:
        """How many tokens an answer may have, where it is said."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Logprobs a token that are asked for, beside its own; None: none at all."""
        return self.logprobs


class ChatRequest(Generation):
    """`/v1/chat/completions`: a conversation to be answered."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _no_field_without_effect(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs. Set logprobs to true.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError(
                "max_tokens: the old name of max_completion_tokens, which is given too. Leave it "
                "out."
            )
        return self

    @property
    def limit(self) -> int | None:
        """How many tokens an answer may have, where it is said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Logprobs a token that are asked for, beside its own; None: none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TokenizeRequest(Strict):
    """`/tokenize`: a text, or the messages of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = Field(
        None, description="what the tokenizer puts around a text; left out: true; not for messages"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages.")
        if self.messages is not None and self.add_special_tokens is not None:
            raise ValueError("add_special_tokens: messages bring their own. Leave it out.")
        return self


class DetokenizeRequest(Strict):
    """`/detokenize`: token ids."""

    model: str | None = None
    tokens: Tokens


def read(kind: type[T], body: bytes) -> T:
    """Read a request.

    Raises:
        RequestError: names everything that is wrong with it, field by field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        told = [_mistake(one) for one in error.errors(include_url=False, include_context=False)]
        more = f"\nand {len(told) - _LISTED} more mistakes." if len(told) > _LISTED else ""
        raise RequestError("\n".join(told[:_LISTED]) + more) from None


def _mistake(error: Mapping[str, Any]) -> str:
    """One mistake: where, what was found, the rule."""
    kind, rule, found = error["type"], error["msg"], error["input"]
    where = _where(error["loc"])
    if kind == "json_invalid":
        return f"body: {rule}. Send one JSON object."
    if kind == "extra_forbidden":
        return f"{where}: not supported by this server. Leave it out."
    if kind == "missing":
        return f"{where}: missing."
    if kind == "value_error":
        return str(rule).removeprefix("Value error, ")
    told = f" (found {shown(repr(found))})" if isinstance(found, str | int | float) else ""
    return f"{where}: {rule}{told}."


def _where(place: Sequence[str | int]) -> str:
    """A field's place as one writes it, messages[0].content; pydantic's own steps left out."""
    text = ""
    for before, step in zip(("", *place), place, strict=False):
        if isinstance(step, int):
            text += f"[{step}]"
        elif step[:1] not in "<[" and before != "response_format":
            text += f".{shown(step)}" if text else shown(step)
    return text or "body"
