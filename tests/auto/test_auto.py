"""From limits to a recipe: what is ruled out, what is tried first, and the file that comes."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from compress import catalogue, library, machine
from compress.auto import owned, trial, wanted
from compress.auto.candidates import candidates
from compress.auto.choosing import Trials, choose
from compress.catalogue import Catalogue, Measurement
from compress.errors import ArtifactError, RecipeError, SolveError, StorageError
from compress.recipe.load import load
from compress.results.choice import (
    FAILED,
    MEETS,
    MISSES,
    NOT_TRIED,
    RULED_OUT,
    UNDECIDED,
    Estimate,
    Trial,
    Wanted,
)
from compress.teacher.folder import open_folder

SOME = ["fp8", "smoke", "w-80mb", "w3-best", "w4-best", "w4g128-gptq", "w8g64-gptq"]
SHORT = (  # for a teacher of 256 positions
    "calibration.set=./text.txt", "calibration.seq_len=32", "evaluate.suite=./suite.yaml",
    "teacher.dtype=float32",
)  # fmt: skip
SUITE = """
version: 1
perplexity: {set: ./text.txt, seq_len: 32, windows: 4}
divergence: {set: ./text.txt, seq_len: 32, windows: 4}
"""
ONE = Measurement(
    "", "pypi:x==1", "quick", ("ab",), 10**8, 4.26, 23.1, 0.1, 0.7, 0.88, 200.0, 600.0, 1100.0,
    2**31, 2, "2026-11-22", "abcdef1", "a processor", "python catalogue.py",
)  # fmt: skip
KL = {"fp8": 0.001, "w-80mb": 0.3, "w3-best": 0.2, "w4-best": 0.05, "w8g64-gptq": 0.002}


@pytest.fixture
def teacher(tiny_tied, tmp_path, monkeypatch):
    """A tiny teacher, few recipes, and what a catalogue could say of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "suite.yaml").write_text(SUITE)
    names = library.names
    monkeypatch.setattr(library, "names", lambda kind: SOME if kind == "recipes" else names(kind))
    measured = {name: replace(ONE, kl_mean=kl) for name, kl in KL.items()}
    monkeypatch.setattr(catalogue, "changed", lambda found: [])
    dense = replace(ONE, size_bytes=4 * 10**8)
    monkeypatch.setattr(catalogue, "read", lambda: Catalogue(dense, measured))
    return open_folder(tiny_tied)


@pytest.fixture
def tried(monkeypatch):
    """Trials that run nothing: `tried.say[recipe]` is what one says, `tried.names` their order."""
    stub = SimpleNamespace(say={}, names=[])

    def carry_out(recipe, folder, *, timed, **how):
        name = folder.name.rpartition("-")[0]
        stub.names.append(name)
        said = stub.say.get(name, Estimate(0.1, 0.08, 0.12))
        if isinstance(said, Exception):
            raise said
        speed = Estimate(100.0, 90.0, 110.0) if timed else None
        return Trial(str(folder), 50_000, said, speed, 1.0)

    monkeypatch.setattr(trial, "carry_out", carry_out)
    return stub


@pytest.fixture
def how(tmp_path):
    return Trials(tmp_path / "work", 3, str(tmp_path / "suite.yaml"), threads=1)


def verdicts(choice):
    return {one.recipe: one.verdict for one in choice.options}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("80MB", 80_000_000), ("80 MB", 80_000_000), ("1.5 gb", 1_500_000_000), ("512 B", 512)],
)
def test_sizes_are_written_as_in_recipes(text, nbytes):
    assert wanted.parse(text, None, None) == (Wanted(nbytes), [])


def test_all_bad_limits_come_at_once():
    _, mistakes = wanted.parse("80", "nan", "-3")
    assert [one.split(":")[0] for one in mistakes] == [
        "--max-size '80'", "--max-kl 'nan'", "--min-speed '-3'",
    ]  # fmt: skip
    _, mistakes = wanted.parse(None, None, None)
    assert mistakes[0].startswith("no limit: at least one says what the student must keep.")
    assert wanted.parse("0 MB", None, None)[1]


def test_how_far_numbers_are_beyond_their_limits():
    limits = Wanted(100, 0.1, 50.0)
    assert wanted.excess(limits, size_bytes=50, kl=0.1, speed=100.0) == 1.0
    assert wanted.excess(limits, size_bytes=50, kl=0.05, speed=25.0) == 2.0
    assert wanted.excess(limits, size_bytes=50, kl=None, speed=100.0) == math.inf
    assert wanted.excess(Wanted(100), size_bytes=50, kl=None, speed=None) == 0.5


