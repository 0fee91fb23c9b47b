"""The fields of the stage `distill`: what is asked of a student, on which text, how it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from compress.recipe.loss import Loss, Share
from compress.recipe.quantize import STRICT
from compress.recipe.sections import Calibration
from compress.recipe.text import OnPolicy, Text

if TYPE_CHECKING:
    from compress.recipe.stages import Stage

Train = Literal["all", "lora", "scales_and_norms", "codes"]
_USUAL: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 1e-3, "lora": {}},
    "scales_and_norms": {"learning_rate": 1e-3},  # scales learn as factors
    # codes in steps of their grids; at the end they come to rest, on one side of what divides two
    "codes": {"learning_rate": 3e-3, "scale_learning_rate": 1e-3, "final_rate": 0.0},
}
_REREAD = 4.0  # times; beyond it a text teaches less each time (Muennighoff et al. 2023)
_TINY, _TINY_EXAM = 16_384, 1_024  # tokens
ROUNDED = ("scales_and_norms", "codes")  # what learns of weights that have become codes
_USED_BY = {
    "scale_learning_rate": ("codes",), "embedding_learning_rate": ROUNDED,
    "weight_decay": ("all", "lora"), "lora": ("lora",),
}  # fmt: skip


class Lora(BaseModel):
    """A correction of each linear of the blocks: a product of two narrow matrices."""

    model_config = STRICT

    rank: int = Field(default=16, ge=1, le=4096, description="How narrow.")
    alpha: int = Field(
        default=32, ge=1, description="The product is multiplied by this over the rank."
    )


class Distill(BaseModel):
    """Train the student on what its teacher says: masks, shapes and layouts stay as they are."""

    model_config = STRICT

    # Fields that others are checked against come first: a validator sees only what stands above.
    train: Train = Field(
        default="all",
        description="`all`: every weight, in float32; in front of `quantize`. `lora`: there, too, "
        "low-rank corrections, merged at the end; needs `peft`. `scales_and_norms`: "
        "scales of integers and weights of norms, behind it; the integers stay. `codes`: the "
        "integers of the blocks, too, rounded in every forward (quantization-aware training); "
        "sixteen bytes of memory a weight.",
    )
    lora: Lora | None = Field(default=None, description="Of `lora`: how large the corrections are.")
    loss: Loss = Field(default=Loss(), description="What is asked of the student.")
    text: Text | None = Field(
        default=None,
        description="The text that both read, with the fields of `calibration`; the recipe's "
        "calibration where it is left out.",
        examples=["{set: wikitext2, samples: 2048, seq_len: 512}"],
    )
    on_policy: OnPolicy | None = Field(
        default=None,
        description="Text that the student writes itself in some steps (GKD).",
        examples=["{share: 0.5, prompt_tokens: 32}"],
    )
    held_out: int = Field(
        default=8,
        validate_default=True,  # against the samples that are there
        ge=1,
        le=10_000,
        description="Last windows of the text, which are not trained on: the KL there decides "
        "which state is kept.",
    )
    steps: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Optimizer steps. This or `epochs`."
    )
    epochs: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="How often the text is read, 1 where neither is given.",
    )
    batch_tokens: int = Field(
        default=4096,
        ge=8,
        le=2**31,
        description="Tokens of one optimizer step, in whole windows; as many pieces as memory asks "
        "for, their gradients added up.",
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        le=10,
        description="Of AdamW, at its peak. The default of `lora` is 0.001, and that of "
        "`scales_and_norms`, where scales learn the factor by which they change. That of `codes` "
        "is 0.003 and in steps of their grids: half a step away another code is nearer.",
    )
    scale_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="With `codes`: that of scales and norms, 0.001 by default.",
    )
    embedding_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="With `scales_and_norms` or `codes`: embedding and head learn, too, at this "
        "rate, where they have stayed floats; null: they stay as they are.",
    )
    warmup: Share = Field(
        default=0.05, description="Share of the steps in which the learning rate rises to its peak."
    )
    final_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1,
        description="Share of the peak to which it then falls, by a cosine; 0 with `codes`.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Of matrices; norms, biases and scales have none."
    )
    clip_norm: float = Field(
        default=1.0, gt=0, description="Largest norm of the gradient of all weights together."
    )
    check_every: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="Steps between two looks at the held-out windows. The state is saved then, for "
        "a run that is cut short.",
    )
    patience: int | None = Field(
        default=5,
        ge=1,
        description="Looks without a lower KL after which training ends; null: never.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Decides in which order windows are read; which steps are `on_policy`, and "
        "what is drawn in them; with what `lora` and the matrices of `loss.hidden` begin.",
    )

    @model_validator(mode="before")
    @classmethod
    def _dependent_defaults(cls, data: Any) -> Any:
        found = _USUAL.get(str(data.get("train"))) if isinstance(data, Mapping) else None
        return {**found, **data} if found else data

    @field_validator("scale_learning_rate", "embedding_learning_rate", "weight_decay", "lora")
    @classmethod
    def _is_used(cls, value: Any, info: ValidationInfo) -> Any:
        train = info.data.get("train")
        if value and train and train not in _USED_BY[str(info.field_name)]:
            raise ValueError(f"{train} does not use this field. Leave it out.")
        return value

    @field_validator("on_policy")
    @classmethod
    def _leaves_room(cls, value: OnPolicy | None, info: ValidationInfo) -> OnPolicy | None:
        text = info.data.get("text")
        if value and text and value.prompt_tokens >= text.seq_len:
            raise ValueError(_all_given(value.prompt_tokens, text.seq_len))
        return value

    @field_validator("held_out")
    @classmethod
    def _leaves_some(cls, value: int, info: ValidationInfo) -> int:
        text = info.data.get("text")
        if text and value >= text.samples:
            raise ValueError(_left_none(value, text.samples))
        return value

    @field_validator("epochs")
    @classmethod
    def _excludes(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("steps") is not None:
            raise ValueError(f"{value:g}, but steps is given too. Leave out one of them.")
        return value

    @field_validator("batch_tokens")
    @classmethod
    def _holds_a_window(cls, value: int, info: ValidationInfo) -> int:
        text = info.data.get("text")
        if text and value < text.seq_len:
            raise ValueError(_shorter(value, text.seq_len))
        return value

    @property
    def rates(self) -> dict[str, float]:
        """Every peak of a learning rate by its field; of `loss.hidden` where widths differ."""
        found = {
            "learning_rate": self.learning_rate,
            "scale_learning_rate": self.scale_learning_rate,
            "embedding_learning_rate": self.embedding_learning_rate,
            "loss.hidden.learning_rate": self.loss.hidden and self.loss.hidden.learning_rate,
        }
        return {name: rate for name, rate in found.items() if rate}

    def steps_on(self, windows: int, seq_len: int) -> int:
        """Optimizer steps, given how many windows are trained on."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 1.0) * windows / self.windows_a_step(seq_len)))

    def windows_a_step(self, seq_len: int) -> int:
        """Windows that one optimizer step reads."""
        return max(1, self.batch_tokens // seq_len)

    def cautions(self, windows: int, seq_len: int, learned: int) -> Iterator[str]:
        """What to know where a text is too little for what learns from it.

        Args:
            windows: that are trained on.
            seq_len: tokens of each, and of each that is held out.
            learned: how many numbers learn.
        """
        tokens, held = windows * seq_len, self.held_out * seq_len
        times = self.steps_on(windows, seq_len) * self.windows_a_step(seq_len) / windows
        if times > _REREAD:
            yield (
                f"{tokens:,} tokens are read {times:.1f} times: a text read more than {_REREAD:g} "
                "times is learned by heart. Give more samples, or fewer steps"
            )
        if tokens < _TINY:
            yield (
                f"{learned:,} numbers learn from {tokens:,} tokens: less than {_TINY:,} teach a "
                "student these, not its teacher. Give more samples"
            )
        if held < _TINY_EXAM:
            yield (
                f"{held:,} tokens are held out: less than {_TINY_EXAM:,} hardly tell which state "
                "is best. Raise held_out, and samples with it"
            )


def _left_none(held_out: int, samples: int) -> str:
    """What is wrong where all of the text is held out."""
    return (
        f"{held_out} of {samples} windows are held out, and none is left to train on. Ask for more "
        "samples, or hold out fewer."
    )


def _all_given(prompt_tokens: int, seq_len: int) -> str:
    """What is wrong where a student has nothing to write."""
    return (
        f"prompt_tokens {prompt_tokens} are all of a window of {seq_len}, and nothing is left for "
        "the student to write. Give it fewer."
    )


def _shorter(batch_tokens: int, seq_len: int) -> str:
    """What is wrong where a step holds no window."""
    return (
        f"{batch_tokens} tokens a step are less than one window of {seq_len}. Ask for {seq_len} or "
        "more."
    )


def can_learn(where: str, spec: Distill, before: Sequence[Stage], *, begun: bool) -> None:
    """Check that the stages before one that trains leave what it is to train.

    Args:
        where: what messages call it.
        spec: its fields.
        before: those before it.
        begun: whether the student begins as another model than its teacher.

    Raises:
        ValueError: they do not.
    """
    changing = [s for s in before if s.restructure or s.prune or s.quantize or s.distill]
    rounding = [s for s in before if s.quantize or (s.prune and s.prune.quantize)]
    if not changing and not begun:
        raise ValueError(
            f"{where}: no stage before it changes the teacher, so there is nothing to learn from "
            "it. Put it behind restructure, prune or quantize, or give student.model."
        )
    if spec.train not in ROUNDED and rounding:
        raise ValueError(
            f"{where}.train: {spec.train}, but a stage before it has rounded weights to integers. "
            "Put it in front of that stage, or choose train: scales_and_norms or codes."
        )
    if spec.train == "lora" and any(stage.prune for stage in before):
        raise ValueError(
            f"{where}.train: lora, but a stage before it has pruned weights, and what is merged "
            "would fill their places. Choose train: all."
        )
    if spec.train in ROUNDED and not rounding:
        raise ValueError(
            f"{where}.train: {spec.train}, but no stage before it rounds anything. Put it behind "
            "quantize, or choose train: all."
        )
    if spec.loss.hidden and any(s.rotate and s.rotate.residual != "none" for s in before):
        raise ValueError(
            f"{where}.loss.hidden: rotate has turned the student's hidden states, and they are not "
            "the teacher's any more. Leave out one of them, or use rotate.residual: none."
        )
    for stage in rounding:
        if stage.quantize and stage.quantize.method not in ("gptq", "rtn", "w8a8"):
            raise ValueError(
                f"{where}.train: {spec.train} learns on the grids of gptq, rtn and w8a8, not on "
                f"those of {stage.quantize.method}. Leave out the stage."
            )


def has_text(where: str, spec: Distill, calibration: Calibration | None) -> None:
    """Check the recipe's calibration where a stage trains on it.

    Raises:
        ValueError: it is too short.
    """
    if spec.text or calibration is None:
        return
    if spec.held_out >= calibration.samples:
        raise ValueError(f"{where}.held_out: {_left_none(spec.held_out, calibration.samples)}")
    if spec.on_policy and spec.on_policy.prompt_tokens >= calibration.seq_len:
        wrong = _all_given(spec.on_policy.prompt_tokens, calibration.seq_len)
        raise ValueError(f"{where}.on_policy: {wrong}")
    if spec.batch_tokens < calibration.seq_len:
        raise ValueError(
            f"{where}.batch_tokens: {_shorter(spec.batch_tokens, calibration.seq_len)}"
        )
