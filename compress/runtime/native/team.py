"""The threads that walk a model's steps together: the caller's own, and others that wait for it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

from compress.runtime.native import layout, step

_LEAVING = 5.0  # seconds that a team's end waits for a thread to leave
_PATIENCE = 100_000  # looks for the next step, 1 to 2 ms: longer than what lies between two steps


class Team:
    """Walks steps of one model with several threads.

    Between steps the others look for the next one for a moment, which costs no wake-up, and then
    sleep until they are woken.
    """

    def __init__(
        self, records: Sequence[Any], control: Any, threads: int, kept: Sequence[Any]
    ) -> None:
        """Start `threads` - 1 threads beside the caller's.

        Args:
            records: arrays of `layout.STATE` (one, and one for each thread), `layout.MATRIX` and
                `layout.BLOCK`.
            control: int64, lines for GO and OVER, then one for each thread.
            threads: how many walk.
            kept: all that addresses in the records point to. A thread that comes late for the last
                step may still be at it when nobody else knows of the model, so each holds it, too.
        """
        self._records, self._control, self._threads = records, control, threads
        self._wake = [threading.Semaphore(0) for _ in range(threads)]
        others = [
            threading.Thread(
                target=_serve,
                args=(number, records, control, self._wake[number], kept),
                daemon=True,
            )
            for number in range(1, threads)
        ]
        for one in others:
            one.start()
        weakref.finalize(self, _end, control, self._wake, others)

    def walk(self) -> None:
        """Walk the step that the records and their buffers describe."""
        asleep = step.begin(self._control, self._threads)
        for thread in range(1, self._threads):
            if asleep >> thread & 1:
                self._wake[thread].release()
        step.serve(0, *self._records, self._control, 0)


def _serve(
    thread: int,
    records: Sequence[Any],
    control: Any,
    wake: threading.Semaphore,
    kept: Sequence[Any],
) -> None:
    while step.serve(thread, *records, control, _PATIENCE):
        wake.acquire()


def _end(
    control: Any, wake: Sequence[threading.Semaphore], others: Sequence[threading.Thread]
) -> None:
    control[layout.GO] = layout.ENDED
    for one in wake:
        one.release()
    for thread in others:  # one that let go of tensors while the interpreter ends would abort it
        if thread is not threading.current_thread():
            thread.join(_LEAVING)