def test_plans_rule_out_what_cannot_be_and_say_why(teacher):
    found = {one.name: one for one in candidates(teacher, Wanted(150_000), sets=SHORT)}
    assert found["smoke"].why_not == "proves that everything runs; not for use"
    assert found["w4g128-gptq"].why_not.startswith(
        "quantize.group_size: 128 does not divide in_features 64 of"
    )
    assert found["w8g64-gptq"].why_not.startswith("takes 1")
    assert not found["w4-best"].why_not
    assert found["w4-best"].planned.size_bytes <= 150_000
    with pytest.raises(RecipeError, match="quantise: unknown field"):
        candidates(teacher, Wanted(100_000), sets=("quantise.bits=4",))


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("quantize.bits=99", "quantize.bits: 99 is not one of 2, 3, 4, 8"),
        ("prune.sparsity=7", "prune.sparsity: 7 is out of range"),
    ],
)
def test_what_fits_no_recipe_is_told_of_one_that_has_the_stage(
    teacher, assignment, told, monkeypatch
):
    names, some = library.names, ["depth-75", "sparse-50", "w4-best"]
    monkeypatch.setattr(library, "names", lambda kind: some if kind == "recipes" else names(kind))
    with pytest.raises(RecipeError, match=told):
        candidates(teacher, Wanted(100_000), sets=(assignment,))


def test_what_was_measured_of_a_recipe_before_it_was_changed_says_nothing_of_it(
    teacher, monkeypatch
):
    monkeypatch.setattr(catalogue, "changed", lambda found: ["w4-best"])
    found = {one.name: one.kl for one in candidates(teacher, Wanted(10**9), sets=SHORT)}
    assert (found["w4-best"], found["w3-best"]) == (None, KL["w3-best"])


def test_a_recipe_that_shares_bits_out_is_ruled_out_where_its_narrowest_is_too_large(
    teacher, monkeypatch
):
    monkeypatch.setattr(sys.modules[__name__], "SOME", ["mixed-3.7"])
    (one,) = candidates(teacher, Wanted(10**9), sets=SHORT)
    assert one.planned.at_most
    assert one.planned.least_bytes < one.planned.size_bytes
    (kept,) = candidates(teacher, Wanted(one.planned.least_bytes), sets=SHORT)
    assert not kept.why_not
    (out,) = candidates(teacher, Wanted(one.planned.least_bytes - 1), sets=SHORT)
    assert out.why_not.startswith("takes at least ")


