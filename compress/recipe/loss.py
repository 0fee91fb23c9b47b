"""What is asked of a student: the loss of the stage `distill`."""

from __future__ import annotations

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

from compress.recipe.quantize import STRICT

Share = Annotated[float, Field(ge=0, lt=1)]


def _listed_or_named(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "name"


_Number = Annotated[int, Field(ge=0)]
_Pair = Annotated[tuple[_Number, _Number], Field(strict=False)]
_Pairs = Annotated[tuple[_Pair, ...], Field(strict=False, min_length=1), Tag("list")]
BlockMap = Annotated[
    Annotated[Literal["uniform"], Tag("name")] | _Pairs, Discriminator(_listed_or_named)
]


class Hidden(BaseModel):
    """Hidden states of the student held against its teacher's, behind blocks of both."""

    model_config = STRICT

    measure: Literal["mse", "cosine"] = Field(
        default="mse",
        description="`mse`: each token's squared distance over the squared length of the teacher's "
        "state; `cosine`: one less the cosine between both.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="The mean over tokens and pairs of blocks is added to the loss so many times.",
    )
    blocks: BlockMap = Field(
        default="uniform",
        description="Which blocks stand for each other, from 0 on: pairs of one of the student's "
        "and one of the teacher's, or `uniform`: every block of the student with the one of the "
        "teacher that ends at the same share of its depth.",
        examples=["[[3, 7], [7, 15]]"],
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        le=10,
        description="Of the matrices, one a pair, that carry the student's states to the teacher's "
        "width where that is another; they are gone when training ends.",
    )

    @field_validator("blocks")
    @classmethod
    def _stand_once(
        cls, value: str | tuple[tuple[int, int], ...]
    ) -> str | tuple[tuple[int, int], ...]:
        own = [] if isinstance(value, str) else [pair[0] for pair in value]
        if twice := [block for block in own if own.count(block) > 1]:
            raise ValueError(
                f"block {twice[0]} of the student stands for two of the teacher's. Give it one."
            )
        return value

    def pairs(self, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
        """Blocks that stand for each other, given how many the student and its teacher have."""
        if not isinstance(self.blocks, str):
            return self.blocks
        return tuple((i, max(0, -(-(i + 1) * teacher // student) - 1)) for i in range(student))


class Loss(BaseModel):
    """How far a student is from its teacher, in nats per token over the whole vocabulary."""

    model_config = STRICT

    kind: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = Field(
        default="forward_kl",
        description="`forward_kl` asks the student to expect all that the teacher expects, "
        "`reverse_kl` to expect nothing else, `jensen_shannon` is between them.",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Divides the logits of both; the loss is multiplied by its square.",
    )
    beta: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Of `jensen_shannon`: the teacher's share of the mixture that both are held "
        "against, 0.5 by default. Towards 0 it is forward KL, towards 1 reverse KL.",
    )
    cross_entropy: Share = Field(
        default=0.0,
        description="Share of the loss that is cross-entropy with the text itself; the rest is the "
        "divergence. Where a step is `on_policy` all of it is the divergence.",
    )

    hidden: Hidden | None = Field(
        default=None,
        description="Hidden states beside what is said; the teacher's blocks run beside then.",
        examples=["{measure: cosine, weight: 0.5}"],
    )

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("kind") == "jensen_shannon":
            return {"beta": 0.5, **data}
        return data

    @field_validator("beta")
    @classmethod
    def _is_used(cls, value: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("kind")
        if value is not None and kind not in (None, "jensen_shannon"):
            raise ValueError(
                f"{kind} does not use this field. Leave it out, or choose kind: jensen_shannon."
            )
        return value
