"""The command that tells what a bug report needs: `env`."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from compress import __version__, library
from compress.cli import console
from compress.cli.apply import Json

LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "gguf", "numba", "numpy", "lm_eval",
    "accelerate",
)  # fmt: skip
EXTRAS = (
    "compressed-tensors", "triton", "llguidance", "peft", "model-signing", "bitsandbytes", "ray",
    "optuna", "vllm", "xllamacpp", "gptqmodel", "mlflow", "wandb",
)  # fmt: skip
CPU_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16",
    "i8mm",
)  # fmt: skip
VARIABLES = (  # that change what is computed, or where from; none holds a path or a name
    "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "COMPRESS_OFFLINE",
    "HF_HUB_OFFLINE",
)  # fmt: skip


def env(json: Json = False) -> None:
    """Show what a bug report needs.

    Versions, processor, memory, threads, devices, and the cache folder with its size. It names no
    folder outside your home, and writes that as ~.
    """
    found = environment()
    if json:
        console.emit_json(found)
    else:
        console.show(console.fact_table(found))


def environment() -> dict[str, Any]:
    """Versions, processor, memory, devices, cache folder and free disk, as plain facts by name."""
    import psutil
    import torch

    from compress import machine
    from compress.artifact.provenance import checkout_commit

    cache = library.cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    memory = psutil.virtual_memory()
    return {
        "compress": __version__,
        "commit": checkout_commit() or "no checkout",
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in LIBRARIES},
        "extras": {name: _version(name) for name in EXTRAS},
        "torch_build": f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu",
        "processor": machine.hardware(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": _cpu_flags(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "cache_folder": at_home(cache),
        "cache_bytes": _size(cache),
        "cache_free_bytes": shutil.disk_usage(existing).free,
        "here_free_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def at_home(folder: Path) -> str:
    """A folder as strangers may read it: below ~, or by what it was set with."""
    home = Path.home()
    if folder.is_relative_to(home):
        return str(Path("~") / folder.relative_to(home))
    return "$COMPRESS_CACHE" if os.environ.get("COMPRESS_CACHE") else "outside ~"


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile count nothing."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below, name)
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total


def _version(name: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_flags() -> list[str]:
    """Processor features that decide which kernels run; empty where the system does not tell."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    return [flag for flag in CPU_FLAGS if flag in words]
