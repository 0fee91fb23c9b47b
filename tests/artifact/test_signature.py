"""A signature holds for the signer's key and the signed files, and for nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from compress.artifact.manifest import check_manifest, write_manifest
from compress.artifact.output import WORK
from compress.artifact.signature import NAME, PASSWORD, check_signature, sign
from compress.errors import ArtifactError, RequestError

pytest.importorskip("model_signing")


def keys(folder, name, password=None):
    """A private and a public key, as openssl would write them."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    locked = s.BestAvailableEncryption(password.encode()) if password else s.NoEncryption()
    pem = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked)
    public = private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(pem)
    paths[1].write_bytes(public)
    return paths


@pytest.fixture
def signed(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "a.partial")
    (folder / "report.md").write_text("one")
    write_manifest(folder, {})
    private, public = keys(tmp_path, "mine")
    assert sign(folder, private) == folder / NAME
    return folder.rename(tmp_path / "a"), public  # as a run does at its end


def test_what_was_signed_is_accepted_under_its_own_name(signed):
    folder, public = signed
    check_signature(folder, public)
    assert check_manifest(folder) == []  # the signature is no part of what the manifest names


def test_a_run_signs_a_relative_folder_in_which_it_still_works(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    partial = Path(shutil.copytree(tiny_llama, "b.partial"))
    write_manifest(partial, {})
    (partial / WORK).mkdir()
    (partial / WORK / "journal.jsonl").write_text("{}")
    private, public = keys(Path(), "mine")
    sign(partial, private)
    shutil.rmtree(partial / WORK)
    finished = partial.rename("b")
    check_signature(finished, public)
    (finished / "report.md").write_text("made anew")
    check_signature(finished.absolute(), public)
    (finished / "more.py").write_text("import this")
    with pytest.raises(ArtifactError, match=r"Extra files .*more\.py"):
        check_signature(finished, public)


def test_what_may_be_made_anew_may_be(signed):
    folder, public = signed
    (folder / "report.md").write_text("two")
    (folder / "verification.json").write_text("{}")
    check_signature(folder, public)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_changed_file_is_refused(signed, name):
    folder, public = signed
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="not what was signed with the key"):
        check_signature(folder, public)


def test_a_file_put_beside_the_signed_ones_is_refused(signed):
    folder, public = signed
    (folder / "extra.py").write_text("print()")
    with pytest.raises(ArtifactError, match="not what was signed with the key"):
        check_signature(folder, public)


def test_another_key_is_refused(signed, tmp_path):
    folder, _ = signed
    _, other = keys(tmp_path, "other")
    with pytest.raises(ArtifactError, match=r"not (what was signed|made) with the key"):
        check_signature(folder, other)


def test_a_broken_or_absent_signature_is_refused(signed):
    folder, public = signed
    for text in ("", "{}", "[" * 200_000, '{"dsseEnvelope": 1}'):
        (folder / NAME).write_text(text)
        with pytest.raises(ArtifactError, match="not what was signed"):
            check_signature(folder, public)
    (folder / NAME).unlink()
    with pytest.raises(ArtifactError, match="not signed"):
        check_signature(folder, public)


def test_what_is_no_key_is_refused(signed, tmp_path, monkeypatch):
    folder, _ = signed
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(RequestError, match=r"key\.pem: not a private key that signs here"):
        sign(folder, tmp_path / "key.pem")
    for use in (sign, check_signature):
        with pytest.raises(RequestError, match=r"nowhere\.pem: no such file\. Give a key"):
            use(folder, tmp_path / "nowhere.pem")
    with pytest.raises(RequestError, match=r"key\.pem: not a public key"):
        check_signature(folder, tmp_path / "key.pem")
    private, _ = keys(tmp_path, "locked", "secret")
    with pytest.raises(RequestError, match="not a private key that signs here"):
        sign(folder, private)
    sign(folder, private, password="secret")
    monkeypatch.setenv(PASSWORD, "secret")
    sign(folder, private)


def test_only_finished_artifacts_are_signed(signed, tmp_path):
    private, _ = keys(tmp_path, "mine")
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        sign(tmp_path, private)


def test_without_the_package_it_is_named(signed, monkeypatch):
    folder, public = signed
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(RequestError, match=r"pip install 'compress-llm\[signing\]'"):
        check_signature(folder, public)
    with pytest.raises(RequestError, match="need the package model-signing"):
        sign(folder, public)
