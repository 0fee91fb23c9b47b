"""Ray, running: a cluster at an address, or one of this machine's own that ends with the sweep."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compress
from compress.errors import RequestError, RunError
from compress.machine import logging_from

_CONNECT_SECONDS = 10.0  # to a cluster
_OBJECT_BYTES = 100 * 1024**2  # of Ray's store, which trials leave empty
QUIET = {  # read by Ray here and in its workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",  # trials are what this machine is for; Ray's own default is 15
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_INHERITED = ("COMPRESS_", "HF_", "GOMP_", "TOKENIZERS_", "TQDM_")  # variables that workers get too


@dataclass(frozen=True)
class Crew:
    """Who runs trials."""

    workers: int
    address: str | None = None  # of a cluster; None: this machine by itself
    seconds: float | None = None  # after which no trial begins, and those at work are cut


@contextlib.contextmanager
def running(crew: Crew, threads: int) -> Iterator[None]:
    """Ray, running: the cluster at an address, or one of this machine's own that ends with it.

    Raises:
        RequestError: there is no such cluster.
        RunError: Ray does not start here.
    """
    passed = {k: v for k, v in os.environ.items() if k.startswith(_INHERITED)}
    variables = {**QUIET, **passed, "OMP_NUM_THREADS": str(threads)}
    if crew.address is None:
        variables["PYTHONPATH"] = _import_path()
    here = {**QUIET, "OMP_NUM_THREADS": str(threads)}
    with environment(here), logging_from(logging.CRITICAL, "ray", "ray.tune", "ray.train"):
        import ray

        local: dict[str, Any] = {
            "num_cpus": crew.workers * threads,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_BYTES,
        }
        try:
            _check_reachable(crew.address)
            ray.init(
                address=crew.address or "local",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": variables},
                **({} if crew.address else local),
            )
        except (OSError, RuntimeError, ValueError) as error:
            if crew.address is None:
                raise RunError(f"Ray does not start here: {last_line(error)}") from error
            raise RequestError(
                f"--address {crew.address}: Ray cannot be reached ({last_line(error)}). Start it "
                "with `ray start --head`; where it asks for its token, put RAY_AUTH_MODE=token in "
                "front of this command; or leave out --address.",
                section="sweep",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _import_path() -> str:
    """Where workers of this machine find what this process has found, in whatever folder."""
    own = Path(compress.__file__).resolve().parent.parent
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(own), *(str(Path(p).resolve()) for p in given if p)]))


def _check_reachable(address: str | None) -> None:
    """Check that somebody listens at HOST:PORT: Ray itself would try for ever.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        name = host.rpartition("//")[2].strip("[]")
        socket.create_connection((name, int(port)), timeout=_CONNECT_SECONDS).close()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process, until it is left."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def last_line(error: object) -> str:
    """Of what an error says, the end: Ray's begin with traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
