"""transformers' own loaders, behind one door: tokenizers, chat templates, GGUF files, whole models.

Run as a module it dequantizes one GGUF file: ``python -m compress.surgery.load FILE FOLDER DTYPE``.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.apart import program
from compress.chat import render
from compress.errors import CalibrationError, ModelError, RunError, StorageError
from compress.storage.text import MAX_TOKENIZER_BYTES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from compress.surgery.walk import Weights

_TEXTS = (".json", ".txt", ".model", ".jinja")


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder; no code from the folder is run.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    for path in folder.glob("*"):
        if path.suffix in _TEXTS and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ModelError(
                f"{path}: larger than {MAX_TOKENIZER_BYTES:,} bytes, so it is no tokenizer's. "
                "Fetch it again."
            )
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises nothing more precise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{folder}: its tokenizer cannot be read ({reason}). Put tokenizer.json beside the "
            "weights."
        ) from error
    return found


_PROBE = "Hello, wörld!\n\tdef f(x):  return 12345 # 你好 🙂"


def spelled_otherwise(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """How one tokenizer differs from another, in words; None where they spell alike."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            found = [vocabulary.get(token, "not there") for vocabulary in (ours, theirs)]
            return f"the token {token[:40]!r} is {found[0]}, and {found[1]} for the teacher"
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(one, name) != getattr(other, name):
            return f"{name} is {getattr(one, name)}, and {getattr(other, name)} for the teacher"
    if one(_PROBE)["input_ids"] != other(_PROBE)["input_ids"]:
        return f"it splits {_PROBE!r} otherwise"
    return None


def chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    *,
    answering: bool = False,
) -> str:
    """Render a conversation with the tokenizer's chat template.

    Args:
        tokenizer: of an instruct model.
        messages: of "role" and "content", oldest first.
        answering: end with the beginning of the assistant's turn.

    Raises:
        CalibrationError: the tokenizer has no template, or the template refuses these messages.
    """
    if not tokenizer.chat_template:
        raise CalibrationError(
            "messages: the teacher's tokenizer has no chat template, so conversations cannot be "
            "rendered. Use a set of plain text, or an instruct teacher."
        )
    special = tokenizer.special_tokens_map
    try:
        template = tokenizer.get_chat_template()
        return render.render(template, messages, answering=answering, special=special)
    except ValueError as error:
        raise CalibrationError(
            f"messages: the teacher's chat template refuses them ({error})."
        ) from error


def materialize(weights: Weights, dtype: torch.dtype) -> Any:
    """The whole model as transformers builds it; weights already in `dtype` stay mapped.

    Args:
        weights: read whole; blockwise work should use `surgery.walk` instead.
        dtype: of parameters and arithmetic.

    Returns:
        A causal language model in evaluation mode, ties restored, taking no gradients.

    Raises:
        ModelError: parameters are missing, or tensors are left over.
    """
    from compress.surgery import caching
    from compress.surgery.rounding import attach
    from compress.surgery.walk import empty_model

    model = empty_model(weights.config, dtype)
    names = set(model.state_dict())
    tensors = weights.outside()
    for block in weights.anatomy.blocks:
        tensors.update(weights.block(block.index))
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
    head = weights.anatomy.head.name + "."  # transformers calls every head lm_head
    state = {k.replace(head, "lm_head.") if k.startswith(head) else k: t for k, t in state.items()}
    left_over = sorted(set(state) - names)
    model.load_state_dict({k: state[k] for k in state.keys() & names}, strict=False, assign=True)
    model.tie_weights()
    missing = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    if missing or left_over:
        raise ModelError(
            f"{weights.anatomy.model_type}: {len(missing)} parameters are missing "
            f"({', '.join(missing[:3])}) and {len(left_over)} tensors are left over "
            f"({', '.join(left_over[:3])}). Fetch the checkpoint again."
        )
    for block in weights.anatomy.blocks:
        rounding = weights.inputs(block.index)
        for linear in block.linears:
            if linear.name in rounding:
                target = model.get_submodule(linear.name)
                attach(target, rounding[linear.name], transposed=linear.transposed)
        if (scales := weights.kv(block.index)) is not None:
            caching.attach(model.get_submodule(block.attention), scales.round)
    return model.requires_grad_(False)


def convert_gguf(gguf: Path, out: Path, dtype: str) -> None:
    """Dequantize a GGUF file into a dense Hugging Face folder: config, tokenizer, safetensors.

    It happens in a process of its own, so that neither the dequantized copies nor the libraries
    stay resident here.

    Args:
        gguf: the file, already checked to be whole.
        out: the folder to make.
        dtype: bfloat16, float16 or float32.

    Raises:
        ModelError: transformers cannot read the file.
        StorageError: the disk refuses what is written.
        RunError: the process was killed, as for lack of memory.
    """
    command, environment = program("compress.surgery.load", str(gguf), str(out), dtype)
    done = subprocess.run(
        command, env={**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode < 0:
        raise RunError(
            f"{gguf}: dequantizing was killed (signal {-done.returncode}). It needs memory: 6 "
            "bytes a weight."
        )
    refusals = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))
    if done.returncode and (refusal := next((r for r in refusals if r in done.stderr), None)):
        raise StorageError(
            f"{out}: cannot be written ({refusal}). Free some space, or set COMPRESS_CACHE."
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"{gguf}: cannot be dequantized ({reason}). Give the Hugging Face folder of the model "
            "instead."
        )


def _convert(gguf: Path, out: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from compress.surgery.walk import empty_model

    logging.disable_progress_bar()
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
    # The loaded model still claims to be quantized and refuses to be saved: it is rebuilt.
    dense = empty_model({**loaded.config.to_dict(), "quantization_config": None}, loaded.dtype)
    dense.load_state_dict(loaded.state_dict(), assign=True)
    dense.tie_weights()
    dense.save_pretrained(out)
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
