"""One picture of a model as pure data, read from its config and its tensor names.

Blocks, linears with their roles, which linears share an input, which are fused by serving engines,
shapes and ties. Planning, the walk, surgery, the formats and the runtime all read this picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compress.errors import ModelError
from compress.families import FAMILIES, FUSED, SHARED_INPUT, Family, Role

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
_SIZE_KEYS = (
    "hidden_size", "n_embd", "num_hidden_layers", "n_layer",
    "intermediate_size", "ffn_dim", "n_inner", "vocab_size",
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "n_positions",
)  # fmt: skip
_MAX_SIZE = 2**31
_CHANNELS = {"gpt2": "n_inner", "opt": "ffn_dim"}


@dataclass(frozen=True)
class Linear:
    """One linear by its dotted module name; its weight is stored as ``name + '.weight'``."""

    name: str
    role: Role
    out_features: int
    in_features: int
    block: int | None  # None: the head
    transposed: bool = False
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, biases left out."""
        return self.out_features * self.in_features

    @property
    def shares(self) -> str:
        """Linears of a block with equal values read the same input, so they share one Hessian."""
        return SHARED_INPUT[self.role]

    @property
    def fused(self) -> str | None:
        """Linears of a block with equal values are fused when served and must share one scheme."""
        return FUSED.get(self.role)

    def turned(self, weight: Tensor) -> Tensor:
        """Its weight as [O, I], given as it is stored; or as it is stored, given as [O, I]."""
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class Block:
    """One decoder block: its module prefix and its linears in the order data flows through them."""

    index: int
    prefix: str
    linears: tuple[Linear, ...]

    @property
    def attention(self) -> str:
        """The module that attends: its keys are made by one of its linears."""
        keys = next(linear for linear in self.linears if linear.role in ("k", "qkv"))
        return keys.name.rpartition(".")[0]


@dataclass(frozen=True)
class Anatomy:
    """The picture of one model."""

    model_type: str
    blocks: tuple[Block, ...]
    embedding: str  # module name
    final_norm: str
    head: Linear
    tied: bool  # the head shares the embedding's weight
    hidden_size: int
    vocab_size: int
    tensors: Mapping[str, Shape]  # every stored tensor by its full name

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All block linears, in order."""
        return tuple(linear for block in self.blocks for linear in block.linears)

    @cached_property
    def linear_names(self) -> frozenset[str]:
        """Names of the block linears."""
        return frozenset(linear.name for linear in self.linears)

    @property
    def weights(self) -> int:
        """Weights in the block linears."""
        return sum(linear.weights for linear in self.linears)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the MLP of each block."""
        downs = (linear for linear in self.linears if linear.role == "down")
        return tuple(linear.in_features for linear in downs)

    def outside(self) -> tuple[str, ...]:
        """Names of stored tensors that belong to no block."""
        prefixes = tuple(block.prefix + "." for block in self.blocks)
        return tuple(name for name in self.tensors if not name.startswith(prefixes))

    def inside(self, index: int) -> tuple[str, ...]:
        """Names of stored tensors of one block."""
        prefix = self.blocks[index].prefix + "."
        return tuple(name for name in self.tensors if name.startswith(prefix))


