"""What arithmetic needs to know beside weights: a family's ways, and the numbers of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from compress.anatomy import Anatomy, longest_window, parallel_residual
from compress.errors import ModelError

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Ways:
    """How one family computes, where families differ. Modules are named as in a block."""

    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")  # of what linears read
    sums: tuple[str, str] | None = None  # norms of what attention and MLP give, before it is added
    centred: bool = False  # norms subtract the mean first, and add a bias
    one_more: bool = False  # norms multiply by one more than their weight
    scaled: bool = False  # embeddings are multiplied by √hidden
    positions: str | None = None  # a table added to embeddings; None: heads are rotated
    first_position: int = 0  # the row of that table for a first token
    by_head: bool = False  # q, k, v of a head lie together, then those of the next
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6)  # where it is told, and what it is else
    activation: tuple[str, str] = ("hidden_act", "silu")
    only: tuple[tuple[str, Any], ...] = ()  # fields, each with the value that is run


_GEMMA = Ways(
    one_more=True, scaled=True, activation=("hidden_act", "gelu_pytorch_tanh"),
    only=(("use_bidirectional_attention", None),),
)  # fmt: skip
_SUMMED = replace(
    _GEMMA,
    norms=("input_layernorm", "pre_feedforward_layernorm"),
    sums=("post_attention_layernorm", "post_feedforward_layernorm"),
    activation=("hidden_activation", "gelu_pytorch_tanh"),
)
WAYS: dict[str, Ways] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), Ways()),
    "gemma": _GEMMA, "gemma2": _SUMMED, "gemma3_text": _SUMMED,
    "gpt2": Ways(
        ("ln_1", "ln_2"), centred=True, positions="transformer.wpe",
        eps=("layer_norm_epsilon", 1e-5), activation=("activation_function", "gelu_new"),
        only=(("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)),
    ),
    "opt": Ways(
        ("self_attn_layer_norm", "final_layer_norm"), centred=True,
        positions="model.decoder.embed_positions", first_position=2,
        eps=("layer_norm_eps", 1e-5), activation=("activation_function", "relu"),
        only=(
            ("do_layer_norm_before", True), ("_remove_final_layer_norm", False),
            ("layer_norm_elementwise_affine", True),
        ),
    ),
    "gpt_neox": Ways(
        centred=True, by_head=True, eps=("layer_norm_eps", 1e-5), activation=("hidden_act", "gelu")
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Shapes and constants."""

    ways: Ways
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    activation: str
    max_tokens: int  # positions that the model knows
    kinds: tuple[str, ...]  # of each block: sliding or full attention
    windows: tuple[int | None, ...]  # of each block: how far back attention sees, None for all
    parallel: bool  # attention and MLP of a block read the same
    embedding_scale: float
    query_scale: float  # beside 1 / √head_dim
    score_cap: float | None  # scores and logits are bent towards no more than their caps
    logit_cap: float | None


def read_settings(config: Mapping[str, Any], anatomy: Anatomy) -> Settings:
    """Read what the arithmetic needs; widths come from the tensors, which no config can contradict.

    Raises:
        ModelError: a way of computing that is not run here, or a config without its numbers.
    """
    ways = WAYS[anatomy.model_type]
    heads, longest = _heads(config), longest_window(config)
    if heads is None or longest is None:
        missing = "num_attention_heads" if heads is None else "max_position_embeddings"
        raise ModelError(f"config.json: {missing} missing. Fetch the config again.")
    _check(config, anatomy, ways, longest)
    head_dim = _width(anatomy, "q") // heads
    told = _number(config, "query_pre_attn_scalar") if ways.sums else None
    kinds = _kinds(config, len(anatomy.blocks))
    window = config.get("sliding_window", 4096)  # the families' default; null is none
    window = None if window is None else int(window)
    return Settings(
        ways=ways,
        heads=heads,
        kv_heads=_width(anatomy, "k") // head_dim,
        head_dim=head_dim,
        eps=float(config.get(*ways.eps)),
        activation=_activation(config, ways),
        max_tokens=longest,
        kinds=kinds,
        windows=tuple(window if kind == SLIDING else None for kind in kinds),
        parallel=parallel_residual(config),
        embedding_scale=anatomy.hidden_size**0.5 if ways.scaled else 1.0,
        query_scale=(head_dim / told) ** 0.5 if told else 1.0,
        score_cap=_number(config, "attn_logit_softcapping") if ways.sums else None,
        logit_cap=_number(config, "final_logit_softcapping") if ways.sums else None,
    )


def _number(config: Mapping[str, Any], name: str) -> float | None:
    found = config.get(name)
    return None if found is None else float(found)


def _heads(config: Mapping[str, Any]) -> int | None:
    found = config.get("num_attention_heads", config.get("n_head"))
    return int(found) if found else None


def _check(config: Mapping[str, Any], anatomy: Anatomy, ways: Ways, longest: int) -> None:
    """Refuse what a family can be told to do, and is not done here."""
    for name, value in ways.only:
        if config.get(name, value) not in (value, bool(value)):
            raise ModelError(
                f"config.json: {name} {config[name]!r} is not run here. Supported: {value!r}."
            )
    activation = _activation(config, ways)
    if activation not in ACTIVATIONS:
        raise ModelError(
            f"config.json: {ways.activation[0]} {activation!r} is not run here. "
            f"Supported: {', '.join(ACTIVATIONS)}."
        )
    width = anatomy.tensors[anatomy.embedding + ".weight"][1]
    if width != anatomy.hidden_size:
        raise ModelError(
            f"checkpoint: embeddings of width {width} in a model of width {anatomy.hidden_size} "
            "(word_embed_proj_dim) are not run here. Serve it with another engine."
        )
    table = anatomy.tensors[f"{ways.positions}.weight"][0] if ways.positions else None
    if table is not None and table - ways.first_position < longest:
        raise ModelError(
            f"checkpoint: {ways.positions} has {table} rows, too few for {longest} positions. "
            "Fetch it again."
        )


def _activation(config: Mapping[str, Any], ways: Ways) -> str:
    name, default = ways.activation
    found = str(config.get(name) or default)
    # What old configs of Gemma call gelu has always been the other.
    return default if ways.one_more and found == "gelu" else found


def _width(anatomy: Anatomy, role: str) -> int:
    """Numbers that the queries (q) or keys (k) of one token are."""
    found = {
        one.out_features // (3 if one.role == "qkv" else 1)
        for one in anatomy.linears
        if one.role in (role, "qkv")
    }
    if len(found) != 1:
        raise ModelError(
            f"checkpoint: {role} projections of widths {sorted(found)}; all must be equal here."
        )
    return found.pop()


def _kinds(config: Mapping[str, Any], blocks: int) -> tuple[str, ...]:
    """Which attention each block has, by the rules of its family."""
    family = config["model_type"]
    if family == "mistral":
        return (SLIDING,) * blocks
    if family in ("qwen2", "qwen3") and config.get("use_sliding_window", False):
        first, every = int(config.get("max_window_layers", 28)), 0
    elif family in ("gemma2", "gemma3_text"):
        first = 0
        every = 2 if family == "gemma2" else int(config.get("sliding_window_pattern", 6))
    else:
        return (FULL,) * blocks
    told = config.get("layer_types") or [
        SLIDING if i >= first and not (every and (i + 1) % every == 0) else FULL
        for i in range(blocks)
    ]
    if len(told) != blocks or not set(told) <= {SLIDING, FULL}:
        raise ModelError(
            f"config.json: layer_types is not {blocks} of {SLIDING} and {FULL}. "
            "Fetch the config again."
        )
    return tuple(told)
