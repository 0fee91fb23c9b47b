"""A folder of safetensors shards: the files it is made of, and its tensors, read mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import ModelError, shown
from compress.storage.headers import TensorInfo, read_header
from compress.storage.text import read_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """A folder of safetensors shards, read lazily by memory map."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of all shards in `folder`.

        Raises:
            ModelError: no safetensors, a pickle instead, a broken shard, an index that names a
                missing tensor, or a link that leaves the folder.
        """
        check_links(folder)
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        for path in _shards(folder):
            for name, info in read_header(path).items():
                if name in self.tensors:
                    raise ModelError(
                        f"{path}: holds {shown(name)}, which {self.tensors[name].file.name} holds "
                        "too. Fetch both again."
                    )
                self.tensors[name] = info
        index = folder / INDEX
        for name, file in (_weight_map(index) if index.is_file() else {}).items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise ModelError(
                    f"{index}: promises {shown(name)} in {file}, which does not hold it. Fetch "
                    "both again."
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, mapped from its file."""
        return self.read_many([name])[name]

    def read_many(self, names: list[str] | tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Read several tensors; each file is mapped once."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            if name not in self.tensors:
                raise ModelError(f"{self.folder}: tensor {name} is missing.")
            by_file.setdefault(self.tensors[name].file, []).append(name)
        return {
            name: tensor
            for path, wanted in by_file.items()
            for name, tensor in read_file(path, wanted).items()
        }


def read_file(path: Path, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Read tensors (all of them by default) of one safetensors file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: file.get_tensor(name) for name in (file.keys() if names is None else names)
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from error


def check_links(folder: Path) -> None:
    """Refuse a model folder in which a link leads out of it.

    What lies in such a folder is read, and some of it copied beside the student: a link to a file
    of the user's would publish it. Allowed are links that stay inside, and in a snapshot of the
    hub's cache those to the ``blobs`` of the same repository, which is how that cache is laid out.

    Raises:
        ModelError: one leads elsewhere.
    """
    if not folder.is_dir():
        return  # whoever reads it next says so
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not any(map(_target(path).is_relative_to, allowed)):
            raise ModelError(
                f"{path}: a link to {shown(_target(path))}, outside its folder. Put the file "
                "itself there, or give the folder it lies in."
            )


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise ModelError(f"{link}: a link that leads nowhere ({error}).") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        return _indexed(index)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder}: holds {pickles[0]}, a pickle, and no safetensors. Loading a pickle runs "
            "code from it, so it is refused. Convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)."
        )
    raise ModelError(
        f"{folder}: holds neither {SINGLE} nor {INDEX}. Give a Hugging Face model folder."
    )


def _indexed(index: Path) -> list[Path]:
    names = set(_weight_map(index).values())
    for name in sorted(names):
        plain = Path(name).name == name and name.isprintable()
        if not plain or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: names {shown(name)!r}; shards must be .safetensors files in the same "
                "folder."
            )
    return [index.parent / name for name in sorted(names)]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = read_json(index)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except OSError as error:
        raise ModelError(f"{index}: cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not a safetensors index ({error}).") from error
