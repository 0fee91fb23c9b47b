"""Messages and a chat template → the text a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.apart import Apart

MAX_TEMPLATE_BYTES = 1024**2
MAX_SECONDS = 10


def check(template: str) -> None:
    """Check that a template is one, without running any of it.

    Raises:
        ValueError: it is not, or is unreasonably long.
    """
    import jinja2

    from compress.chat.environment import environment

    if len(template) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"{len(template):,} characters; {MAX_TEMPLATE_BYTES:,} are allowed")
    try:
        environment().parse(template)
    except jinja2.TemplateError as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    answering: bool,
    special: Mapping[str, Any],
) -> str:
    """Render a conversation, within the bounds of `apart` and `chat.worker`.

    Args:
        template: as `check` accepts it.
        messages: plain values; of "role" and "content", oldest first.
        answering: end with the beginning of the assistant's turn.
        special: special tokens by the names that templates use (bos_token, …).

    Raises:
        ValueError: the template refuses the messages, fails, or goes beyond a bound.
    """
    said = [{k: v for k, v in message.items() if v is not None} for message in messages]
    values = {
        "messages": said, "tools": None, "documents": None, "add_generation_prompt": answering,
        **special,
    }  # fmt: skip
    return _worker.ask({"template": template, "values": values}, seconds=MAX_SECONDS)["text"]


_worker = Apart("compress.chat.worker")
