"""The benchmark of pruning: which sides it has, and what its page says. No peer, no model."""

from __future__ import annotations

import sys

import pytest

from compress.recipe.load import load


@pytest.fixture
def request_(tmp_path):
    """The smallest complete command line of prune.py, with a peer."""
    return [
        *("--teacher", str(tmp_path / "teacher"), "--calibration", str(tmp_path / "valid.txt")),
        *("--test", str(tmp_path / "test.txt"), "--peer-python", sys.executable),
        *("--out", str(tmp_path / "out")),
    ]


def sides(bench, request_, windows, *more):
    prune = bench("prune")
    return {
        side.name: side.command
        for side in prune.sides(prune.arguments([*request_, *more]), windows)
    }


def test_every_kind_has_ours_and_the_peer_in_turn_where_it_has_one(bench, request_, tmp_path):
    names = list(sides(bench, request_, tmp_path / "calibration.txt"))
    assert names[:4] == [
        "compress, 50 %", "llm-compressor, 50 %", "compress, 2:4",
        "llm-compressor, 2:4",
    ]  # fmt: skip
    assert names[-2:] == ["compress, 50 % and 4 bits, joint", "compress, 50 %, then 4 bits"]
    assert len(names) == 10


def test_our_sides_are_recipes_that_load(bench, request_, tmp_path):
    windows = tmp_path / "calibration.txt"
    windows.touch()
    for name, command in sides(bench, request_, windows, "--our-samples", "64").items():
        if not name.startswith("compress"):
            continue
        recipe, _ = command[2:4]
        given = [part.removeprefix("--set=") for part in command if part.startswith("--set=")]
        found = load(recipe, given)
        assert found.calibration.samples == 64
        assert found.artifact.format == "compressed-tensors"
        assert found.prunings
        assert bool(found.quantizations) == name.endswith("then 4 bits")


def test_the_peer_is_told_what_ours_is(bench, request_, tmp_path):
    found = sides(bench, request_, tmp_path / "calibration.txt", "--kinds", "2:4", "Wanda 50 %")
    four, wanda = (found[f"llm-compressor, {kind}"] for kind in ("2:4", "Wanda 50 %"))
    assert four[four.index("--pattern") + 1] == "2:4"
    assert wanda[wanda.index("--method") + 1] == "wanda"
    assert four[four.index("--samples") + 1] == "128"


def test_each_kind_is_a_line_below_the_table(bench):
    side = {"perplexity": 30.0, "seconds": 100.0, "peak_memory_bytes": 10}
    other = {"perplexity": 32.0, "seconds": 200.0, "peak_memory_bytes": 20}
    found = bench("prune").compared({"compress, 2:4": side, "llm-compressor, 2:4": other})
    assert found == ["- 2:4: perplexity 30.00 to 32.00, seconds 0.500×, peak memory 0.500×."]
