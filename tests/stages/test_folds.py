"""Halves of one text are every other batch as it is; of several kinds each share holds one."""

from itertools import chain

import pytest
import torch

from compress.stages.folds import folds

SEQ_LEN = 4


def batches(*windows):
    """Batches of so many windows; every token is the number of its window."""
    numbers = torch.arange(sum(windows)).repeat_interleave(SEQ_LEN)[:, None].expand(-1, 3)
    return list(numbers.split([SEQ_LEN * n for n in windows]))


def seen(fold, x):
    return [part[::SEQ_LEN, 0].tolist() for part in fold.of(x)]


def test_one_text_is_halved_by_batches_and_nothing_is_copied():
    x = batches(2, 2, 2, 1)
    for fold, half in zip(folds(x, 1, SEQ_LEN), (x[::2], x[1::2]), strict=True):
        assert all(one is other for one, other in zip(fold.of(x), half, strict=True))
        assert fold.tokens(x) == sum(map(len, half))


def test_a_single_batch_of_one_text_is_not_halved():
    x = batches(5)
    (fold,) = folds(x, 1, SEQ_LEN)
    assert seen(fold, x) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("windows", [(7,), (2, 2, 2, 1), (1,) * 7, (3, 3, 1)])
@pytest.mark.parametrize("kinds", [2, 3])
def test_each_kind_is_a_share_however_windows_are_batched(windows, kinds):
    x = batches(*windows)
    found = folds(x, kinds, SEQ_LEN)
    assert len(found) == kinds
    for kind, fold in enumerate(found):
        assert list(chain(*seen(fold, x))) == list(range(kind, 7, kinds))
        assert fold.tokens(x) == SEQ_LEN * len(range(kind, 7, kinds))


def test_a_kind_of_which_there_is_no_window_has_no_share():
    assert len(folds(batches(2, 1), 5, SEQ_LEN)) == 3
