import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.kernels.masks import best, pruned, share
from compress.kernels.wanda import magnitude, outliers, wanda


@pytest.mark.parametrize(("count", "of"), [(2, 4), (4, 8), (1, 4), (24, 48), (0, 4), (4, 4)])
def test_the_highest_of_every_run_of_neighbours_stay(count, of):
    score = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    mask = best(score, count, of)
    for row in range(5):
        for start in range(0, 48, of):
            run, kept = score[row, start : start + of], mask[row, start : start + of]
            assert int(kept.sum()) == count
            highest = sorted(run.tolist(), reverse=True)[:count]
            assert sorted(run[kept].tolist(), reverse=True) == highest


@pytest.mark.parametrize("count", [0, 1, 17, 239, 240])
def test_the_highest_of_all_stay(count):
    score = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    kept = score[best(score, count)]
    assert sorted(kept.tolist()) == sorted(score.flatten().tolist())[240 - count :]
    assert int(best(torch.ones(5, 48), count).sum()) == count


def test_as_many_stay_where_all_scores_are_equal():
    assert best(torch.zeros(3, 8), 3, 8).sum(1).tolist() == [3, 3, 3]


@given(st.integers(0, 64), st.integers(1, 64), st.lists(st.integers(1, 200), max_size=5))
def test_shares_of_pieces_add_up(count, of, widths):
    count, edges = min(count, of), [0]
    for width in widths:
        edges.append(edges[-1] + width)
    pieces = [share(count, of, a, b) for a, b in itertools.pairwise(edges)]
    assert sum(pieces) == edges[-1] * count // of
    assert all(0 <= kept <= width for kept, width in zip(pieces, widths, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_stays_is_never_zero_and_what_goes_always_is(dtype):
    weight = torch.tensor([[1.0, 0.0, 1e-12, -2.0]])
    mask = torch.tensor([[True, True, True, False]])
    stored = pruned(weight, mask, dtype)
    assert stored.dtype == dtype
    assert torch.equal(stored != 0, mask)
    assert float(stored[0, 1]) == 2.0**-24


def test_wanda_is_magnitude_where_all_inputs_are_alike():
    weight = torch.randn(4, 6)
    assert torch.equal(wanda(weight, torch.ones(6)), magnitude(weight))


def test_wanda_weighs_by_the_norms_of_inputs():
    inputs = torch.randn(100, 6)
    weight = torch.randn(4, 6)
    expected = weight.abs() * inputs.double().square().mean(0).sqrt()
    found = wanda(weight, inputs.square().mean(0))
    assert torch.allclose(found.double(), expected, rtol=1e-5)


def test_outliers_are_counted_over_all_linears_of_a_block():
    weights = {"one": torch.ones(10, 8), "other": torch.ones(10, 4)}
    energies = {"one": torch.ones(8), "other": torch.tensor([1.0, 1.0, 1.0, 3600.0])}
    # scores are 1 but for ten of 60, and their mean is 5.9
    assert outliers(weights, energies, 5.0) == pytest.approx(10 / 120)
    assert outliers(weights, energies, 11.0) == 0
    scores = torch.cat([wanda(w, energies[n]).flatten() for n, w in weights.items()])
    share = float((scores > 0.5 * scores.mean()).float().mean())
    assert outliers(weights, energies, 0.5) == pytest.approx(share)
