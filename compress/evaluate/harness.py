"""lm-eval through its own API, over a model that is walked block by block and never held whole."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import library, machine, storage
from compress.anatomy import longest_window
from compress.errors import EvaluationError, ModelError
from compress.recipe import source
from compress.results import Progress, TaskScore, items_fingerprint
from compress.surgery.walk import Watch, Weights, forward, head_of, logits

log = logging.getLogger("compress")
ALGORITHM = 1  # raise it when the same requests get other answers of the same model
_ROUND = 8  # lengths are padded to a multiple, so that few shapes occur
_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Answers:
    """What a model answered: scores, and for each task the choice it made of every item."""

    scores: tuple[TaskScore, ...]
    choices: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Bench:
    """Where and how models answer; the same for teacher and student."""

    tokenizer: Any
    device: str
    dtype: torch.dtype
    cache: Path | None = None  # where the answers of fingerprinted models are kept
    watch: Watch = None

    def ask(
        self,
        weights: Weights,
        ours: Sequence[str],
        theirs: Sequence[str],
        limit: int | None,
        *,
        fingerprint: str | None = None,
    ) -> Answers:
        """Put tasks to a model.

        Args:
            weights: the model.
            ours: tasks that ship with compress.
            theirs: tasks of lm-eval by its own names; they fetch their data from a hub.
            limit: items of each task; None for all.
            fingerprint: of a model that is asked again in later runs; its answers are then kept.

        Raises:
            EvaluationError: as for `check`.
        """
        from lm_eval import evaluate

        names = [*ours, *theirs]
        model, tasks = _streamed(self, weights, fingerprint), _loaded(ours, theirs)
        with _quiet():
            found = evaluate(model, tasks, limit=limit, log_samples=True, bootstrap_iters=100)
            samples = found["samples"]
            scores = tuple(_score(name, found["results"][name], samples[name]) for name in names)
            return Answers(scores, {name: _chosen(samples[name]) for name in names})

    def log_likelihoods(
        self, weights: Weights, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation) of token ids: its log-probability, and is it greedy."""
        order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i])))
        groups = list(_by_length(order, requests))
        batches = [_padded([requests[i] for i in group]) for group in groups]
        states = forward(
            weights, batches, device=self.device, dtype=self.dtype, watch=self._renamed()
        )
        weight, bias = head_of(weights)
        head = weight.to(self.dtype), bias
        answers: dict[int, tuple[float, bool]] = {}
        for group, hidden in zip(groups, states, strict=True):
            for i, row in zip(group, hidden, strict=True):
                answers[i] = _continuation(weights, head, row, *requests[i])
        return [answers[i] for i in range(len(requests))]

    def kept_log_likelihoods(
        self,
        weights: Weights,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        fingerprint: str | None,
    ) -> list[tuple[float, bool]]:
        """`log_likelihoods`, read back where this fingerprint's model was asked the same before."""
        if self.cache is None or fingerprint is None:
            return self.log_likelihoods(weights, requests)
        here = machine.arithmetic(self.device, self.dtype)
        asked = repr((ALGORITHM, fingerprint, here, [(list(c), list(t)) for c, t in requests]))
        path = self.cache / f"answers-{hashlib.sha256(asked.encode()).hexdigest()}.safetensors"
        if (answers := _read(path, len(requests))) is not None:
            return answers
        with storage.locked(path.with_suffix(".lock")):  # another run may be asking
            if (answers := _read(path, len(requests))) is None:
                answers = self.log_likelihoods(weights, requests)
                totals, greedy = (torch.tensor(column) for column in zip(*answers, strict=True))
                storage.write_file(path, {"totals": totals.double(), "greedy": greedy})
        return answers

    def _renamed(self) -> Watch:
        watch = self.watch
        if watch is None:
            return None
        return lambda p: watch(Progress("evaluate", p.done, p.total, p.unit, "tasks"))


