"""Distil one student with TRL's GKD trainer, timed as ours_distill.py is.

    python -m venv peer && peer/bin/pip install torch==2.13.0 trl==1.16.0
    peer/bin/python trl_distill.py TEACHER STUDENT DATA.safetensors --scratch DIR --dtype amp

Off-policy (lmbda 0) and forward KL (beta 0) at temperature 1: what ours does by default. AdamW,
schedule, clipping, windows and their order are ours. Dtypes: `amp` trains float32 weights with
products in bfloat16 (as ours does), `bfloat16` trains bfloat16 weights, `float32` neither. Prints
one JSON line at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from distilling import BETAS, CLIP, FINAL_RATE, WARMUP, Data, Looks, options, read
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


class InOrder(GKDTrainer):  # type: ignore[misc]
    """The trainer, reading windows as they come."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Looking(TrainerCallback):  # type: ignore[misc]
    """KL(teacher || student) of held-out windows every few steps, logits in float32."""

    def __init__(self, looks: Looks, held: torch.Tensor, teacher: Any, every: int) -> None:
        self.looks, self.held, self.teacher, self.every = looks, held, teacher, every

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """Look before anything is learned, and start the clock."""
        with self.looks.pause():
            self.look(0, model, 0.0)
        self.looks.began, self.looks.paused = Looks().began, 0.0

    def on_step_end(self, _args: Any, state: Any, _control: Any, model: Any, **__: Any) -> None:
        """Look every few steps, and behind the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            seconds = self.looks.seconds
            with self.looks.pause():
                self.look(state.global_step, model, seconds)

    @torch.no_grad()
    def look(self, step: int, model: Any, seconds: float) -> None:
        """Note the mean KL of the held-out windows."""
        model.eval()
        total = sum(self.apart(model, ids[None]) for ids in self.held) / len(self.held)
        model.train()
        self.looks.curve.append((step, seconds, total))

    def apart(self, model: Any, ids: torch.Tensor) -> float:
        """Mean KL of a window: hidden states in bfloat16, logits in float32, as ours are."""
        with torch.autocast("cpu", torch.bfloat16):
            found = [m.base_model(input_ids=ids).last_hidden_state for m in (self.teacher, model)]
        weights = [m.get_output_embeddings().weight.float() for m in (self.teacher, model)]
        pairs = zip(found, weights, strict=True)
        p, q = ((hidden[0].float() @ w.T).log_softmax(-1) for hidden, w in pairs)
        return float((p.exp() * (p - q)).sum(-1).mean())


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch: every token counts."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def config(data: Data, rate: float, look_every: int, scratch: Path, dtype: str, rows: int) -> Any:
    """Ours, in TRL's words."""
    return GKDConfig(
        output_dir=str(scratch), use_cpu=True, bf16=dtype == "amp", lmbda=0.0, beta=0.0,
        temperature=1.0, max_steps=data.steps, per_device_train_batch_size=rows,
        gradient_accumulation_steps=data.a_step // rows, learning_rate=rate,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": FINAL_RATE},
        warmup_steps=round(WARMUP * data.steps), adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        weight_decay=0.0, max_grad_norm=CLIP, save_strategy="no", report_to=[], seed=0,
        logging_steps=look_every, gradient_checkpointing=False, dataloader_num_workers=0,
        max_length=None,
    )  # fmt: skip


def main() -> None:
    """Train, and print the curve."""
    parser = options(__doc__ or "")
    parser.add_argument("--dtype", choices=["amp", "bfloat16", "float32"], default="amp")
    parser.add_argument("--rows", type=int, default=4, help="windows of one forward")
    given = parser.parse_args()
    data, looks = read(given.data), Looks()
    wide = torch.bfloat16 if given.dtype == "bfloat16" else torch.float32
    narrow = torch.float32 if given.dtype == "float32" else torch.bfloat16
    student = AutoModelForCausalLM.from_pretrained(given.student, dtype=wide)
    teacher = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=narrow)
    tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    asked = config(data, given.rate, given.look_every, given.scratch, given.dtype, given.rows)
    rows = Dataset.from_dict({"input_ids": data.rows.tolist()})
    trainer = InOrder(
        model=student, teacher_model=teacher, args=asked, data_collator=collate,
        train_dataset=rows, processing_class=tokenizer,
        callbacks=[Looking(looks, data.held, teacher, given.look_every)],
    )  # fmt: skip
    trainer.train()
    looks.tell(dtype=given.dtype, threads=torch.get_num_threads(), trl=trl.__version__)


if __name__ == "__main__":
    main()
