"""Token ids in, text out: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are not a character yet


class TextStream:
    """Turns tokens into text as they come.

    A character may span several tokens and a stop string several pieces, so text is held back while
    it could still become either.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        """Stream what follows `prompt`; `stop` strings end the text and are left out of it."""
        self._decode, self._stop = decode, tuple(stop)
        self._window = list(
            prompt
        )  # decoded together: what a token says depends on those before it
        self._context = len(prompt)  # tokens of the window whose text was taken before
        self._known = decode(prompt)  # their text
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add one token; return the text that is now certain, often ''."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(UNFINISHED) or len(text) <= len(self._known):
            return ""
        new = text[len(self._known) :]
        self._window = self._window[
            self._context :
        ]  # starts where a piece began, so never inside a character
        self._context, self._known = len(self._window), self._decode(self._window)
        return self._release(new)

    def flush(self) -> str:
        """The text still held back, once no token follows; '' after a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._decode(self._window)[len(self._known) :])
        text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
