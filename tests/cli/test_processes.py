"""One command in several processes: what is refused, and what becomes of a killed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compress.artifact import manifest
from compress.cli import launch
from compress.cli.app import run
from compress.errors import RequestError

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60
ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    "[{restructure: {ffn: 0.5, repair: false}}, "
    "{distill: {text: {set: TEXT, samples: 24, seq_len: 16}, steps: 30, check_every: 3, "
    "batch_tokens: 64, patience: null, learning_rate: 0.003}}, "
    "{quantize: {method: gptq, bits: 4, group_size: 32}}]"
)


@pytest.fixture
def recipe(tmp_path, monkeypatch, tiny_llama):
    """`recipe(stages)`: the path of a recipe that judges nothing."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "text.txt").write_text(TEXT)

    def make(stages=STAGES):
        path = tmp_path / "mine.yaml"
        path.write_text(
            "version: 1\n"
            f"teacher: {{model: {tiny_llama}, dtype: float32}}\n"
            f"calibration: {{set: {tmp_path}/text.txt, samples: 7, seq_len: 32}}\n"
            f"stages: {stages.replace('TEXT', str(tmp_path / 'text.txt'))}\n"
            "evaluate: {suite: none}\n"
        )
        return str(path)

    return make


def test_a_process_knows_which_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launch.member() == launch.Member()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launch.member() == launch.Member()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert launch.member() == launch.Member(3, 4)


def test_accelerate_that_starts_one_process_where_several_were_meant_is_told(monkeypatch, capsys):
    launch.told_alone(launch.Member())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    launch.told_alone(launch.Member(0, 2))
    assert capsys.readouterr().err == ""
    launch.told_alone(launch.Member())
    assert "accelerate launch has started one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("started", "asked", "locked", "count"),
    [(1, None, None, 1), (1, 2, None, 2), (1, None, 3, 3), (1, 2, 3, 2), (2, 2, 3, 2),
     (2, None, 3, 2)],
)  # fmt: skip
def test_a_launcher_decides_then_the_user_then_the_lock(started, asked, locked, count):
    assert launch.wanted(launch.Member(0, started), asked, locked, bounded=False) == count


def test_what_several_processes_cannot_do_is_refused():
    with pytest.raises(RequestError, match="a launcher has started 2 processes already"):
        launch.wanted(launch.Member(0, 2), 3, None, bounded=False)
    with pytest.raises(RequestError, match="--max-memory: is kept by one process"):
        launch.wanted(launch.Member(), 2, None, bounded=True)
    with pytest.raises(RequestError, match="--threads 1: are shared out among 2 processes"):
        launch.processes(2, [], 1)


def test_every_process_needs_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launch.check_devices(2, "cpu")
    launch.check_devices(1, "cuda")
    with pytest.raises(RequestError, match=r"--nproc 2: .* there is 1\. Ask for 1, or"):
        launch.check_devices(2, "cuda")


def test_the_command_refuses_before_anything_is_started(recipe, tmp_path, capsys):
    out = str(tmp_path / "a")
    assert run(["apply", recipe(), "--out", out, "--nproc", "2", "--threads", "1"]) == 2
    assert run(["apply", recipe(), "--out", out, "--nproc", "2", "--max-memory", "2GiB"]) == 2
    assert run(["plan", recipe(), "--nproc", "5"]) == 2
    told = capsys.readouterr().err
    assert "mine.yaml:4" in told
    assert "64 are 4 windows of 16 tokens, which cannot be shared among 5 processes" in told
    assert not list(tmp_path.glob("a*"))


class Command:
    """`compress apply --nproc 2`, read as it speaks."""

    def __init__(self, recipe, out):
        command = [sys.executable, "-m", "compress", "apply", recipe, "--out", str(out)]
        self.out = out
        self.process = subprocess.Popen(
            [*command, "--nproc", "2", "--threads", "2"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def kill(self, rank, *, after):
        """Kill one process once the journal holds so many looks at the held-out windows."""
        journal = self.out.with_name(f"{self.out.name}.partial") / ".work" / "journal.jsonl"
        while not (journal.is_file() and journal.read_text().count("/training") >= after):
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.01)
        os.kill(self._pid(rank), signal.SIGKILL)

    def _pid(self, rank):
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [pid for path in children for pid in path.read_text().split()]
        wanted = f"RANK={rank}".encode()
        return next(
            int(pid) for pid in pids
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        )  # fmt: skip

    def end(self):
        """Exit code, and what was told on stderr."""
        _, told = self.process.communicate(timeout=240)
        return self.process.returncode, told


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on_to_the_same_bytes(
    recipe, tmp_path
):
    whole, out = tmp_path / "whole", tmp_path / "out"
    code, told = Command(recipe(), whole).end()
    assert code == 0, told
    command = Command(recipe(), out)
    command.kill(1, after=2)
    code, told = command.end()
    assert code == 1
    assert "another process of this run has ended" in told or "asked to end (SIGTERM)" in told
    assert "Process 1 of the run was ended by SIGKILL" in told
    assert "the same command goes on from there" in told
    assert not out.exists()
    code, told = Command(recipe(), out).end()
    assert code == 0, told
    assert "resume" in told
    assert manifest.check_manifest(out) == []
    found, wanted = ((one / "manifest.json").read_text() for one in (out, whole))
    assert json.loads(found) == json.loads(wanted)


def test_one_process_has_nothing_to_shard(recipe, tmp_path, capsys):
    assert run(["apply", recipe(), "--out", str(tmp_path / "out"), "--shard"]) == 2
    assert "--shard: one process shares its weights with none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_shards_is_locked_as_one(recipe, tmp_path):
    stages = STAGES.replace("steps: 30", "steps: 3").partition(", {quantize")[0] + "]"
    command = [sys.executable, "-m", "compress", "apply", recipe(stages), "--device", "cpu"]
    asked = [*command, "--nproc", "2", "--shard", "--threads", "2", "--out", str(tmp_path / "out")]
    subprocess.run([*asked, "--set", "artifact.format=dense"], cwd=ROOT, check=True)
    assert "sharded: true" in (tmp_path / "out" / "recipe.lock.yaml").read_text()
    told = json.loads((tmp_path / "out" / "results.json").read_text())["stages"][1]["distilled"]
    assert told["kl_after"] < told["kl_before"]


@pytest.mark.slow
def test_launchers_that_people_know_start_the_same_run(recipe, tmp_path):
    alone = ["-m", "compress", "apply", recipe(STAGES.replace("steps: 30", "steps: 3"))]
    alone += ["--device", "cpu", "--threads", "2"]
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    found = []
    for command in ([*alone, "--nproc", "2"], [*accelerate, *alone], [*torchrun, *alone]):
        out = tmp_path / str(len(found))
        command = [sys.executable, *command, "--out", str(out)]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        found.append(json.loads((out / "manifest.json").read_text()))
        assert "processes: 2" in (out / "recipe.lock.yaml").read_text()
    assert found[0] == found[1] == found[2]
