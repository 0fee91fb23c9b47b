import pytest
import torch

from compress.kernels.drawing import drawn

SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05])


def counts(n=20_000, **how):
    levels = torch.rand(n, generator=torch.Generator().manual_seed(0))
    found = drawn(SHARES.log().expand(n, 4), levels, **how)
    return torch.bincount(found, minlength=4) / n


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, SHARES),
        ({"top_k": 2}, torch.tensor([0.625, 0.375, 0, 0])),
        ({"top_k": 9}, SHARES),
        ({"top_p": 0.4}, torch.tensor([1.0, 0, 0, 0])),
        ({"top_p": 0.8}, torch.tensor([0.625, 0.375, 0, 0])),
        ({"top_p": 0.81}, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95),
        ({"top_k": 3, "top_p": 0.6}, torch.tensor([0.625, 0.375, 0, 0])),
        ({"temperature": 0.5}, SHARES.square() / SHARES.square().sum()),
    ],
)
def test_tokens_are_drawn_as_often_as_the_model_says(how, expected):
    torch.testing.assert_close(counts(**how), expected, atol=0.015, rtol=0)


def test_a_token_depends_on_its_own_row_alone():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    levels = torch.rand(6, generator=torch.Generator().manual_seed(2))
    together = drawn(logits, levels, top_p=0.9)
    alone = [drawn(logits[i : i + 1], levels[i : i + 1], top_p=0.9) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
