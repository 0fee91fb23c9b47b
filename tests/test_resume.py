import json
import multiprocessing
import os
import shutil
import time

import pytest
import torch

from compress import machine, pipeline
from compress.artifact import manifest, output
from compress.errors import ArtifactError, StorageError
from compress.recipe.load import load

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60
SUITE = """
version: 1
perplexity: {set: ./text.txt, seq_len: 32, windows: 4}
divergence: {set: ./text.txt, seq_len: 32, windows: 4}
"""


class Crash(BaseException):
    """The machine went away: nothing that follows is executed."""


@pytest.fixture
def recipe(tmp_path, monkeypatch, tiny_llama):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "code_sha256", lambda: "code")  # may be edited meanwhile
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "suite.yaml").write_text(SUITE)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 1\n"
        f"teacher: {{model: {tiny_llama}, dtype: float32}}\n"
        f"calibration: {{set: {tmp_path}/text.txt, samples: 8, seq_len: 32}}\n"
        "stages:\n"
        '  - quantize: {method: rtn, bits: 8, group_size: 32, targets: ["*.down_proj"]}\n'
        '  - quantize: {method: gptq, group_size: 32, head: 8, ignore: ["*.down_proj"]}\n'
        f"evaluate: {{suite: {tmp_path}/suite.yaml}}\n"
    )
    return lambda *sets: load(str(path), sets)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def whole(recipe, tmp_path):
    """What an uninterrupted run leaves."""
    pipeline.apply(recipe(), out=tmp_path / "whole")
    return identical(tmp_path / "whole")


def identical(folder):
    """Hashes of what must be the same: weights, config, tokenizer, lock, results."""
    assert not (folder / ".work").exists()
    assert manifest.check_manifest(folder) == []
    return json.loads((folder / "manifest.json").read_text())


def crash_at(monkeypatch, call):
    """Go away at a call of fsync, of which every durable write makes one or two."""
    calls, real = iter(range(1, 10_000)), os.fsync

    def fsync(descriptor):
        if next(calls) == call:
            raise Crash
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.slow
def test_a_run_that_goes_away_at_any_durable_write_ends_in_the_same_bytes(recipe, whole, out):
    survived = 0
    for call in range(1, 500, 6):
        with pytest.MonkeyPatch.context() as patched:
            crash_at(patched, call)
            try:
                pipeline.apply(recipe(), out=out)
                break
            except Crash:
                survived += 1
        if not out.exists():
            pipeline.apply(recipe(), out=out)
        else:  # it went away between its last two steps
            with pytest.raises(ArtifactError, match="exists"):
                pipeline.apply(recipe(), out=out)
        assert identical(out) == whole
        shutil.rmtree(out)
    assert survived > 5


def test_blocks_that_are_finished_are_not_solved_again(recipe, whole, out, monkeypatch):
    def interrupt(progress):
        if (progress.step, progress.done) == ("quantize", 1) and journaled(out) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.apply(recipe(), out=out, watch=interrupt)
    seen = []
    solved = count_solves(monkeypatch)
    pipeline.apply(recipe(), out=out, watch=seen.append)
    assert identical(out) == whole
    assert seen[[p.step for p in seen].index("resume")].detail == "behind stage-1/block-00000"
    assert {name.split(".")[2] for name in solved if name != "lm_head"} == {"1"}


def journaled(out):
    journal = output.beside(out, "partial") / output.JOURNAL
    return len(journal.read_text().splitlines()) if journal.is_file() else 0


def count_solves(monkeypatch):
    from compress.stages.rounding import Rounder

    solved, real = [], Rounder.__call__

    def call(self, linears, *given):
        solved.extend(linear.name for linear in linears)
        return real(self, linears, *given)

    monkeypatch.setattr(Rounder, "__call__", call)
    return solved


@pytest.fixture
def unfinished(recipe, out):
    """A run cut short behind its first stage."""

    def interrupt(progress):
        if journaled(out) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.apply(recipe(), out=out, watch=interrupt)
    return output.beside(out, "partial")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("calibration.samples=7", "calibration: was"),
        ("calibration.seed=1", "recipe.calibration.seed: was 0, is 1"),
        ("artifact.max_shard_size=1MB", "recipe.artifact.max_shard_size: was"),
    ],
)
def test_another_run_is_never_mixed_in_and_says_what_differs(
    recipe, out, unfinished, change, named
):
    before = (unfinished / ".work" / "journal.jsonl").read_bytes()
    with pytest.raises(ArtifactError, match="unfinished run that is not this one") as caught:
        pipeline.apply(recipe(change), out=out)
    assert named in str(caught.value)
    assert (unfinished / ".work" / "journal.jsonl").read_bytes() == before


def test_fresh_starts_over(recipe, out, unfinished, whole, monkeypatch):
    solved = count_solves(monkeypatch)
    pipeline.apply(recipe(), out=out, fresh=True)
    assert len({name.split(".")[2] for name in solved if name != "lm_head"}) == 2
    assert identical(out) == whole


def test_a_shard_that_changed_meanwhile_stops_the_run(recipe, out, unfinished):
    shard = next((unfinished / ".work").glob("stage-0-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="has changed since stage-0"):
        pipeline.apply(recipe(), out=out)


def test_a_deleted_cache_is_made_again(recipe, out, unfinished, whole, tmp_path):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    pipeline.apply(recipe(), out=out)
    assert identical(out) == whole


def test_two_runs_never_work_on_one_output(recipe, out):
    with output.in_the_making(out):
        with pytest.raises(ArtifactError, match="another run is at work there"):
            pipeline.apply(recipe(), out=out)
        assert output.beside(out, "partial").exists()


def test_a_read_only_or_full_disk_in_the_middle_keeps_what_is_finished(
    recipe, out, unfinished, whole, monkeypatch
):
    import safetensors.torch

    def full(*_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(StorageError, match="Read-only file system"):
            pipeline.apply(recipe(), out=out)
    assert journaled(out) > 2
    pipeline.apply(recipe(), out=out)
    assert identical(out) == whole


def _apply(recipe, out, threads):
    machine.code_sha256 = lambda: "code"  # as in this process
    pipeline.apply(recipe, out=out, threads=threads)


@pytest.mark.slow
def test_kill_9_at_random_moments_ends_in_the_same_bytes(recipe, out, whole):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compress.pipeline"])
    for kill in range(5):
        child = context.Process(target=_apply, args=(recipe(), out, torch.get_num_threads()))
        child.start()
        time.sleep(2 + 0.4 * kill)
        child.kill()
        child.join()
        if not out.exists():
            pipeline.apply(recipe(), out=out)
        assert identical(out) == whole
        shutil.rmtree(out)