def test_what_surely_fits_is_tried_before_what_may(teacher, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SOME", ["mixed-3.7"])
    (may,) = candidates(teacher, Wanted(10**9), sets=SHORT)
    monkeypatch.setattr(sys.modules[__name__], "SOME", ["mixed-3.7", "w-80mb"])
    limit = Wanted(may.planned.size_bytes - 1)
    assert [one.name for one in candidates(teacher, limit, sets=SHORT)] == ["w-80mb", "mixed-3.7"]
    assert not candidates(teacher, limit, sets=SHORT)[1].why_not


def test_the_closest_to_the_teacher_leads_or_the_smallest_where_only_quality_is_asked(teacher):
    def order(limits):
        return [one.name for one in candidates(teacher, limits, sets=SHORT) if not one.why_not]

    assert order(Wanted(10**9)) == ["fp8", "w8g64-gptq", "w4-best", "w3-best", "w-80mb"]
    by_size = order(Wanted(max_kl=0.1))
    assert by_size.index("w4-best") < by_size.index("w8g64-gptq")
    assert by_size[3:] == ["w3-best", "w-80mb"], (
        "which missed 0.1 in the catalogue, the nearer first"
    )


def test_a_recipe_with_a_budget_gets_the_one_that_is_wanted(teacher):
    (one,) = (c for c in candidates(teacher, Wanted(90_000), sets=SHORT) if c.name == "w-80mb")
    recipe = one.located.recipe
    assert recipe.allocate.parsed.nbytes == 90_000
    assert recipe.evaluate.gates.size_max_bytes == 90_000
    (one,) = (c for c in candidates(teacher, Wanted(max_kl=0.2), sets=SHORT) if c.name == "w-80mb")
    assert one.located.recipe.allocate.parsed.kl_mean == 0.2
    assert one.located.recipe.evaluate.gates.kl_mean_max == 0.2


def test_what_was_measured_with_more_room_is_no_promise(teacher):
    def measured(size):
        found = candidates(teacher, Wanted(size), sets=SHORT)
        return next(one.kl for one in found if one.name == "w-80mb")

    assert measured(10**9) == KL["w-80mb"], "a quarter of the teacher, when measured"
    assert measured(90_000) is None


def test_a_trial_reads_less_and_has_no_gates(teacher, tmp_path):
    (one,) = (c for c in candidates(teacher, Wanted(90_000), sets=SHORT) if c.name == "w-80mb")
    recipe = trial.shortened(one.located.recipe, str(tmp_path / "suite.yaml"))
    assert recipe.calibration.samples == trial.SAMPLES
    assert recipe.allocate.samples == trial.SAMPLES
    assert recipe.evaluate.gates is None
    assert recipe.stages[1] == one.located.recipe.stages[1]
    healed = load(str(library.folder("recipes") / "sparse-70-healed.yaml"))
    short = trial.shortened(healed, "short")
    texts = [spec.text.samples for _, spec in short.distillations]
    assert texts == [trial.TEXT] * 3


def test_a_trial_is_taken_again_only_where_nothing_that_decides_it_has_changed(
    teacher, tried, how, tmp_path, monkeypatch
):
    folders = []

    def tell(**changed):
        (tmp_path / "text.txt").write_text(changed.pop("text", "The quick brown fox. " * 90))
        choice = choose(teacher, Wanted(10**9), replace(how, count=1, **changed), SHORT)
        folders.append(choice.options[0].trial.folder)

    tell()
    tell()
    assert folders[0] == folders[1]
    tell(threads=2)
    tell(device="cuda")
    tell(text="Other words. " * 90)
    monkeypatch.setattr(machine, "code_sha256", lambda: "of a later version")
    tell()
    assert len(set(folders)) == 5


def test_what_lies_in_a_trials_place_and_is_anothers_ends_all_and_says_what_to_remove(
    teacher, tried, how
):
    tried.say = {"fp8": ArtifactError("journal.jsonl: of a run that differs in code.")}
    with pytest.raises(ArtifactError, match="differs in code"):
        choose(teacher, Wanted(10**9), how, SHORT)


def test_an_unfinished_trial_of_another_run_is_told_with_its_remedy(teacher, tmp_path, how):
    recipe = trial.shortened(load("smoke"), how.suite)
    there = tmp_path / "work" / "x.partial"
    there.mkdir(parents=True)
    (there / "mine.txt").write_text("of the user's")
    with pytest.raises(ArtifactError, match=r"x\.partial, or give another --work\."):
        trial.carry_out(
            recipe, there.with_suffix(""), device="cpu", threads=1, watch=None, timed=False
        )


def test_the_interval_of_a_mean_is_students():
    found = trial.interval(0.3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.3])
    assert found.high - found.value == pytest.approx(2.571 * 0.1414 / math.sqrt(6), rel=0.01)
    assert found.low > 0
    assert trial.interval(0.3, [0.3]) == Estimate(0.3, 0.0, math.inf)
    assert trial.interval(0.1, [0.0, 0.2]).low == 0.0
    assert trial.interval(0.1, [0.0, 0.2]).high == pytest.approx(0.1 + 12.706 * 0.1, rel=1e-3)


def test_a_verdict_is_as_sure_as_its_least_sure_limit():
    found = Trial("", 100, Estimate(0.1, 0.08, 0.12), Estimate(50.0, 45.0, 55.0), 1.0)
    told = {
        MEETS: Wanted(100, 0.12, 45.0),
        UNDECIDED: Wanted(100, 0.1, 45.0),
        MISSES: Wanted(99, 0.12, 45.0),
    }
    assert {name: trial.verdict(found, limits) for name, limits in told.items()} == {
        name: name for name in told
    }
    assert trial.verdict(found, Wanted(max_kl=0.07)) == MISSES
    assert trial.verdict(found, Wanted(min_speed=50.0)) == UNDECIDED
    assert trial.verdict(replace(found, speed=None), Wanted(min_speed=1.0)) == MISSES


def test_trials_end_with_the_first_that_surely_keeps_the_limits(teacher, tried, how):
    tried.say = {"fp8": Estimate(0.3, 0.2, 0.4), "w8g64-gptq": Estimate(0.01, 0.009, 0.011)}
    choice = choose(teacher, Wanted(10**9, 0.1), how, SHORT)
    assert tried.names == ["fp8", "w8g64-gptq"]
    assert choice.chosen == choice.nearest == "w8g64-gptq"
    assert list(verdicts(choice).items()) == [
        ("fp8", MISSES), ("w8g64-gptq", MEETS), ("w4-best", NOT_TRIED), ("w3-best", NOT_TRIED),
        ("w-80mb", NOT_TRIED), ("smoke", RULED_OUT), ("w4g128-gptq", RULED_OUT),
    ]  # fmt: skip


