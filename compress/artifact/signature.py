"""Who made an artifact: an optional signature over its manifest and every file that it names.

It is a sigstore bundle as the package ``model-signing`` writes it, so that its own command checks
it too. What `manifest.LEFT_OUT` names may be made anew and is not signed, the manifest apart.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from compress import storage
from compress.artifact.manifest import LEFT_OUT, MAX_BYTES
from compress.artifact.manifest import NAME as MANIFEST
from compress.artifact.output import WORK
from compress.errors import ArtifactError, RequestError

NAME = "model.sig"
PASSWORD = "COMPRESS_SIGNING_PASSWORD"


def sign(folder: Path, key: Path, *, password: str | None = None) -> Path:
    """Sign a finished artifact.

    Args:
        folder: holds its manifest.
        key: a private key in PEM, on the curve P-256, P-384 or P-521, as
            ``openssl ecparam -name prime256v1 -genkey -noout`` makes one.
        password: of an encrypted key; what `PASSWORD` holds in the environment by default.

    Returns:
        The signature's file, `NAME` inside `folder`.

    Raises:
        RequestError: model-signing is not installed, or the key cannot be used.
        ArtifactError: there is no manifest to sign, or the folder cannot be read or written.
    """
    config = _signer(key, password)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder}: holds no {MANIFEST}; only a finished artifact is signed.")
    path = folder / NAME
    try:
        config.set_hashing_config(_hashing(WORK)).sign(folder, path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: cannot be signed ({error}).") from error
    return path


def check_key(key: Path, *, password: str | None = None) -> None:
    """Find out before any long work whether a key will sign.

    Raises:
        RequestError: as for `sign`.
    """
    _signer(key, password)


def _signer(key: Path, password: str | None) -> Any:
    password = password or os.environ.get(PASSWORD)
    secret = password.encode() if password else None
    config = _library().signing.Config()
    _check_there(key)
    try:
        return config.use_elliptic_key_signer(private_key=key, password=secret)
    except (OSError, ValueError, TypeError) as error:  # TypeError: a password is missing or extra
        raise RequestError(
            f"{key}: not a private key that signs here ({error}). It must be PEM, on the curve "
            "P-256, P-384 or P-521."
        ) from error


def check_signature(folder: Path, public_key: Path) -> None:
    """Check that every signed file is as it was when the owner of a key signed it.

    Args:
        folder: a signed artifact.
        public_key: the signer's, in PEM.

    Raises:
        RequestError: model-signing is not installed, or the key cannot be read.
        ArtifactError: there is no signature, it is of another key, or a file is not as signed.
    """
    library = _library()
    _check_there(public_key)
    from cryptography.exceptions import InvalidSignature

    path = folder / NAME
    if not path.is_file():
        raise ArtifactError(f"{folder}: not signed: it holds no {NAME}. Sign it with --sign KEY.")
    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{public_key}: not a public key ({error}). Give the signer's, in PEM."
        ) from error
    try:
        storage.read_json(path, MAX_BYTES)  # bounded; the library reads whatever is there
        config.set_hashing_config(_hashing()).verify(folder, path)
    except InvalidSignature as error:
        raise ArtifactError(
            f"{path}: not made with the key that belongs to {public_key}, or changed since. Get "
            "the signer's public key and the artifact again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder}: not what was signed with the key of {public_key} ({error}). `compress "
            "verify` names the files that are not as written."
        ) from error


def _check_there(key: Path) -> None:
    if not key.is_file():
        raise RequestError(f"{key}: no such file. Give a key in PEM.")


def _hashing(*also: str) -> Any:
    """Which files are signed: all but those that may be made anew, and the signature itself.

    Names, not paths: the folder is signed before it gets its own name. `also` is left out, too.
    """
    names = sorted((LEFT_OUT | {NAME, *also}) - {MANIFEST})
    return _library().hashing.Config().set_ignored_paths(paths=names, ignore_git_paths=False)


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise RequestError(
            f"signatures need the package model-signing ({error}). pip install "
            "'compress-llm[signing]'."
        ) from error
    return model_signing