def read(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> Anatomy:
    """Read the anatomy of a model from its ``config.json`` and the shapes of its stored tensors.

    Raises:
        ModelError: the architecture is unknown, a mixture of experts, or its tensors are not those
            of its family.
    """
    _check_sizes(config)
    family = _family(config, tensors)
    blocks = _blocks(family, config, tensors)
    if beyond := [index for index in own_channels(config) if index >= len(blocks)]:
        raise ModelError(
            f"config.json: per_layer_config tells of block {beyond[0]}, and there are "
            f"{len(blocks)}. Fetch the config again."
        )
    embedding = tensors.get(family.embedding + ".weight")
    if embedding is None:
        raise ModelError(
            f"{family.embedding}.weight is missing from the checkpoint: it has no input embedding."
        )
    tied = family.head + ".weight" not in tensors
    vocab, width = tensors.get(family.head + ".weight", embedding)
    head = Linear(family.head, "head", vocab, width, None, bias=family.head + ".bias" in tensors)
    hidden = config.get("hidden_size", config.get("n_embd"))
    return Anatomy(
        str(config["model_type"]), blocks, family.embedding, family.final_norm, head, tied,
        int(hidden or width), embedding[0], dict(tensors),
    )  # fmt: skip


def longest_window(config: Mapping[str, Any]) -> int | None:
    """How many positions a model has; None where its config does not say."""
    found = config.get("max_position_embeddings", config.get("n_positions"))
    return None if found is None else int(found)


def channels_field(config: Mapping[str, Any]) -> str:
    """The field of a family's configs that says how many channels its MLPs have."""
    return _CHANNELS.get(str(config.get("model_type")), "intermediate_size")


def own_channels(config: Mapping[str, Any]) -> dict[int, int]:
    """Channels of the MLPs of blocks that differ from what is said of all; others are not named.

    Raises:
        ModelError: `per_layer_config` is none, or gives blocks something else of their own.
    """
    told, field = config.get("per_layer_config") or {}, channels_field(config)
    if not isinstance(told, Mapping) or not all(map(_numbers_a_block, told)):
        raise ModelError(
            "config.json: per_layer_config is not told block by block. Fetch the config again."
        )
    for number, own in told.items():
        if not isinstance(own, Mapping) or not own.keys() <= {field}:
            found = ", ".join(map(str, own))[:40] if isinstance(own, Mapping) else str(own)[:40]
            raise ModelError(
                f"config.json: per_layer_config gives block {number} its own {found}; blocks may "
                f"differ in {field} only. Choose a model whose blocks are alike."
            )
        _check_size("per_layer_config", own.get(field), 1)
    return {int(number): own[field] for number, own in told.items() if own.get(field) is not None}


def channels_of(config: Mapping[str, Any], block: int) -> int | None:
    """Channels that a config promises the MLP of a block; None where it does not say."""
    return own_channels(config).get(block, config.get(channels_field(config)))


def _numbers_a_block(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(r"[0-9]{1,6}", key) is not None


def kv_heads(config: Mapping[str, Any]) -> int:
    """Heads that keys and values have."""
    queries = config.get("num_attention_heads") or config.get("n_head")
    return int(config.get("num_key_value_heads") or queries or 1)


def kv_width(anatomy: Anatomy, config: Mapping[str, Any]) -> int:
    """Numbers that the keys (or the values) of one token are in one block."""
    heads = config.get("num_attention_heads") or config.get("n_head") or 1
    head_dim = config.get("head_dim") or anatomy.hidden_size // int(heads)
    return kv_heads(config) * int(head_dim)


def parallel_residual(config: Mapping[str, Any]) -> bool:
    """Whether attention and MLP of a block read the same input, and not one behind the other."""
    return bool(config.get("use_parallel_residual", config.get("model_type") == "gpt_neox"))


def adds_plainly(config: Mapping[str, Any]) -> bool:
    """Whether what o and down give is added to the stream as it is, with no norm in between."""
    normed = config.get("model_type") in ("gemma2", "gemma3_text")
    return not normed and bool(config.get("do_layer_norm_before", True))  # OPT-350m norms sums


def norms_before(config: Mapping[str, Any], block: Block) -> dict[str, str]:
    """The norms that make inputs of a block's linears, by what those share; see `Linear.shares`.

    Dividing the weight (and bias) of one divides what the linears read. Left out are norms that
    do more than multiply by their weight, and those of models that normalize sums instead.
    """
    family = FAMILIES[str(config["model_type"])]
    if not config.get("do_layer_norm_before", True):  # OPT-350m
        return {}
    return {shared: f"{block.prefix}.{suffix}" for shared, suffix in family.norms.items()}


def gated(config: Mapping[str, Any]) -> bool:
    """Whether what down reads is proportional to what up gives, channel by channel."""
    return FAMILIES[str(config["model_type"])].gated


def turns(model_type: str) -> bool:
    """Whether a residual stream can be in any basis: norms that subtract a mean know only one."""
    return FAMILIES[model_type].turns


def turning() -> tuple[str, ...]:
    """The families of which `turns` is true."""
    return tuple(name for name, family in FAMILIES.items() if family.turns)


def head_width(block: Block, config: Mapping[str, Any]) -> int | None:
    """Numbers of one head of the values of a block; None where q, k and v are one matrix."""
    value = next((linear for linear in block.linears if linear.role == "v"), None)
    return None if value is None else value.out_features // kv_heads(config)


def untied(anatomy: Anatomy) -> Anatomy:
    """The same model with a head of its own, stored behind all else."""
    if not anatomy.tied:
        return anatomy
    shape = anatomy.tensors[anatomy.embedding + ".weight"]
    tensors = {**anatomy.tensors, anatomy.head.name + ".weight": shape}
    return replace(anatomy, tied=False, tensors=tensors)


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Whole numbers of a reasonable size, before anything is computed from them."""
    for key in (*_SIZE_KEYS, *_EXPERT_KEYS):
        _check_size(key, config.get(key), 0 if key in _EXPERT_KEYS else 1)


def _check_size(key: str, value: object, least: int) -> None:
    if value is not None and not (type(value) is int and least <= value <= _MAX_SIZE):
        found = str(value)[:40]
        raise ModelError(
            f"config.json: {key} is {found!r}; it must be a whole number from {least} to "
            f"{_MAX_SIZE:,}. Fetch the config again."
        )


def _family(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> Family:
    kind = str(config.get("model_type", "<none>"))[:40]
    experts = next((key for key in _EXPERT_KEYS if (config.get(key) or 0) > 1), None)
    if experts or any(".experts." in name for name in tensors):
        found = f"{experts}={config[experts]}" if experts else "tensors named …experts…"
        raise ModelError(
            f"config.json: model_type {kind!r} is a mixture of experts ({found}). Experts are not "
            "calibrated properly yet, so they are refused. Choose a model with dense feed-forward "
            "blocks."
        )
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"config.json: model_type {kind!r} is not supported. Supported: {known}.")
    return FAMILIES[kind]


def _blocks(
    family: Family, config: Mapping[str, Any], tensors: Mapping[str, Shape]
) -> tuple[Block, ...]:
    pattern = re.compile(re.escape(family.block).replace(r"\{i\}", r"([0-9]{1,6})") + r"\.")
    found = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    expected = int(config.get("num_hidden_layers") or config.get("n_layer") or len(found))
    if len(found) != expected or found != set(range(expected)):
        missing = sorted(set(range(min(expected, len(found) + 5))) - found)[:5]
        raise ModelError(
            f"checkpoint: config.json promises {expected} blocks, the tensors hold {len(found)}"
            + (f" (missing: {', '.join(map(str, missing))} …)." if missing else ".")
        )
    return tuple(_block(family, index, tensors) for index in range(expected))


def _block(family: Family, index: int, tensors: Mapping[str, Shape]) -> Block:
    prefix = family.block.format(i=index)
    linears = []
    for suffix, role in family.linears.items():
        name = f"{prefix}.{suffix}"
        shape = tensors.get(name + ".weight")
        if shape is None or len(shape) != 2:
            raise ModelError(
                f"checkpoint: {name}.weight is {'missing' if shape is None else 'not a matrix'}."
            )
        out_features, in_features = reversed(shape) if family.transposed else shape
        bias = name + ".bias" in tensors
        linears.append(
            Linear(name, role, out_features, in_features, index, family.transposed, bias)
        )
    return Block(index, prefix, tuple(linears))