def test_of_those_that_may_the_likeliest_is_taken_when_trials_are_used_up(teacher, tried, how):
    tried.say = {
        "fp8": Estimate(0.101, 0.09, 0.112),
        "w8g64-gptq": Estimate(0.098, 0.09, 0.11),
        "w4-best": Estimate(0.095, 0.08, 0.11),
    }
    choice = choose(teacher, Wanted(10**9, 0.1), how, SHORT)
    assert choice.chosen == "w4-best"
    assert verdicts(choice)["w4-best"] == UNDECIDED
    tried.say["w4-best"] = tried.say["w8g64-gptq"] = tried.say["fp8"]
    choice = choose(teacher, Wanted(10**9, 0.1), how, SHORT)
    assert (choice.chosen, choice.nearest) == (None, "fp8"), "its own number is beyond the limit"


def test_a_trial_that_fails_makes_room_for_the_next_and_a_full_disk_ends_all(teacher, tried, how):
    tried.say = {"fp8": SolveError("up_proj: not finite.\nmore")}
    choice = choose(teacher, Wanted(10**9), how, SHORT)
    assert choice.chosen == "w8g64-gptq"
    assert (choice.options[0].verdict, choice.options[0].reason) == (FAILED, "up_proj: not finite.")
    tried.say = {"fp8": StorageError("full")}
    with pytest.raises(StorageError):
        choose(teacher, Wanted(10**9), how, SHORT)


def test_where_nothing_fits_the_smallest_plan_is_the_nearest(teacher, tried, how):
    choice = choose(teacher, Wanted(1000), how, SHORT)
    assert (choice.chosen, tried.names) == (None, [])
    assert choice.nearest == "w3-best"
    assert set(verdicts(choice).values()) == {RULED_OUT}


def test_the_file_is_a_recipe_that_says_how_it_was_picked(teacher, tried, how, tmp_path):
    tried.say = {"fp8": Estimate(0.3, 0.2, 0.4), "w8g64-gptq": Estimate(0.01, 0.009, 0.011)}
    choice = choose(teacher, Wanted(10**9, 0.1, 20.0), how, SHORT)
    text = owned.text(choice, "mine", date="2026-11-22", command="compress apply ./mine.yaml")
    (tmp_path / "mine.yaml").write_text(text)
    recipe = load("./mine.yaml")
    shipped = load("w8g64-gptq")
    assert recipe.stages == shipped.stages
    assert recipe.teacher.model == teacher.name
    assert recipe.calibration.samples == shipped.calibration.samples
    assert recipe.evaluate.gates.limits == {"kl_mean_max": 0.1, "size_max": "1 GB"}
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for said in (
        "picked by compress auto on 2026-11-22.",
        "wanted:  at most 1.00 GB, a mean KL of at most 0.1, at least 20 tokens/s",
        "found:   50.0 kB, KL 0.0100 (0.00900 to 0.0110), 100 (90.0 to 110) tokens/s",
        "others:  fp8: 50.0 kB, KL 0.300 (0.200 to 0.400), 100 (90.0 to 110) tokens/s; misses",
        "run:     compress apply ./mine.yaml",
    ):
        assert said in head
    assert max(map(len, text.splitlines())) <= 100 + len(teacher.name)


def test_a_real_trial_is_a_run_that_is_read_again(teacher, how, monkeypatch):
    from compress import pipeline

    monkeypatch.setitem(globals(), "SOME", ["w3g64-gptq"])
    monkeypatch.setattr(pipeline, "CONSUMERS", ())  # no engine: compiling one takes seconds
    monkeypatch.setattr(pipeline.speed, "timings", lambda folder: None)
    first = choose(teacher, Wanted(10**9, 50.0), how, SHORT)
    assert first.chosen == "w3g64-gptq"
    found = first.options[0].trial
    assert found.size_bytes == first.options[0].planned_size_bytes
    assert found.kl.low < found.kl.value < found.kl.high
    results = json.loads((how.work / found.folder / "results.json").read_text("utf-8"))
    kl = results["divergence"]
    assert sum(kl["window_means"]) / 4 == pytest.approx(kl["kl_mean"])
    monkeypatch.setattr(pipeline, "apply", None)
    assert choose(teacher, Wanted(10**9, 50.0), how, SHORT) == first
    told = []
    monkeypatch.setattr(pipeline.speed, "timings", lambda folder, threads: told.append(threads))
    choose(teacher, Wanted(10**9, min_speed=1.0), how, SHORT)
    assert told == [1] * trial.TIMINGS, "read again, and timed on the threads that were asked for"
