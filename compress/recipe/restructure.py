"""The fields of the stage `restructure`: a shape, or what a shape has to reach."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compress.recipe.gates import in_bytes
from compress.recipe.quantize import STRICT
from compress.recipe.walking import SinkTokens, SinkWeight

SHAPES = ("depth", "blocks", "ffn", "heads", "kv_heads", "hidden")
TARGETS = ("keep", "parameters", "size", "decode_latency")
_COUNTS = {"K": 10**3, "M": 10**6, "B": 10**9}
_PART = r"\.(?:[1-9]\d{0,2}|0[1-9]\d?|00[1-9])"  # of one, and not zero
_COUNT = re.compile(rf"([1-9]\d{{0,5}}(?:\.\d{{1,3}})?|0{_PART}) ?(K|M|B)")
_TIMES = re.compile(rf"0?{_PART}x")
_REPAIRING = ("damp_percent", "sink_tokens", "sink_weight", "error_correction")

Share = Annotated[float, Field(gt=0, lt=1)]


def _listed_or_named(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "name"


_Numbers = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1), Tag("list")
]
Blocks = Annotated[
    Annotated[Literal["every_second"] | None, Tag("name")] | _Numbers,
    Discriminator(_listed_or_named),
]


class Restructure(BaseModel):
    """Take whole blocks, heads, channels or width away, and repair what is left."""

    model_config = STRICT

    depth: Share | None = Field(
        default=None, description="Share of the blocks that stay.", examples=[0.75]
    )
    blocks: Blocks = Field(
        default=None,
        description="The blocks that stay: `every_second`, from the first on (DistilBERT's start), "
        "or their numbers, rising. Where nothing else is cut they stay as they are: the default "
        "of `repair` is then `false`, and no text is read.",
        examples=["every_second"],
    )
    ffn: Share | None = Field(
        default=None,
        description="Share of the channels of every MLP that stay, in multiples of 64.",
        examples=[0.75],
    )
    heads: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Query heads that stay in every block; they leave in whole groups, with the "
        "keys and values that they share.",
    )
    kv_heads: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Heads of keys and values in every block: neighbours are merged, and all query "
        "heads stay. 1 makes multi-query attention.",
    )
    hidden: Share | None = Field(
        default=None,
        description="Share of the width of the residual stream that stays, in multiples of 64 that "
        "heads divide, or of 32 or 16 where there is none near it. Heads keep their size. Its "
        "principal directions stay, which takes a tied head off its embedding; with `importance: "
        "activation` the channels that are driven most, and a tied head stays tied.",
        examples=[0.75],
    )
    keep: Share | None = Field(
        default=None,
        description="Share of the weights of the block linears that stay: shapes are searched, and "
        "the one that says most of what the teacher says is made.",
        examples=[0.8],
    )
    parameters: str | None = Field(
        default=None,
        pattern=f"^{_COUNT.pattern}$",
        description="The same, for at most so many parameters in all, such as `100M`.",
        examples=["100M"],
    )
    size: str | None = Field(
        default=None,
        pattern=r"^[1-9]\d{0,5} ?(KB|MB|GB)$",
        description="The same, for an artifact of at most so many bytes, such as `150 MB`, with "
        "all that later stages make of it.",
        examples=["150 MB"],
    )
    decode_latency: str | None = Field(
        default=None,
        pattern=f"^{_TIMES.pattern}$",
        description="The same, for a token that takes at most this share of the teacher's time in "
        "our runtime, such as `0.7x`, measured on shapes.",
        examples=["0.7x"],
    )
    uniform: bool = Field(
        default=True,
        description="Every block keeps as many MLP channels. `false` shares those that `ffn` "
        "leaves out over the blocks, by what they cost: 64 or more each, as many in all. Our "
        "runtime runs such models, no other engine does.",
    )
    repair: bool = Field(
        default=True,
        description="Fit what reads the missing parts to make up for them, in closed form, each "
        "block behind those that were cut before it. `false` only deletes, and merges by the mean.",
    )
    importance: Literal["hessian", "activation", "first_order"] = Field(
        default="hessian",
        description="What stays: `hessian` removes what costs least once the others make up for "
        "it, and the blocks whose loss changes least of what is said; `activation` keeps heads and "
        "channels that are driven most (Minitron), and blocks that turn the stream most "
        "(ShortGPT); `first_order` keeps heads, channels and directions on which most "
        "hangs, by activations times their gradients (LLM-Pruner), and blocks as `hessian` does.",
    )
    error_correction: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Most of the errors of blocks before it that each repair is asked to undo; how "
        "much is decided on text that it was not fitted to.",
    )
    damp_percent: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of itself by which each entry of the Hessian's diagonal is raised; null "
        "decides on text that a repair was not fitted to.",
    )
    sink_tokens: SinkTokens = 2
    sink_weight: SinkWeight = 25.0

    @field_validator(*TARGETS)
    @classmethod
    def _is_the_only_one(cls, value: Any, info: ValidationInfo) -> Any:
        given = [name for name in (*SHAPES, *TARGETS) if info.data.get(name) is not None]
        if value is not None and given:
            raise ValueError(
                f"searches for a shape, and {given[0]} gives one. Leave out one of them."
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("blocks") is not None:
            others = [name for name in (*SHAPES, *TARGETS) if data.get(name) is not None]
            return data if others != ["blocks"] else {"repair": False, **data}
        return data

    @field_validator("blocks")
    @classmethod
    def _are_of_a_model(
        cls, value: str | tuple[int, ...] | None, info: ValidationInfo
    ) -> str | tuple[int, ...] | None:
        if value is not None and info.data.get("depth") is not None:
            raise ValueError("says which blocks stay, and depth how many. Leave out one of them.")
        if isinstance(value, tuple) and list(value) != sorted(set(value)):
            raise ValueError(
                f"{', '.join(map(str, value))} does not rise. Blocks stay in their order, each "
                "once."
            )
        return value

    @field_validator("kv_heads")
    @classmethod
    def _merges_or_removes(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("heads") is not None:
            raise ValueError(
                "merges keys and values, and heads removes them with their queries. Leave out one "
                "of them, or give each a stage."
            )
        return value

    @field_validator("hidden")
    @classmethod
    def _leaves_heads_alone(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("kv_heads") is not None:
            raise ValueError(
                "fits queries, keys and values to a narrower stream, and kv_heads merges them. "
                "Give each a stage."
            )
        return value

    @field_validator("uniform")
    @classmethod
    def _shares_channels_out(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("heads") is not None:
            raise ValueError(
                "false shares out channels of MLPs, and heads leave alike in every block. Leave "
                "out heads, or give it a stage of its own."
            )
        if not value and info.data.get("ffn", 1.0) is None:
            raise ValueError("false shares out the channels that ffn leaves. Give ffn: 0.75, say.")
        return value

    @field_validator(*_REPAIRING)
    @classmethod
    def _is_used(cls, value: Any, info: ValidationInfo) -> Any:  # not called for defaults
        if info.data.get("repair") is False:
            raise ValueError("repair: false does not use this field. Leave out one of them.")
        return value

    @model_validator(mode="after")
    def _asks_for_something(self) -> Restructure:
        if all(getattr(self, name) is None for name in (*SHAPES, *TARGETS)):
            known = ", ".join((*SHAPES, *TARGETS))
            raise ValueError(f"takes nothing away. Give {known}; ffn: 0.75, say.")
        return self

    @model_validator(mode="after")
    def _scores_something(self) -> Restructure:
        scored = self.ffn or self.heads or self.hidden or self.searches
        if self.importance == "first_order" and not scored:
            raise ValueError(
                f"importance first_order scores heads, MLP channels and width, and {self.written} "
                "removes none. Leave it out, or give ffn, heads or hidden."
            )
        return self

    @model_validator(mode="after")
    def _chooses_nothing(self) -> Restructure:
        if self.takes_whole and "importance" in self.model_fields_set:
            raise ValueError(
                "importance says how to choose what stays, and blocks says which. Leave out one of "
                "them."
            )
        return self

    @property
    def takes_whole(self) -> bool:
        """Whether blocks are named, and stay as they are."""
        return not self.repair and set(self.shares) == {"blocks"}

    @property
    def shares(self) -> dict[str, Any]:
        """The shape that is asked for, as `shape.target` takes it; empty where one is searched."""
        given = {name: getattr(self, name) for name in SHAPES}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def turns(self) -> bool:
        """Whether the residual stream is turned, which takes a tied head off its embedding."""
        return self.hidden is not None and self.importance != "activation"

    @property
    def target(self) -> str | None:
        """The field that says what a shape has to reach; None where one is given."""
        return next((name for name in TARGETS if getattr(self, name) is not None), None)

    @property
    def searches(self) -> bool:
        """Whether shapes are tried, and the best is made."""
        return self.target is not None

    def unused(self) -> set[str]:
        """The fields that it does not use as it stands."""
        found = set() if self.repair else set(_REPAIRING)
        return found | ({"importance"} if self.takes_whole else set())

    @property
    def needs_calibration(self) -> bool:
        """Whether it walks the model on text."""
        return not self.takes_whole

    @property
    def most_parameters(self) -> int | None:
        """`parameters` as a number."""
        if self.parameters is None:
            return None
        digits, unit = _COUNT.fullmatch(self.parameters).groups()  # type: ignore[union-attr]
        return int(float(digits) * _COUNTS[unit])

    @property
    def most_bytes(self) -> int | None:
        """`size` as a number."""
        return None if self.size is None else in_bytes(self.size)

    @property
    def most_time(self) -> float | None:
        """`decode_latency` as a share of the teacher's."""
        return None if self.decode_latency is None else float(self.decode_latency[:-1])

    @property
    def written(self) -> str:
        """What is asked for, in a few words."""
        names = [name for name in (*SHAPES, *TARGETS) if getattr(self, name) is not None]
        told = [f"{name} {_told(getattr(self, name))}" for name in names]
        return ", ".join(told + ([] if self.uniform else ["shared out"]))


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
