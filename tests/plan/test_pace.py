import json

import pytest
from anatomies import headers, job, llama

from compress.plan import pace, work
from compress.plan.footprint import Job
from compress.recipe.load import load

SECONDS = {"teacher": 3.0, "compress": 100.0, "evaluate": 50.0, "time": 4.0, "total": 157.0}


@pytest.fixture(autouse=True)
def _this_processor(monkeypatch):
    monkeypatch.setattr(pace, "processor", lambda: "a processor, 2 cores")


def small(*sets):
    return job("calibration.samples=8", *sets, width=512, hidden=1024, blocks=4, suite="smoke")


def test_without_a_run_nothing_is_claimed(tmp_path):
    found = pace.estimate(tmp_path, small())
    assert found.seconds is None
    assert found.note == "unknown: no run on this machine yet"


def test_a_run_whose_work_nobody_counts_is_as_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "work", lambda _: {"compress": 0.0, "evaluate": 0.0})
    assert pace.estimate(tmp_path, small()).seconds is None


def test_the_same_run_again_takes_as_long(tmp_path):
    pace.remember(tmp_path, small(), SECONDS, device="cpu", threads=2)
    found = pace.estimate(tmp_path, small())
    assert found.seconds == pytest.approx(157)
    assert "from 1 run here with 2 threads" in found.note


def test_twice_the_work_takes_twice_the_time(tmp_path):
    pace.remember(tmp_path, small(), SECONDS, device="cpu", threads=2)
    twice = job("calibration.samples=8", width=512, hidden=1024, blocks=8, suite="smoke")
    assert pace.estimate(tmp_path, twice).steps["compress"] == pytest.approx(200)


def test_runs_elsewhere_or_with_other_threads_tell_nothing(tmp_path, monkeypatch):
    pace.remember(tmp_path, small(), SECONDS, device="cpu", threads=2)
    found = pace.estimate(tmp_path, small(), threads=1)
    assert (found.seconds, found.note) == (None, "unknown: no run with 1 thread here yet")
    assert pace.estimate(tmp_path, small(), device="cuda").seconds is None
    monkeypatch.setattr(pace, "processor", lambda: "another")
    assert pace.estimate(tmp_path, small()).seconds is None


def test_a_step_that_found_its_result_in_a_cache_teaches_nothing(tmp_path):
    pace.remember(tmp_path, small(), SECONDS, device="cpu", threads=2)
    pace.remember(tmp_path, small(), {**SECONDS, "evaluate": 0.2}, device="cpu", threads=2)
    assert pace.estimate(tmp_path, small()).steps["evaluate"] == pytest.approx(50)


def test_a_step_never_taken_leaves_the_time_unknown(tmp_path):
    pace.remember(tmp_path, small(), SECONDS, device="cpu", threads=2)
    found = pace.estimate(tmp_path, small("calibration.set=self"))
    assert found.seconds is None
    assert found.note == "unknown: no run with 2 threads here tells of calibrate yet"


def test_a_download_of_one_run_is_not_expected_of_the_next(tmp_path):
    for seconds in (300.0, 0.4, 0.3):
        run = {**SECONDS, "teacher": seconds}
        pace.remember(tmp_path, small(), run, device="cpu", threads=2)
    assert pace.estimate(tmp_path, small()).steps["teacher"] == pytest.approx(0.4)


def test_many_tiny_runs_push_out_no_large_one(tmp_path):
    large = job("calibration.samples=128", width=2048, hidden=5632, blocks=16, suite="smoke")
    pace.remember(tmp_path, large, {"compress": 4000.0, "evaluate": 900.0}, device="cpu", threads=2)
    for _ in range(30):
        pace.remember(tmp_path, small(), SECONDS, device="cpu", threads=2)
    assert pace.size_class(work.work(large)) > pace.size_class(work.work(small()))
    found = pace.estimate(tmp_path, large)
    assert found.steps["compress"] == pytest.approx(4000)
    assert pace.estimate(tmp_path, small()).steps["compress"] == pytest.approx(100)


def test_a_run_that_stood_still_does_not_move_what_the_others_tell(tmp_path):
    for slow in ({}, {}, {"compress": 9000.0, "time": 2000.0}):
        pace.remember(tmp_path, small(), {**SECONDS, **slow}, device="cpu", threads=2)
    assert pace.estimate(tmp_path, small()).seconds == pytest.approx(157)


def test_runs_of_a_like_amount_tell_before_others_of_its_power_of_ten(tmp_path):
    for blocks, seconds in ((4, 100.0), (40, 500.0)):
        one = job("calibration.samples=8", width=512, hidden=1024, blocks=blocks, suite="smoke")
        pace.remember(tmp_path, one, {**SECONDS, "compress": seconds}, device="cpu", threads=2)
    near = job("calibration.samples=8", width=512, hidden=1024, blocks=36, suite="smoke")
    assert pace.estimate(tmp_path, near).steps["compress"] == pytest.approx(450)


def test_only_the_last_runs_are_kept_and_a_broken_file_is_begun_anew(tmp_path, caplog):
    for number in range(30):
        seconds = {**SECONDS, "compress": 100.0 + number}
        pace.remember(tmp_path, small(), seconds, device="cpu", threads=2)
    runs = json.loads((tmp_path / pace.FILE).read_text())["runs"]
    assert [run["seconds"]["compress"] for run in runs] == [125.0, 126.0, 127.0, 128.0, 129.0]
    (tmp_path / pace.FILE).write_text('{"runs": [{}]}')
    assert pace.estimate(tmp_path, small()).seconds is None
    assert "it is begun anew" in caplog.text


def test_a_full_disk_does_not_fail_a_finished_run(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file, no folder")
    pace.remember(tmp_path / "cache", small(), SECONDS, device="cpu", threads=2)
    assert "will not know how long" in caplog.text


def test_work_follows_tokens_and_solvers():
    gptq = work.work(small())["compress"]
    assert work.work(small("quantize={method: rtn}"))["compress"] < gptq
    assert work.work(small("quantize.sweeps=4"))["compress"] > gptq
    assert work.work(small("quantize.true_sequential=false"))["compress"] > gptq
    first = small("quantize.targets=['model.layers.0.*']")  # nobody walks behind it
    assert work.work(first)["compress"] < gptq / 3
    recipe = load("w4g64-rtn", ["evaluate.suite=none"])
    plain = Job(recipe, headers(llama(512, 1024, 4)), None, 2)
    assert work.work(plain)["evaluate"] == 0
