"""A package index on this machine, and tiny folders to break."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Index:
    """A simple index with one project; files are served with ranges, and may be cut short."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""
        self.ranges = True  # whether a range that is asked for is heeded
        self.breaks_after: int | None = None  # bytes of a file after which its connection ends

    def add(self, name: str, members: dict[str, bytes]) -> str:
        """Put a wheel on the index; its sha256."""
        path = self.folder / name
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        self.digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return self.digests[name]

    def page(self) -> bytes:
        files = [
            {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": digest}}
            for name, digest in self.digests.items()
        ]
        page = {"meta": {"api-version": "1.0"}, "name": "tiny-teacher", "files": files}
        return json.dumps(page).encode()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    folder = tmp_path / "index"
    folder.mkdir()
    served = Index(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append((self.path, self.headers.get("Range")))
            if self.path == "/simple/tiny-teacher/":
                return self._send(served.page(), "application/vnd.pypi.simple.v1+json")
            file = folder / Path(self.path).name
            if self.path.startswith("/files/") and file.is_file():
                return self._send(file.read_bytes(), "application/octet-stream")
            self.send_error(404)

        def _send(self, data: bytes, kind: str) -> None:
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            start = start if served.ranges else 0
            if start >= len(data):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            breaks = served.breaks_after if self.path.startswith("/files/") else None
            self.wfile.write(data[start:][:breaks])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def broken(tiny_tied: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny teacher's folder whose config is changed: `broken(model_type="x")`."""

    def copy(source: Path = tiny_tied, **changes: object) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        config.update(changes)
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return copy
