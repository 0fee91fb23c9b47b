"""A calibration set by its name or path → windows of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.calibrate import documents, tokens
from compress.calibrate.selfgen import Rationale
from compress.calibrate.tokens import Document, Windows
from compress.errors import CalibrationError
from compress.recipe import text_set
from compress.recipe.sections import WRITING
from compress.recipe.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compress.recipe.schema import Calibration, Recipe

# generate(samples, seq_len, seed, **what the set says) -> as `selfgen.Author`
Generate = Callable[..., Tensor]


def load(
    calibration: Calibration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    generate: Generate | None = None,
) -> Windows:
    """Read or write the text of a calibration section and cut it into windows.

    Windows of several sets take turns: the first of each, the second of each, and so on.

    Args:
        calibration: set, samples, seq_len, seed, and for hub sets revision, split and field. A
            set is a shipped name, a .txt or .jsonl file, or a .yaml file that describes one.
        tokenizer: the teacher's.
        generate: writes text in the teacher's hand, for sets of kind "self".

    Raises:
        CalibrationError: a set is missing, unreadable, not what it should be, or too short.
    """
    if len(calibration.sets) == 1:
        return _read(calibration.parts[0], tokenizer, generate)
    found = []
    for index, part in enumerate(calibration.parts):
        try:
            found.append(_read(part, tokenizer, generate))
        except CalibrationError as error:
            share = f"its share is {part.samples} of {calibration.samples} samples"
            where = text_set.section(calibration)
            raise CalibrationError(f"{where}.set[{index}], {share}: {error}") from error
    return _taking_turns(found)


def _taking_turns(found: Sequence[Windows]) -> Windows:
    """Windows of several kinds as those of one text."""
    ids = torch.empty(sum(len(one.ids) for one in found), found[0].ids.shape[1], dtype=torch.long)
    for kind, one in enumerate(found):
        ids[kind :: len(found)] = one.ids
    revisions = tuple(one.revision if isinstance(one.revision, str) else None for one in found)
    source = " and ".join(one.source for one in found)
    return tokens.whole(ids, source=source, revision=revisions if any(revisions) else None)


def _read(
    calibration: Calibration, tokenizer: PreTrainedTokenizerBase, generate: Generate | None
) -> Windows:
    """The windows of one set."""
    described = text_set.describe(calibration)
    if described["kind"] == "self":
        return _written(calibration, described, generate)
    shuffle = bool(described.get("shuffle", False))
    wanted = None if shuffle else calibration.samples * calibration.seq_len
    source, revision, found = _documents(described, tokenizer)
    ids = tokens.encode(found, tokenizer, wanted=wanted, separator=described.get("separator"))
    return tokens.windows(
        ids, calibration.samples, calibration.seq_len, calibration.seed,
        shuffle=shuffle, source=source, revision=revision,
    )  # fmt: skip


def of_recipe(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, generate: Generate
) -> Windows | None:
    """The windows of a recipe, None when no stage looks at any; a lock's promise is held.

    Raises:
        CalibrationError: as `load`, or the text is not the one that was locked.
    """
    if not recipe.needs_calibration:
        return None
    windows = load(recipe.calibration, tokenizer, generate=generate)
    promised = recipe.resolved.calibration_fingerprint
    if promised not in (None, windows.fingerprint):
        raise CalibrationError(
            f"calibration.set {recipe.calibration.told}: its fingerprint is {windows.fingerprint}, "
            f"the lock says {promised}. The text, the tokenizer or the machine that wrote it has "
            "changed."
        )
    return windows


def texts_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    generate: Generate,
    calibration: Windows | None,
) -> dict[int, Windows]:
    """The windows that stages of a recipe train on, by the stage's place; a lock's promise is held.

    Raises:
        CalibrationError: as `load`, or a text is not the one that was locked.
    """
    promises, found = recipe.resolved.text_fingerprints, dict[int, Windows]()
    for number, (index, spec) in enumerate(recipe.distillations):
        own = spec.text and load(spec.text, tokenizer, generate=generate)
        windows = own or calibration
        if windows is None:
            raise CalibrationError(f"stages[{index}].distill: has no text. Give it one.")
        if number < len(promises) and promises[number] != windows.fingerprint:
            raise CalibrationError(
                f"stages[{index}].distill.text: its fingerprint is {windows.fingerprint}, the lock "
                f"says {promises[number]}. The text, the tokenizer or the machine that wrote it "
                "has changed."
            )
        found[index] = windows
    return found


def _documents(
    described: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, str | None, Iterator[Document]]:
    """Name, commit and documents of a set that is read."""
    field = described.get("field")
    if described["kind"] == "hub":
        dataset, config, split = (described.get(key) for key in ("dataset", "config", "split"))
        records, commit = documents.from_hub(
            str(dataset), config, str(split), described.get("revision")
        )
        source = f"{dataset} ({config or 'default'}, {split})"
        return source, commit, documents.render(records, field, tokenizer, source)
    path = Path(described["path"])
    if path.suffix.lower() == ".jsonl":
        return str(path), None, documents.from_jsonl(path, field, tokenizer)
    if field is not None:
        raise CalibrationError(f"calibration.field: {path} is plain text and has no fields.")
    return str(path), None, documents.from_text(path)


def _written(
    calibration: Calibration, described: Mapping[str, Any], generate: Generate | None
) -> Windows:
    if generate is None:
        raise CalibrationError(
            f"calibration.set: {calibration.told} is written by the teacher, and none is at hand "
            "here. Give a .txt or .jsonl file."
        )
    known = text_set.KEYS["self"] | set(WRITING)
    options = {key: described[key] for key in sorted(known & described.keys())}
    asked = calibration.rationale if isinstance(calibration, Text) else None
    if asked is not None:
        options["rationale"] = Rationale(asked.cue, asked.reason_tokens, asked.answer_tokens)
    found = generate(calibration.samples, calibration.seq_len, calibration.seed, **options)
    source = f"the teacher's own text (seed {calibration.seed})"
    if asked is None:
        return tokens.whole(found, source=source)
    given, reason, answer = 0.0, asked.reason_weight, asked.answer_weight
    weights = torch.tensor([given, reason, answer])[found[1]]
    _check_weights(weights, calibration)
    return dataclasses.replace(tokens.whole(found[0], source=source), weights=weights)


def _check_weights(weights: Tensor, calibration: Calibration) -> None:
    """Check that every window holds something to learn.

    Raises:
        CalibrationError: one does not.
    """
    barren = int((weights[:, 1:].sum(1) == 0).sum())  # no window is asked for its first token
    if barren:
        raise CalibrationError(
            f"rationale: in {barren} of {len(weights)} windows of {calibration.seq_len} tokens "
            "nothing counts, so nothing can be learned from them. Ask for a longer seq_len, or "
            "shorten the prompts."
        )
