"""lm-eval's multiple-choice tasks, put to one model, every answer kept on disk as it comes."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import texts
import yaml
from paired import Answered

SAY_SECONDS = 30.0


def configs(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The tasks of the folder as lm-eval's configs, their files absolute.

    Raises:
        ValueError: a task that was asked for is not there, or there is none.
    """
    found = {}
    for path in sorted(given.tasks.glob("*.yaml")):
        config = yaml.safe_load(path.read_text("utf-8"))
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = {
            split: str((given.data / file).resolve()) for split, file in files.items()
        }
        found[config["task"]] = config
    wanted = given.only or list(found)
    if unknown := [name for name in wanted if name not in found] or not found:
        raise ValueError(f"--tasks {given.tasks}: {unknown} not there; known: {', '.join(found)}")
    return {name: found[name] for name in wanted}


def asked(
    given: argparse.Namespace, folder: Path, tasks: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What one model answers to every task: its scores, and each item's choice."""
    import torch
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager
    from shared_prefix import Reader

    from compress.artifact.layout import open_artifact
    from compress.surgery.load import tokenizer

    opened: list[Any] = []

    def reader() -> Any:
        if not opened:  # a model whose answers are all kept is not even loaded
            opened.append(Reader(open_artifact(folder), getattr(torch, given.dtype)))
        return opened[0]

    found, model = {}, fingerprint(folder)
    for name, config in tasks.items():
        identity = {"model": model, "dtype": given.dtype, "task": task_fingerprint(config)}
        kept = Kept(given.out / folder.resolve().name / f"{name}.jsonl", identity)
        lm = seen_by_lm_eval(tokenizer(given.teacher), kept, given, reader)
        loaded = TaskManager(include_defaults=False).load([config])
        told = evaluate(lm, loaded, limit=given.limit, bootstrap_iters=0, log_samples=True)
        found[name] = scored(told["results"][name], told["samples"][name])
        print(folder.name, name, found[name]["scores"], flush=True)
        if given.hold:
            held(reader(), tokenizer(given.teacher), config, kept, given)
    return found


def scored(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies by lm-eval, and what was chosen of every item."""
    items = {}
    for sample in samples:
        likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
        choice = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        items[int(sample["doc_id"])] = Answered(choice, bool(sample["acc"]))
    metrics = {name: results.get(f"{name},none") for name in ("acc", "acc_norm")}
    return {"scores": {k: v for k, v in metrics.items() if v is not None}, "items": items}


def seen_by_lm_eval(tokenizer: Any, kept: Kept, given: argparse.Namespace, reader: Any) -> Any:
    """A model as lm-eval wants to see one; `reader()` gives the Reader when one is needed."""
    from lm_eval.api.model import TemplateLM
    from shared_prefix import batches, row_of

    class Shared(TemplateLM):  # type: ignore[misc]
        """Answers all requests of an item at once."""

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=False))

        def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            self.items = [request.doc_id for request in requests]
            return list(super().loglikelihood(requests, disable_tqdm=True))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            of_item: dict[int, list[Any]] = {}
            for item, (_texts, context, continuation) in zip(self.items, requests, strict=True):
                of_item.setdefault(item, []).append((context, continuation))
            rows = {i: row_of(pairs) for i, pairs in of_item.items() if i not in kept.items}
            model = reader() if rows else None  # opened before the clock begins
            watch = Watch(kept.path.stem, rows)
            for batch in batches(rows, given.batch_tokens):
                answers = model.answers([rows[item] for item in batch])
                kept.add(dict(zip(batch, answers, strict=True)))
                watch.say(batch)
            found = {item: iter(kept.items[item]) for item in of_item}
            return [next(found[item]) for item in self.items]

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            raise ValueError("a task wants whole texts; only multiple choice is paired")

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            raise ValueError("a task wants free generation; only multiple choice is paired")

    return Shared()


class Kept:
    """Answers of one model to one task on disk: a line that says of what, then one an item."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Read what is there.

        Raises:
            ValueError: it is of another model or task.
        """
        self.path, self.items = path, dict[int, list[tuple[float, bool]]]()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            path.write_text(json.dumps(identity), "utf-8")
        first, *lines = path.read_text("utf-8").splitlines()
        if json.loads(first) != identity:
            raise ValueError(f"{path}: answers of another model, task or dtype; move them away")
        for line in lines:
            if line.endswith("]}"):  # else it was being written when the run was cut off
                kept = json.loads(line)
                self.items[kept["item"]] = [tuple(answer) for answer in kept["answers"]]

    def add(self, answers: Mapping[int, list[tuple[float, bool]]]) -> None:
        """Keep the answers to some items."""
        self.items |= answers
        lines = (json.dumps({"item": i, "answers": found}) for i, found in answers.items())
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"\n{line}" for line in lines)


class Watch:
    """Says how far a task is, and how fast it goes."""

    def __init__(self, name: str, rows: Mapping[int, Any]) -> None:
        """Begin the clock."""
        self.name, self.sizes = name, {item: len(row.ids) for item, row in rows.items()}
        self.done, self.total = 0, sum(self.sizes.values())
        self.start = self.said = time.perf_counter()

    def say(self, items: Sequence[int]) -> None:
        """Count some items; print a line now and then, and at the end."""
        self.done += sum(self.sizes[item] for item in items)
        now = time.perf_counter()
        if now - self.said > SAY_SECONDS or self.done == self.total:
            speed, self.said = self.done / (now - self.start), now
            left = (self.total - self.done) / speed / 60
            told = f"{self.done:,} of {self.total:,} tokens, {speed:,.0f} a second"
            print(f"  {self.name}: {told}, {left:.1f} min left", flush=True)


def held(
    reader: Any, tokenizer: Any, config: Mapping[str, Any], kept: Kept, given: argparse.Namespace
) -> None:
    """Print how far kept log-likelihoods are from those of lm-eval's own Hugging Face reader."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = HFLM(pretrained=reader.model, tokenizer=tokenizer, batch_size=1)
    loaded = TaskManager(include_defaults=False).load([config])
    found = evaluate(theirs, loaded, limit=given.hold, bootstrap_iters=0, log_samples=True)
    gaps = [
        abs(float(wanted[0]) - mine[0])
        for sample in found["samples"][config["task"]]
        for wanted, mine in zip(sample["filtered_resps"], kept.items[sample["doc_id"]], strict=True)
    ]
    told = f"{len(gaps)} log-likelihoods, largest gap {max(gaps):.2e}"
    print(f"  {config['task']}: {told}", flush=True)


def fingerprint(folder: Path) -> str:
    """Of a model: its config and weights."""
    files = sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.gguf")])
    hashes = " ".join(texts.sha256_of_file(path) for path in files)
    return hashlib.sha256(hashes.encode()).hexdigest()


def task_fingerprint(config: Mapping[str, Any]) -> str:
    """Of a task: its config, file names but for their folders, and the files."""
    kwargs = config["dataset_kwargs"]
    files = {split: texts.sha256_of_file(Path(f)) for split, f in kwargs["data_files"].items()}
    told = {**config, "dataset_kwargs": {**kwargs, "data_files": files}}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
