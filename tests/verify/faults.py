"""What can be wrong with an artifact: each fault plants itself in a copy of a clean one."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compress.artifact.manifest import file_hashes, tensor_hashes
from compress.errors import CompressError
from compress.kernels.grid import fit, round_to_nearest
from compress.kernels.masks import best
from compress.kernels.masks import pruned as keep

SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
Q, O = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"  # noqa: E741
NORM = "model.layers.1.input_layernorm.weight"
CT = "compressed-tensors"


class Folder:
    """An artifact under the knife."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in load_file(self.path / SHARD).items()}

    def write(self, tensors: dict[str, torch.Tensor]) -> None:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, self.path / SHARD, {"format": "pt"})

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def write_json(self, name: str, value: Any) -> None:
        (self.path / name).write_text(json.dumps(value))

    def rehash(self) -> None:
        """Make the manifest's hashes fit, as far as the files can be read."""
        if not (self.path / "manifest.json").exists():
            return
        manifest = self.json("manifest.json")
        manifest["files"] = file_hashes(self.path)
        with contextlib.suppress(CompressError):
            manifest["tensors"] = tensor_hashes(self.path)
        self.write_json("manifest.json", manifest)


@dataclass(frozen=True)
class Fault:
    """One fault; `caught_by` is the check that finds it even where all hashes were made to fit."""

    caught_by: str
    plant: Callable[[Folder], None]
    of: tuple[Any, ...] = ("packed", 4, 32, False)
    options: dict[str, Any] = field(default_factory=dict)


def edits(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Folder], None]:
    def plant(folder: Folder) -> None:
        tensors = folder.tensors()
        change(tensors)
        folder.write(tensors)

    return plant


def config(change: Callable[[dict[str, Any]], Any], name: str = "config.json"):
    def plant(folder: Folder) -> None:
        value = folder.json(name)
        change(value)
        folder.write_json(name, value)

    return plant


def flip_bit(tensors):
    tensors[f"{Q}.codes"].view(torch.uint8)[0, 0] ^= 1


def swap_scale_rows(tensors):
    tensors[f"{Q}.scales"][[0, 1]] = tensors[f"{Q}.scales"][[1, 0]]


def flip_zero(tensors):
    tensors[f"{Q}.zeros"].view(torch.uint8)[0, 0] ^= 1


def swap_linears(tensors):
    for ending in ("codes", "scales", "zeros"):
        one, other = f"{Q}.{ending}", f"{O}.{ending}"
        tensors[one], tensors[other] = tensors[other], tensors[one]


def set_scale(value):
    return edits(lambda tensors: tensors[f"{Q}.scales"][3].fill_(value))


def change_norm(tensors):
    tensors[NORM][0] += 0.5


def spare_bit(tensors):
    tensors["model.layers.0.mlp.down_proj.codes"][0, -1] |= 1 << 30


def swap_words(tokenizer):
    words = tokenizer["model"]["vocab"]
    words["a"], words["e"] = words["e"], words["a"]


def add_word(tokenizer):
    last = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}
    more = {"id": 999, "content": "<|more|>", "normalized": False, **last}
    tokenizer["added_tokens"].append(more)
    tokenizer["model"]["vocab"]["<|more|>"] = 999


def truncate(folder):
    path = folder.path / SHARD
    path.write_bytes(path.read_bytes()[:-100])


def overlap(folder):
    """Let one tensor lie where another does, both of its size."""
    path = folder.path / SHARD
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header[f"{O}.codes"]["data_offsets"] = header[f"{Q}.codes"]["data_offsets"]
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def lose_shard(index):
    first = sorted(set(index["weight_map"].values()))[0]
    for name, file in index["weight_map"].items():
        if file == first:
            index["weight_map"][name] = "model-00099-of-00099.safetensors"


def link_out(folder):
    outside = folder.path.with_name("outside.json")
    (folder.path / "config.json").rename(outside)
    (folder.path / "config.json").symlink_to(outside)


def lose_manifest(folder):
    (folder.path / "manifest.json").unlink()
    (folder.path / "recipe.lock.yaml").touch()


def scheme(**fields):
    return config(lambda c: c["quantization_config"]["default"].update(fields))


def group(**fields):
    def change(c):
        c["quantization_config"]["config_groups"]["group_0"]["weights"].update(fields)

    return config(change)


