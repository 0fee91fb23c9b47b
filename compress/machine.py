"""Where a run computes, and the facts about it that belong to the run's identity or its record."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import logging
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from compress import __version__
from compress.errors import RequestError
from compress.kernels.precision import onednn_preferred, prefer_onednn

# of mallopt(3): trim threshold, mmap threshold, maximum of mmaps
_KEEP_FREED = ((-1, -1), (-4, 0))
_RETURN_FREED = ((-1, 64 * 1024**2), (-3, 32 * 1024**2), (-4, 65_536))  # what glibc comes to itself
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Machine:
    """A device, and the dtype in which blocks run on it."""

    device: str
    dtype: torch.dtype
    onednn: bool = False  # makes float32 products
    processes: int = 1  # that share the run
    sharded: bool = False  # and the weights that it trains

    @property
    def identity(self) -> dict[str, object]:
        """What of the machine decides the bits of a result."""
        return {
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": self.processes,
            "sharded": self.sharded,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "onednn": self.onednn,
            "versions": versions(),
            "code": code_sha256(),
        }


def prepare(
    device: str,
    *,
    dtype: str,
    seed: int,
    threads: int | None,
    locked_device: str | None = None,
    processes: int = 1,
    sharded: bool = False,
) -> Machine:
    """Set this process up to compute: threads, seed, and who multiplies float32 matrices.

    Args:
        device: cpu or cuda.
        dtype: of the teacher, as a recipe names it.
        seed: of everything random.
        threads: of the processor; torch's choice by default.
        locked_device: where a lock was made.
        processes: that share the run.
        sharded: whether they share the weights that it trains.

    Raises:
        RequestError: the lock was made elsewhere.
    """
    if locked_device not in (None, device):
        raise RequestError(
            f"the lock was made on {locked_device}, this run would be on {device}, whose sums "
            f"round otherwise. Say --device {locked_device}, or run the recipe that was locked."
        )
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return Machine(device, compute_dtype(device, dtype), prefer_onednn(), processes, sharded)


def find_device(asked: str) -> str:
    """The device that one of auto, cpu, cuda means here; auto takes CUDA if there is one.

    Raises:
        RequestError: CUDA is asked for, and torch finds none.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise RequestError(
            f"device: cuda was asked for, and torch {torch.__version__} finds no CUDA device. Use "
            "cpu, or install a CUDA build of torch."
        )
    return ("cuda" if there else "cpu") if asked == "auto" else asked


@contextlib.contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """So many threads for torch's operations, until it is left."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def logging_from(level: int, *names: str) -> Iterator[None]:
    """Libraries that talk to the terminal say nothing below a level, until it is left."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level_before in zip(loggers, before, strict=True):
            logger.setLevel(level_before)


def give_back_memory() -> None:
    """Return what the C library keeps of freed memory, where it can (glibc).

    What comes and goes while a model is loaded, or a block solved, leaves pieces that fit nothing
    else: a tenth of the resident set and more.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While it lasts what is freed stays with this process, for what is asked for next (glibc).

    Else the C library returns every large tensor to the system, and the next one is made of pages
    that fault one by one: 400,000 of them, a quarter of a training step of 2,048 tokens.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    for parameter, value in _KEEP_FREED:
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _RETURN_FREED:
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def compute_dtype(device: str, teacher_dtype: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it faster, unless the teacher is to be float32."""
    fast = device == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and teacher_dtype != "float32" else torch.float32


def arithmetic(device: str, dtype: torch.dtype) -> tuple[object, ...]:
    """What decides the bits of a forward beside weights and tokens: who computes it, and how.

    transformers supplies the arithmetic of every family.
    """
    return (
        device, str(dtype), torch.get_num_threads(), torch.__version__, version("transformers"),
        torch.backends.cpu.get_cpu_capability(), onednn_preferred(),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of compress, Python and the libraries that compute."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"compress": __version__, "python": platform.python_version(), **found}


def made_with() -> dict[str, object]:
    """Versions, code and processor that this process would make a run with."""
    processor = torch.backends.cpu.get_cpu_capability()
    return {"versions": versions(), "code": code_sha256(), "processor": processor}


def code_sha256() -> str:
    """sha256 over the source of compress itself: between releases the version says too little."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def peak_memory_bytes() -> int:
    """The high-water mark of this process's resident memory, since it was last forgotten."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def most_resident_bytes() -> int | None:
    """The high-water mark of what this program has had resident; None where no system tells it.

    Not that of `peak_memory_bytes`, in which a process begun by a large one finds that one, too.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak_memory() -> None:
    """Begin a new high-water mark, where the system can (Linux): a process may see several runs."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended, all threads added up.

    User and system time: what a run costs whatever else is at work beside it.
    """
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def hardware(processes: int = 1) -> str:
    """Processor, threads and processes, for people to read."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    threads = torch.get_num_threads()
    among = f" of {processes} processes" if processes > 1 else ""
    return f"{processor}, {threads} thread{'' if threads == 1 else 's'}{among}"


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
