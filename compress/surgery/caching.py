"""Keys and values on their way into a cache: seen by calibration, rounded where a student says so.

Our attention functions hand theirs to `cached` before they use them. What they get back is what a
runtime would read from its cache: keys behind the rotation of their positions, those of the newest
token among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compress.anatomy import Block
from compress.errors import ModelError

if TYPE_CHECKING:
    from compress.surgery.walk import Walk

Cache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What keys and values [B, KV, T, D] are once they have been cached."""
_STATE = "_compress_caching"


class _Seen(Exception):  # noqa: N818 - control flow, not an error
    """Raised inside a forward when its keys and values have been seen."""


def attention_of(module: nn.Module, block: Block) -> nn.Module:
    """The module of a filled block that attends."""
    return module.get_submodule(block.attention.removeprefix(block.prefix + "."))


def attach(attention: nn.Module, cache: Cache) -> None:
    """Let an attention module use what a cache makes of its keys and values.

    Raises:
        ModelError: its attention is not computed by a function of ours.
    """
    told = str(getattr(attention.config, "_attn_implementation", None))
    if not told.startswith("compress"):
        raise ModelError(
            f"config.json: a model with attn_logit_softcapping attends by transformers' {told} "
            "function, which rounds no keys and values. Leave out the stage kv_cache."
        )
    vars(attention)[_STATE] = cache


def detach(module: nn.Module) -> None:
    """No attention of a module has a cache any more."""
    for inner in module.modules():
        vars(inner).pop(_STATE, None)


def cached(attention: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention module is to use of its keys and values [B, KV, T, D]."""
    cache: Cache | None = vars(attention).get(_STATE)
    return (keys, values) if cache is None else cache(keys, values)


def states(walk: Walk, index: int, module: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What a filled block would cache of activations [B, T, D]: keys and values [B, KV, T, D].

    Its forward ends there. A cache that was attached is no more.

    Raises:
        ModelError: its attention is not computed by a function of ours.
    """
    seen: list[Tensor] = []

    def see(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        seen.extend((keys, values))
        raise _Seen

    attach(attention_of(module, walk.anatomy.blocks[index]), see)
    try:
        walk.call(index, module, hidden)
    except _Seen:
        keys, values = seen
        return keys, values
    finally:
        detach(module)
    raise ModelError(f"{walk.anatomy.blocks[index].attention}: was not called by its block.")
