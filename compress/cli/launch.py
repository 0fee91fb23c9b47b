"""Several processes for one command: torch's own launcher starts them, and ends them together."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.cli import console
from compress.errors import RequestError, RunError

_NAMES = (  # of variables that tell a process which it is, and of how many
    ("RANK", "WORLD_SIZE"),  # torchrun, accelerate launch
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Member:
    """This process among those that a launcher has started; by default the only one."""

    rank: int = 0
    size: int = 1


def member() -> Member:
    """Which process this is, by its environment."""
    for rank, size in _NAMES:
        if (count := os.environ.get(size, "")).isdecimal() and int(count) > 1:
            return Member(int(os.environ.get(rank, "0")), int(count))
    return Member()


def told_alone(here: Member) -> None:
    """Say that a launcher has started one process, which `accelerate launch --cpu` does unasked."""
    if here.size == 1 and any(name.startswith("ACCELERATE_") for name in os.environ):
        console.say(
            "accelerate launch has started one process, so the run has one. For several on "
            "processors: accelerate launch --multi_gpu --num_processes 2 …, with --device cpu."
        )


def wanted(here: Member, asked: int | None, locked: int | None, *, bounded: bool) -> int:
    """How many processes share a run.

    Args:
        here: this process; where a launcher has started several, there are as many.
        asked: by --nproc.
        locked: by the lock that runs again.
        bounded: by --max-memory.

    Raises:
        RequestError: a launcher has started another number, or memory is limited.
    """
    if here.size > 1 and asked not in (None, here.size):
        raise RequestError(
            f"--nproc {asked}: a launcher has started {here.size} processes already. Leave out "
            "--nproc, or run the command without a launcher.",
            section="processes",
        )
    count = here.size if here.size > 1 else asked or locked or 1
    if bounded and count > 1:
        raise RequestError(
            "--max-memory: is kept by one process, and several would each take as much. Leave it "
            "out, or run in 1 process.",
            section="processes",
        )
    return count


def check_devices(count: int, device: str) -> None:
    """Check that there is a device for each process.

    Raises:
        RequestError: there are fewer GPUs.
    """
    import torch

    if device == "cuda" and count > (there := torch.cuda.device_count()):
        raise RequestError(
            f"--nproc {count}: each process takes a CUDA device of its own, and there "
            f"{'is' if there == 1 else 'are'} {there}. Ask for {there}, or say --device cpu.",
            section="processes",
        )


def processes(count: int, arguments: Sequence[str], threads: int | None) -> int:
    """Run one command line in several processes on this machine, and wait for their end.

    Args:
        count: of processes.
        arguments: what follows the word `compress`.
        threads: of all of them together; torch's choice by default.

    Returns:
        the exit code of the first process.

    Raises:
        KeyboardInterrupt: the user has ended it.
        RequestError: there are fewer threads than processes.
        RunError: the first process was killed, and could not tell.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if threads is not None and threads < count:
        raise RequestError(
            f"--threads {threads}: are shared out among {count} processes, and each needs one. "
            f"Ask for {count} or more, or for fewer processes.",
            section="processes",
        )
    each = max(1, (threads or torch.get_num_threads()) // count)
    os.environ["OMP_NUM_THREADS"] = str(each)  # which the processes inherit
    told = logging.getLogger("torch.distributed.elastic")  # by us, below
    told.addHandler(logging.NullHandler())
    told.propagate = False
    try:
        with tempfile.TemporaryDirectory() as logs:
            config = LaunchConfig(
                min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0,
                run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
                local_addr="127.0.0.1", logs_specs=DefaultLogsSpecs(log_dir=logs),
            )  # fmt: skip
            elastic_launch(config, sys.executable)("-m", "compress", *arguments)
    except ChildFailedError as error:
        return _code(error.failures)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        return 1  # the first process was asked to end, too, and has told
    return 0


def _code(failures: Mapping[int, Any]) -> int:
    """The exit code of a run; says which process was killed, for that one could not."""
    first = failures[0].exitcode if 0 in failures else 1
    for rank, failure in sorted(failures.items()):
        if rank and failure.exitcode < 0:
            console.say(_killed(rank, failure.exitcode))
    if first < 0:
        raise RunError(_killed(0, first), section="processes")
    return int(first)


def _killed(rank: int, code: int) -> str:
    name = signal.Signals(-code).name
    return f"Process {rank} of the run was ended by {name}, and so the others were."
