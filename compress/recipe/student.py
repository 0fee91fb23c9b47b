"""What the student begins as, where that is not its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from compress.recipe.quantize import STRICT

_Count = Annotated[int, Field(ge=1, le=2**31)]


class Sizes(BaseModel):
    """Sizes of a smaller model of the teacher's family; those left out are the teacher's.

    Named as in the ``config.json`` of Llama, whatever the family calls them.
    """

    model_config = STRICT

    num_hidden_layers: _Count | None = Field(default=None, description="Blocks.", examples=[15])
    hidden_size: _Count | None = Field(
        default=None,
        description="Width of the residual stream; the heads divide it.",
        examples=[384],
    )
    intermediate_size: _Count | None = Field(
        default=None, description="Channels of every MLP.", examples=[1024]
    )
    num_attention_heads: _Count | None = Field(
        default=None, description="Query heads of every block; each as wide as the teacher's."
    )
    num_key_value_heads: _Count | None = Field(
        default=None,
        description="Heads of keys and values; where only query heads are given, as many as leave "
        "the teacher's groups as they are.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Sizes:
        if not self.given:
            raise ValueError(f"is empty. Give one or more of {', '.join(type(self).model_fields)}.")
        return self

    @property
    def given(self) -> dict[str, int]:
        """The sizes that it gives, by name."""
        found = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in found if value is not None}


class Student(BaseModel):
    """Another model that the student begins as, to be taught by the teacher."""

    model_config = STRICT

    config: Sizes | None = Field(
        default=None,
        description="A smaller model of the teacher's family, made for the run. This or `model`.",
        examples=["{num_hidden_layers: 15, hidden_size: 384}"],
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="As `teacher.model`; its tokenizer must be the teacher's. A vocabulary that is "
        "only filled up to another length is cut or filled to the teacher's. Read in the teacher's "
        "`dtype`.",
        examples=["HuggingFaceTB/SmolLM2-135M-Instruct"],
    )
    init: Literal["sliced", "fresh"] | None = Field(
        default=None,
        description="Of `config`. `sliced`, the default: blocks of the teacher, evenly spread from "
        "its first to its last, and of each the first heads, MLP channels and channels of the "
        "stream; `restructure` chooses by what counts. `fresh`: numbers drawn as its family draws "
        "them.",
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Of `init: fresh`, 0 by default: decides them."
    )
    revision: str | None = Field(default=None, description="As `teacher.revision`.")
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="As `teacher.sha256`."
    )

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("config") is None:
            return data
        found = {"init": "sliced", **{k: v for k, v in data.items() if v is not None}}
        return {"seed": 0, **found} if found["init"] == "fresh" else found

    @field_validator("model")
    @classmethod
    def _is_one(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("config") is not None:
            raise ValueError(f"{value}, but config is given too. Leave out one of them.")
        return value

    @field_validator("init", "seed", "revision", "sha256")
    @classmethod
    def _is_used(cls, value: Any, info: ValidationInfo) -> Any:
        if "config" not in info.data:  # it is wrong, which is told
            return value
        made, name = info.data["config"] is not None, info.field_name
        if value is not None and made != (name in ("init", "seed")):
            whose = "model" if made else "config"
            raise ValueError(f"belongs to {whose}, which is not given. Leave it out.")
        if name == "seed" and value is not None and info.data.get("init") == "sliced":
            raise ValueError("sliced draws no numbers. Leave it out, or choose init: fresh.")
        return value

    @model_validator(mode="after")
    def _is_some(self) -> Student:
        if self.model is None and self.config is None:
            raise ValueError("holds neither model nor config. Give one of them.")
        return self

    @property
    def told(self) -> str:
        """What it is, in a few words."""
        if self.config is None:
            return str(self.model)
        return ", ".join(f"{name} {value}" for name, value in self.config.given.items())
