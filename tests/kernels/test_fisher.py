import pytest
import torch

from compress.kernels.fisher import Head, divergence, divergences, draw, left_out, moved, moved_head

N, V, D = 12, 40, 8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def hidden():
    return torch.randn(N, D, generator=generator(1))


@pytest.fixture(params=[None, 3.0], ids=["plain", "capped"])
def head(request):
    weight = torch.randn(V, D, generator=generator(2))
    return Head(weight, torch.randn(V, generator=generator(3)), request.param)


def log_probabilities(hidden, head):
    """The oracle: float64, written as it is meant."""
    z = hidden.double() @ head.weight.double().T + head.bias.double()
    z = z if head.cap is None else torch.tanh(z / head.cap) * head.cap
    return z.log_softmax(-1)


def test_gradients_of_drawn_tokens_are_those_of_autograd(hidden, head):
    drawn = draw(hidden, head, draws=3, generator=generator())
    for tokens, gradient in zip(drawn.tokens, drawn.gradient, strict=True):
        x = hidden.double().requires_grad_()
        log_probabilities(x, head).gather(1, tokens[:, None]).sum().backward()
        assert torch.allclose(gradient.double(), x.grad, atol=1e-5)


def test_a_moved_head_moves_drawn_tokens_as_autograd_says(hidden, head):
    change = 0.1 * torch.randn(V, D, generator=generator(4))
    drawn = draw(hidden, head, draws=2, generator=generator())
    found = moved_head(hidden, head, change, drawn)
    for row, tokens in zip(found, drawn.tokens, strict=True):
        for place in range(N):
            weight = head.weight.double().requires_grad_()
            moving = Head(weight, head.bias, head.cap)
            log_p = log_probabilities(hidden[place : place + 1], moving)[0, tokens[place]]
            (slope,) = torch.autograd.grad(log_p, weight)
            assert float(row[place]) == pytest.approx(float((slope * change).sum()), abs=1e-5)


def test_many_draws_give_the_divergence_of_a_small_change(hidden, head):
    shift = 0.02 * torch.randn(N, D, generator=generator(5))
    before, after = log_probabilities(hidden, head), log_probabilities(hidden + shift, head)
    true = float((before.exp() * (before - after)).sum(-1).mean())
    drawn = draw(hidden, head, draws=20_000, generator=generator())
    moves = (drawn.gradient * shift).sum(-1).sum(-1, keepdim=True)  # one window of N tokens
    assert divergence(moves, N) == pytest.approx(true, rel=0.05)


def test_moved_is_the_inner_product_of_a_change_with_each_windows_gradient():
    inputs = torch.randn(3, 5, 4, generator=generator(6))
    gradient = torch.randn(2, 3, 5, 6, generator=generator(7))
    change = torch.randn(6, 4, generator=generator(8))
    slopes = torch.einsum("sbto,bti->sboi", gradient, inputs)
    assert torch.allclose(moved(inputs, change, gradient), (slopes * change).sum((2, 3)), atol=1e-4)


def test_leaving_inputs_out_is_the_change_that_takes_their_columns():
    inputs = torch.randn(3, 5, 4, generator=generator(6))
    gradient = torch.randn(2, 3, 5, 6, generator=generator(7))
    weight = torch.randn(6, 4, generator=generator(8))
    found = left_out(inputs, weight, gradient, unit=2)
    assert found.shape == (2, 3, 2)
    for unit, columns in enumerate((slice(0, 2), slice(2, 4))):
        change = torch.zeros_like(weight)
        change[:, columns] = -weight[:, columns]
        one = moved(inputs, change, gradient)
        assert torch.allclose(found[..., unit], one, atol=1e-4)
        assert float(divergences(found, 5)[unit]) == pytest.approx(divergence(one, 5), rel=1e-4)
