"""Write a model out dense, in float32, for readers that know no other layout.

    python dense.py MODEL_DIR TEACHER_DIR OUT_DIR

Two layouts: a folder with `model.gguf`, whose blocks transformers and the `gguf` package multiply
out, and our `packed`, by the page that describes it (docs/formats.md) and by no code of compress.
Tokenizer and config come from the teacher. Float32 holds every such weight exactly.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

GGUF = "model.gguf"
TOKENIZER = ("tokenizer*", "*.jinja", "vocab.*", "merges.txt", "special_tokens_map.json")
FIELDS = {"quant_method", "format", "version", "default", "exceptions"}
SCHEME = {"bits", "group_size", "sym"}


def from_gguf(folder: Path, teacher: Path) -> dict[str, Tensor]:
    """Weights of a GGUF file by transformers' names."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    tied = json.loads((teacher / "config.json").read_text("utf-8")).get("tie_word_embeddings")
    state = model.state_dict()
    return {n: t.clone() for n, t in state.items() if not (tied and n == "lm_head.weight")}


def from_packed(folder: Path) -> dict[str, Tensor]:
    """Weights of a folder in the format `packed`, version 1: integers and floats, nothing else.

    Raises:
        SystemExit: it holds something else.
    """
    told = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    schemes = [told["default"], *told["exceptions"].values()]
    unknown = {*told, *(field for scheme in schemes for field in scheme)} - FIELDS - SCHEME
    if unknown or told["version"] != 1:
        raise SystemExit(f"{folder}: {sorted(unknown)}, version {told['version']}: not read here")
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return dict(_multiplied(tensors, told))


def _multiplied(
    tensors: Mapping[str, Tensor], told: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        module, _, ending = name.rpartition(".")
        if ending == "codes":
            scheme = {**told["default"], **told["exceptions"].get(module, {})}
            zeros = tensors.get(f"{module}.zeros")
            weight = multiplied(tensor, tensors[f"{module}.scales"], zeros, **scheme)
            yield f"{module}.weight", weight
        elif ending not in ("scales", "zeros"):
            yield name, tensor.float()


def multiplied(
    words: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, group_size: int, sym: bool
) -> Tensor:
    """Weights [O, I] of a matrix: words int32 [O, W], scales [O, G], zeros int32 [O·bits/32, G]."""
    rows, groups = scales.shape
    codes = unpacked(words, bits, groups * group_size)
    zero = torch.full((rows, groups), 1 << (bits - 1))
    if not sym and zeros is not None:
        zero = unpacked(zeros.T, bits, rows).T
    steps = codes.view(rows, groups, group_size) - zero[..., None]
    return (steps * scales.float()[..., None]).view(rows, -1)


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """Numbers [R, count] out of rows of 32-bit words [R, W]: number i is bits [i·b, (i+1)·b)."""
    wide = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))  # the last has a successor
    start = torch.arange(count) * bits
    word, bit = start // 32, start % 32
    both = wide[:, word] | wide[:, word + 1] << 32
    return (both >> bit) & ((1 << bits) - 1)


def main() -> None:
    """Write the dense folder, and print how many weights it holds as a JSON line."""
    parser = argparse.ArgumentParser(description="Write a model out dense, in float32.")
    parser.add_argument("model", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    is_gguf = (given.model / GGUF).is_file()
    tensors = from_gguf(given.model, given.teacher) if is_gguf else from_packed(given.model)
    given.out.mkdir(parents=True, exist_ok=True)
    for pattern in TOKENIZER:
        for path in given.teacher.glob(pattern):
            shutil.copy(path, given.out)
    config = json.loads((given.teacher / "config.json").read_text("utf-8"))
    config.pop("torch_dtype", None)
    (given.out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2))
    save_file(tensors, given.out / "model.safetensors", metadata={"format": "pt"})
    print(json.dumps({"weights": sum(tensor.numel() for tensor in tensors.values())}))


if __name__ == "__main__":
    main()
