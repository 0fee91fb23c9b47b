"""The processes of one run: what each computes, what they add up, and what the first does alone.

All of them walk the same stages at the same time, each over its own windows. What they find is
added up. The first alone solves, decides, writes and tells; the others wait and hear of it, so that
there is one truth and one journal, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from compress import machine
from compress.errors import RequestError, RunError
from compress.machine import computing_with
from compress.student import Ledger

T = TypeVar("T")
_TOGETHER = datetime.timedelta(minutes=30)  # longest that processes in step wait for each other
_ALONE = datetime.timedelta(days=30)  # longest that others wait for what the first does alone


class Ended(Exception):  # noqa: N818 - said as one
    """The first process has told the others that there is nothing left for them to do."""


class Team:
    """The processes of a run, of which this is one; by default the only one."""

    def __init__(
        self, rank: int = 0, size: int = 1, threads: int = 1, device: str = "cpu", *,
        sharded: bool = False,
    ) -> None:  # fmt: skip
        """See `found`, which makes a team of those that were launched.

        Args:
            rank: of this process; 0 is the first.
            size: how many there are.
            threads: of the whole run, shared out evenly; the first has all when it is alone.
            device: on which this process computes.
            sharded: what trains is held in shards, one a process, not by each whole.
        """
        self.sharded = sharded and size > 1
        self.rank, self.size, self.threads, self.device = rank, size, threads, device
        self._waiting: Any = None  # the group in which others wait for the first
        self.others_bytes = 0  # of memory that the other processes have held, at most
        self.others_cpu_seconds = 0.0  # that they have spent
        self._ended = size == 1
        self._in_step = False  # the others compute, and do not wait for the first
        self._heard: dict[str, Mapping[str, Any]] = {}  # finished units
        self._news: dict[str, Mapping[str, Any]] = {}  # of them, not told yet

    @property
    def share(self) -> int:
        """Threads of each process while all of them compute."""
        return max(1, self.threads // self.size)

    def own(self, count: int, rank: int | None = None) -> range:
        """Which of so many windows are a process's: consecutive ones, as many as others have.

        This process's by default; the first has the most.
        """
        rank = self.rank if rank is None else rank
        each, more = divmod(count, self.size)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    def windows(self, ids: Tensor) -> Tensor:
        """Of windows [B, …] this process's own."""
        mine = self.own(len(ids))
        return ids[mine.start : mine.stop]

    def add_up(self, found: Tensor) -> Tensor:
        """Replace what each process found by the sum of it, the same bits in all of them."""
        return self._reduced(found, "SUM")

    def largest(self, found: Tensor) -> Tensor:
        """Replace what each process found by the largest of it, place by place."""
        return self._reduced(found, "MAX")

    def mean(self, found: float, count: float) -> float:
        """The mean over all processes of a mean that this one found over `count` things."""
        if self.size == 1:
            return found
        both = torch.tensor([found * count, count], dtype=torch.float64, device=self.device)
        total, things = self.add_up(both).tolist()
        return float(total / things)

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait, however long it takes.

        It has the threads of all for as long, and what it notes in the journal, they hear, too.

        Raises:
            Ended: in the others, where the first could not make it.
        """
        if self.size == 1:
            return make()
        if self.rank:
            heard: tuple[T, Mapping[str, Any]] = self._receive()
            self._heard |= heard[1]
            return heard[0]
        in_step, self._in_step = self._in_step, False
        with computing_with(self.threads):
            made = make()
        self._send((made, self._news))
        self._news.clear()
        self._in_step = in_step
        return made

    def told(self, value: T) -> T:
        """What the first process says; others may give anything."""
        return self.first(lambda: value)

    def heard(self) -> Any:
        """What the first process says, in one of the others.

        Raises:
            Ended: there is nothing left to do.
        """
        return self.told(None)

    def meet(self) -> None:
        """Wait until all processes have come here, however long it takes."""
        if self.size > 1:
            from torch import distributed

            with _connected():
                distributed.barrier(self._waiting)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All processes compute, each with its share of the threads."""
        if self.size == 1:
            yield
            return
        with computing_with(self.share):
            self._in_step = True
            yield
            self._in_step = False

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """The first process at work: however it ends, others that wait for it are told."""
        try:
            yield
        finally:
            if not self._in_step:  # else they wait for its part of a sum, and see it go
                with contextlib.suppress(RunError):  # one of them may be what ended it
                    self.dismiss()

    def dismiss(self) -> None:
        """Tell the others that there is nothing left for them to do."""
        if not self._ended:
            self._ended = True
            self._send(None)

    def look_at_use(self) -> None:
        """Take note of what the other processes have held of memory, at most, and spent so far."""
        own = (machine.peak_memory_bytes(), machine.cpu_seconds()) if self.rank else (0.0, 0.0)
        used = torch.tensor(own, dtype=torch.float64, device=self.device)
        held, self.others_cpu_seconds = self.add_up(used).tolist()
        self.others_bytes = int(held)

    def ledger(self, journal: Ledger | None) -> Ledger:
        """The one journal as this process sees it: the first has it, the others hear of it."""
        if journal is not None and self.size == 1:
            return journal
        return Shared(journal, self._heard, self._news)

    def hear_of(self, finished: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of units that an earlier run has finished."""
        self._heard |= finished

    def _reduced(self, found: Tensor, how: str) -> Tensor:
        if self.size > 1:
            from torch import distributed

            with _connected():
                distributed.all_reduce(found, getattr(distributed.ReduceOp, how))
        return found

    def _send(self, message: object) -> None:
        from torch import distributed

        raw = io.BytesIO()
        torch.save(message, raw)
        with _connected():
            distributed.broadcast_object_list([raw.getvalue()], 0, self._waiting)

    def _receive(self) -> Any:
        from torch import distributed

        raw: list[Any] = [None]
        with _connected():
            distributed.broadcast_object_list(raw, 0, self._waiting)
        here = None
        if self.device != "cpu":  # what lies on the first one's device comes to this one's
            here = {"cuda:0": f"cuda:{torch.cuda.current_device()}"}
        # what processes of one run tell each other is trusted as their own memory is
        message = torch.load(io.BytesIO(raw[0]), map_location=here, weights_only=False)
        if message is None:
            raise Ended
        return message


ALONE = Team()


@dataclass(frozen=True)
class Shared:
    """A journal of several processes; see `compress.student.Ledger`."""

    journal: Ledger | None  # None: this is not the process that writes it
    heard: Mapping[str, Mapping[str, Any]]
    news: dict[str, Mapping[str, Any]]

    def get(self, unit: str) -> Mapping[str, Any] | None:
        """The record of a finished unit; None where it has yet to be done."""
        return self.heard.get(unit) if self.journal is None else self.journal.get(unit)

    def add(self, unit: str, record: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Make a unit final; the others hear of it with what the first makes."""
        if self.journal is None:
            raise TypeError(f"{unit}: only the first process finishes what a run is made of")
        self.journal.add(unit, record, files)
        self.news[unit] = record


def found(device: str, threads: int | None, *, sharded: bool = False) -> Team:
    """The team of the processes that a launcher (accelerate, torchrun, mpirun) has started.

    Args:
        device: cpu or cuda; of several GPUs, each process takes its own.
        threads: of the whole run; by default what all processes were given, added up.
        sharded: whether what trains is held in shards.

    Raises:
        RequestError: there are fewer threads than processes.
    """
    from accelerate import PartialState
    from torch import distributed

    given = torch.get_num_threads()
    with warnings.catch_warnings(action="ignore"):  # of OMP_NUM_THREADS, which is set below
        state = PartialState(cpu=device == "cpu", timeout=_TOGETHER)
    torch.set_num_threads(given)
    rank, size = state.process_index, state.num_processes
    if threads is not None and threads < size:
        raise RequestError(
            f"--threads {threads}: are shared out among {size} processes, and each needs one. "
            f"Ask for {size} or more, or for fewer processes.",
            section="processes",
        )
    team = Team(rank, size, threads or given, device, sharded=sharded)
    team._waiting = distributed.new_group(backend="gloo", timeout=_ALONE)
    if threads is None:
        total = team.add_up(torch.tensor(float(given), device=device))
        team.threads = int(total)
    if rank == 0:
        signal.signal(signal.SIGTERM, _asked_to_end)
    return team


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """A connection that breaks is a process that has ended.

    Raises:
        RunError: one has.
    """
    try:
        yield
    except RuntimeError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher asks the rest to end, as they do
        said = str(error).partition("] ")[2].partition(". ")[0] or str(error)
        raise RunError(
            f"another process of this run has ended or cannot be reached ({said}), and so this one "
            "ends.",
            section="processes",
        ) from error


def _asked_to_end(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise RunError(
        "asked to end (SIGTERM), as launchers do when another process of a run has.",
        section="processes",
    )