def check(ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Find what is wrong with tasks before any long work; `Bench.ask` would find it after.

    Args:
        ours: tasks that ship with compress; only their files are read.
        theirs: tasks of lm-eval; they are loaded, and what they fetch stays in the hub's cache.

    Raises:
        EvaluationError: a task is unknown, cannot be fetched, is a group, or wants free generation.
    """
    for name in ours:
        _task(name)
    if theirs:
        _loaded((), theirs)


def _loaded(ours: Sequence[str], theirs: Sequence[str]) -> Any:
    """Tasks as lm-eval makes them."""
    from lm_eval.tasks import TaskManager

    with _quiet(), _failing_clearly(theirs):
        manager = TaskManager(include_defaults=bool(theirs))  # indexing all its tasks takes seconds
        loaded = manager.load([*(_task(name) for name in ours), *theirs])
    for name in theirs:
        _check_kind(name, loaded["tasks"])
    return loaded


def _check_kind(name: str, tasks: Mapping[str, Any]) -> None:
    """Refuse a name of lm-eval's that is no single task, or a task that no score is read from."""
    if name not in tasks:
        raise EvaluationError(
            f"suite: lm_eval_tasks: {name!r} is a group of tasks. Name those that are wanted: "
            f"{', '.join(sorted(tasks)[:8])}."
        )
    if tasks[name].OUTPUT_TYPE == "generate_until":
        raise EvaluationError(
            f"suite: lm_eval_tasks: {name!r} wants free generation; only scored choices and texts "
            "are supported. Leave it out."
        )


def _read(path: Path, count: int) -> list[tuple[float, bool]] | None:
    """Answers that were kept; None where there are none, or they are not what was written."""
    if not path.is_file():
        return None
    try:
        kept = storage.read_file(path, ["totals", "greedy"])
    except ModelError as error:
        log.warning("%s; the tasks are asked again.", error)
        return None
    totals, greedy = kept["totals"], kept["greedy"]
    if not totals.shape == greedy.shape == (count,):
        log.warning("%s: holds no %d answers; the tasks are asked again.", path, count)
        return None
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def _by_length(
    order: Sequence[int], requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Iterator[list[int]]:
    """Requests of nearly one length, in batches."""
    lengths: dict[int, list[int]] = {}
    for i in order:
        lengths.setdefault(_room(sum(map(len, requests[i])) - 1), []).append(i)
    for length, members in lengths.items():
        size = max(1, _BATCH_TOKENS // length)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def _room(tokens: int) -> int:
    return max(_ROUND, -(-tokens // _ROUND) * _ROUND)


def _padded(requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    rows = [[*context, *continuation][:-1] for context, continuation in requests]
    longest = _room(max(map(len, rows)))  # the last token of a request predicts nothing
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _continuation(
    weights: Weights,
    head: tuple[Tensor, Tensor | None],
    hidden: Tensor,
    context: Sequence[int],
    continuation: Sequence[int],
) -> tuple[float, bool]:
    start = len(context) - 1
    scores = logits(weights, hidden[start : start + len(continuation)], head=head).log_softmax(-1)
    wanted = torch.tensor(continuation)
    total = scores.gather(1, wanted[:, None]).sum()
    return float(total), bool((scores.argmax(-1) == wanted).all())


def _streamed(bench: Bench, weights: Weights, fingerprint: str | None) -> Any:
    """The model as lm-eval wants to see one."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokenizer, longest = bench.tokenizer, longest_window(weights.config) or 2048

    class Streamed(TemplateLM):  # type: ignore[misc]
        """Answers all requests of one kind in one walk."""

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=False))

        def loglikelihood(
            self, requests: Any, disable_tqdm: bool = True
        ) -> list[tuple[float, bool]]:
            return list(super().loglikelihood(requests, disable_tqdm=True))

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            pairs = [(c[-(longest - len(t)) :], t) for _, c, t in requests]
            return bench.kept_log_likelihoods(weights, pairs, fingerprint)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            texts = [self._windows(request.args[0]) for request in requests]
            flat = bench.kept_log_likelihoods(
                weights, [pair for text in texts for pair in text], fingerprint
            )
            scores = iter(flat)
            return [sum(next(scores)[0] for _ in text) for text in texts]

        def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
            rolling = get_rolling_token_windows(
                self.tok_encode(text), self.eot_token_id, min(longest, 2048), 1
            )
            return [make_disjoint_window(window) for window in rolling]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise EvaluationError("a task wants free generation; only scored choices are supported")

    return Streamed()


def _task(name: str) -> dict[str, Any]:
    """A shipped task as lm-eval's config.

    Its data files are made absolute: lm-eval would look for them in the working directory.
    """
    folder = library.folder("eval").parent / "tasks"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise EvaluationError(
            f"suite: tasks: {name!r} does not ship with compress. Known: {known}."
        )
    config = source.mapping(path)
    files = config["dataset_kwargs"]["data_files"]
    config["dataset_kwargs"]["data_files"] = {k: str(folder / v) for k, v in files.items()}
    return config


def _score(name: str, found: Mapping[str, Any], samples: Sequence[Any]) -> TaskScore:
    metric = next(
        (m for m in ("acc", "word_perplexity", "exact_match") if f"{m},none" in found), "acc"
    )
    stderr = found.get(f"{metric}_stderr,none", 0.0)
    answered = _chosen(samples)
    right = [bool(sample["acc"]) for sample in _ordered(samples) if "acc" in sample]
    return TaskScore(
        name, metric, len(samples), float(found[f"{metric},none"]),
        float(stderr) if isinstance(stderr, float) else 0.0,
        fingerprint=items_fingerprint([sample["doc"] for sample in _ordered(samples)]),
        answered=answered, right=tuple(right) if len(right) == len(answered) else (),
    )  # fmt: skip


def _chosen(samples: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The choice of greatest likelihood for every item, in the order of the data."""
    scores = [[float(answer[0]) for answer in sample["filtered_resps"]]
              for sample in _ordered(samples)
              if isinstance(sample["filtered_resps"][0], (tuple, list))]  # fmt: skip
    return tuple(max(range(len(row)), key=row.__getitem__) for row in scores)


def _ordered(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets talk to the terminal; here only progress records do."""
    import datasets

    datasets.disable_progress_bars()
    with machine.logging_from(logging.ERROR, "lm_eval", "lm-eval", "datasets"):
        yield


@contextlib.contextmanager
def _failing_clearly(theirs: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError) as error:  # ValueError: datasets' own, as of splits
        if not theirs:
            raise
        raise EvaluationError(
            f"suite: lm_eval_tasks {', '.join(theirs)}: could not be loaded ({error}). "
            "They need a hub; use --suite quick where there is none."
        ) from error