def pruned(*, bits=None):
    """A plan that prunes half of every linear, and rounds what stays to so many bits."""

    def prune(weight):
        mask = best(weight.abs(), weight.numel() // 2)
        stored = keep(weight, mask, weight.dtype)
        if bits is None:
            return stored
        scale, zero = fit(stored, bits=bits, group_size=32, sym=False, search="none")
        return round_to_nearest(stored, scale, zero, bits=bits, sym=False)

    return prune


PRUNED, PRUNED_CODES = (("packed", pruned(bits=bits)) for bits in (None, 4))


def flip_mask_bit(tensors):
    tensors[f"{Q}.mask"].view(torch.uint8)[3, 2] ^= 16


def move_mask_bit(tensors):
    """Let another weight of the row stay."""
    row = tensors[f"{Q}.mask"][0, 0].item() & 0xFFFFFFFF
    ones = [bit for bit in range(32) if row >> bit & 1]
    zeros = [bit for bit in range(32) if not row >> bit & 1]
    moved = row ^ (1 << ones[0]) ^ (1 << zeros[0])
    tensors[f"{Q}.mask"][0, 0] = moved - (1 << 32) if moved >> 31 else moved


def swap_kept(tensors):
    tensors[f"{Q}.kept"][[70, 71]] = tensors[f"{Q}.kept"][[71, 70]]


def swap_kept_codes(tensors):
    codes = tensors[f"{Q}.kept_codes"].view(torch.uint8)
    other = next(i for i in range(len(codes)) if codes[i] != codes[0])
    codes[[0, other]] = codes[[other, 0]]


def zero_kept(tensors):
    tensors[f"{Q}.kept"][55] = 0


FAULTS = {
    "flipped bit in codes": Fault("weights", edits(flip_bit)),
    "swapped scales of two rows": Fault("weights", edits(swap_scale_rows)),
    "wrong zero point": Fault("weights", edits(flip_zero)),
    "two linears swapped": Fault("weights", edits(swap_linears)),
    "changed norm weight": Fault("weights", edits(change_norm)),
    "missing tensor": Fault("layout", edits(lambda t: t.pop(NORM))),
    "missing codes": Fault("layout", edits(lambda t: t.pop(f"{Q}.codes"))),
    "extra tensor": Fault("layout", edits(lambda t: t.update(odd=torch.ones(2)))),
    "stale dense tensor": Fault(
        "layout", edits(lambda t: t.update({f"{Q}.weight": torch.ones(64, 64)}))
    ),
    "transposed scale": Fault(
        "layout", edits(lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].T}))
    ),
    "scales of another dtype": Fault(
        "layout", edits(lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].float()}))
    ),
    "truncated shard": Fault("layout", truncate),
    "overlapping tensors": Fault("layout", overlap),
    "index naming a missing shard": Fault(
        "layout", config(lose_shard, INDEX), options={"max_shard_bytes": 20_000}
    ),
    "wrong bits in config": Fault("layout", scheme(bits=8)),
    "wrong group_size in config": Fault("layout", scheme(group_size=64)),
    "wrong grid in config": Fault("layout", scheme(sym=True)),
    "config vocab changed": Fault("layout", config(lambda c: c.update(vocab_size=321))),
    "config of more blocks": Fault("layout", config(lambda c: c.update(num_hidden_layers=10**9))),
    "config of another model": Fault("layout", config(lambda c: c.update(model_type="bert"))),
    "config of another rotation": Fault(
        "logits",
        config(lambda c: c["rope_parameters"].update(rope_theta=500.0)),
    ),
    "config of another norm": Fault("logits", config(lambda c: c.update(rms_norm_eps=0.1))),
    "wrong tokenizer": Fault("tokenizer", config(swap_words, "tokenizer.json")),
    "tokenizer of more words than rows": Fault("tokenizer", config(add_word, "tokenizer.json")),
    "broken tokenizer": Fault(
        "tokenizer", lambda folder: (folder.path / "tokenizer.json").write_text("{")
    ),
    "NaN scale": Fault("numbers", set_scale(torch.nan)),
    "denormal scale": Fault("numbers", set_scale(2.0**-20)),
    "scale of too many bits": Fault("numbers", set_scale(1 + 2.0**-9)),
    "NaN norm": Fault("numbers", edits(lambda t: t[NORM].fill_(torch.nan))),
    "bit behind the last code": Fault(
        "numbers", edits(spare_bit), ("packed", 3, -1, False), {"intermediate_size": 136}
    ),
    "wrong bits in a group": Fault("layout", group(num_bits=8), (CT, 4, 32, False)),
    "dense linear not ignored": Fault(
        "layout", config(lambda c: c["quantization_config"]["ignore"].clear()), (CT, 4, 32, True)
    ),
    "wrong weight_shape": Fault(
        "numbers", edits(lambda t: t[f"{Q}.weight_shape"].add_(1)), (CT, 4, 32, True)
    ),
    "flipped bit of a mask": Fault("numbers", edits(flip_mask_bit), PRUNED),
    "flipped bit of a mask of codes": Fault("numbers", edits(flip_mask_bit), PRUNED_CODES),
    "moved bit of a mask": Fault("weights", edits(move_mask_bit), PRUNED),
    "swapped kept weights": Fault("weights", edits(swap_kept), PRUNED),
    "swapped kept codes": Fault("weights", edits(swap_kept_codes), PRUNED_CODES),
    "kept weight that is zero": Fault("numbers", edits(zero_kept), PRUNED),
    "missing mask": Fault("layout", edits(lambda t: t.pop(f"{Q}.mask")), PRUNED),
    "link out of the folder": Fault("files", link_out),
    "manifest lost": Fault("manifest", lose_manifest),
    "manifest of a later version": Fault(
        "manifest", config(lambda m: m.update(schema_version=2), "manifest.json")
    ),
}
