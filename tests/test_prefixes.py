"""Runs that begin with the same stages: computed once, and not a byte is different for it."""

import json
import multiprocessing

import pytest

from compress import machine, pipeline
from compress.artifact import manifest
from compress.errors import GivenUp
from compress.evaluate.glance import Hopes
from compress.prefixes import Prefixes, Shared
from compress.results import Divergence

PRUNED = "prune: {method: sparsegpt, sparsity: 0.5}"
STAGES = f"[{{{PRUNED}}}, {{quantize: {{method: gptq, bits: %d, group_size: 32}}}}]"


@pytest.fixture(autouse=True)
def same_code(monkeypatch):
    monkeypatch.setattr(machine, "code_sha256", lambda: "code")  # may be edited meanwhile


def left(folder):
    """Hashes of all that must be the same."""
    assert manifest.check_manifest(folder) == []
    return json.loads((folder / "manifest.json").read_text())


def made(recipe, out, **options):
    return pipeline.apply(recipe, out=out, **options).measured.shared_units


@pytest.mark.slow
def test_a_shared_stage_is_computed_once_and_changes_no_byte(recipe, tmp_path):
    shared = Shared(tmp_path / "shared", 1)
    for bits in (4, 8):
        made(recipe(STAGES % bits), tmp_path / f"alone-{bits}")
    taken = [made(recipe(STAGES % b), tmp_path / f"with-{b}", shared=shared) for b in (4, 8)]
    assert taken == [0, 2]  # blocks
    for bits in (4, 8):
        assert left(tmp_path / f"with-{bits}") == left(tmp_path / f"alone-{bits}")


@pytest.mark.slow
def test_what_decides_a_stage_is_part_of_its_name(recipe, tmp_path):
    shared = Shared(tmp_path / "shared", 1)
    plain = recipe(STAGES % 4)
    variants = [
        recipe(STAGES % 4, "prune.sparsity=0.25"),
        recipe(STAGES % 4, "calibration.samples=4"),
        recipe(STAGES % 4, "evaluate.gates={linear_error_max: 1.0}"),
    ]
    made(plain, tmp_path / "plain", shared=shared, threads=1)
    for number, other in enumerate(variants):
        assert made(other, tmp_path / f"other-{number}", shared=shared, threads=1) == 0
    assert made(plain, tmp_path / "threads", shared=shared, threads=2) == 0


def test_budgets_of_whole_artifacts_look_at_what_is_behind_them(recipe):
    allocated = "[{allocate: {budget: 3 bits}}, {quantize: {group_size: 32}}]"
    first, other = recipe(allocated), recipe(allocated, "artifact.max_shard_size=1MB")
    decided = {"texts": []}
    pair = [
        Prefixes(Shared(None, 1), one, decided, None)._decided_until(0) for one in (first, other)
    ]
    assert pair[0] != pair[1]


@pytest.mark.slow
def test_a_damaged_stage_is_made_anew(recipe, tmp_path):
    shared = Shared(tmp_path / "shared", 1)
    made(recipe(STAGES % 4), tmp_path / "first", shared=shared)
    shard = next(shared.folder.rglob("*block-00001.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert made(recipe(STAGES % 8), tmp_path / "second", shared=shared) == 0
    assert manifest.check_manifest(tmp_path / "second") == []
    assert made(recipe(STAGES % 3), tmp_path / "third", shared=shared) == 2


@pytest.mark.slow
def test_a_run_takes_only_what_it_has_not_finished(recipe, tmp_path):
    shared = Shared(tmp_path / "shared", 1)

    def interrupt(progress):
        if (progress.step, progress.done) == ("prune", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(recipe(STAGES % 4), tmp_path / "out", watch=interrupt)
    made(recipe(STAGES % 8), tmp_path / "other", shared=shared)
    assert made(recipe(STAGES % 4), tmp_path / "out", shared=shared) < 2
    made(recipe(STAGES % 4), tmp_path / "alone")
    assert left(tmp_path / "out") == left(tmp_path / "alone")


def _both(recipe, out, shared, counted):
    from compress.stages import table

    real = table.STAGES["prune"]

    def pruned(student, spec, context):
        if student.finished(0) is None:
            with counted.get_lock():
                counted.value += 1
        return real(student, spec, context)

    table.STAGES["prune"] = pruned
    machine.code_sha256 = lambda: "code"
    made(recipe, out, shared=shared, threads=1)


@pytest.mark.slow
def test_two_runs_at_once_do_not_both_compute_it(recipe, tmp_path):
    shared, context = Shared(tmp_path / "shared", 1), multiprocessing.get_context("spawn")
    counted = context.Value("i", 0)
    recipes = [recipe(STAGES % bits) for bits in (4, 8)]
    both = [
        context.Process(target=_both, args=(one, tmp_path / f"out-{n}", shared, counted))
        for n, one in enumerate(recipes)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert counted.value == 1
    assert all((tmp_path / f"out-{n}" / "manifest.json").is_file() for n in range(2))


@pytest.mark.slow
def test_a_hopeless_student_is_not_judged_and_can_go_on(recipe, tmp_path):
    one, out = recipe(STAGES % 4), tmp_path / "out"
    with pytest.raises(GivenUp, match=r"KL \d\.\d+ nats on the first 32 tokens of text.txt: more "):
        pipeline.apply(one, out=out, hopes=Hopes(kl_mean_max=1e-6))
    assert not out.exists()
    pipeline.apply(one, out=out, hopes=Hopes(kl_mean_max=100.0))
    pipeline.apply(one, out=tmp_path / "alone")
    assert left(out) == left(tmp_path / "alone")


def test_one_that_is_too_large_is_not_even_looked_at(recipe, tmp_path):
    with pytest.raises(GivenUp, match="10 are the most hoped for"):
        pipeline.apply(recipe(STAGES % 4), out=tmp_path / "out", hopes=Hopes(size_bytes_max=10))


def test_a_glance_is_generous():
    def seen(kl):
        return Divergence("text", 32, kl, 0, 0, 1, 0, (), ())

    Hopes(kl_mean_max=0.1).check(seen(0.19))
    Hopes().check(seen(9.0))
    with pytest.raises(GivenUp):
        Hopes(kl_mean_max=0.1).check(seen(0.21))
