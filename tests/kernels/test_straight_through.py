import pytest
import torch

from compress.kernels.activations import Inputs, round_inputs
from compress.kernels.grid import Rounded, fit, round_to_nearest
from compress.kernels.straight_through import Steps, codes, inputs, start, weights

ROWS, COLUMNS, SIZE = 6, 16, 8


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(bits=3, *, sym=True, rows=ROWS):
    weight = draw(rows, COLUMNS).float()
    scale, zero = fit(weight, bits=bits, group_size=SIZE, sym=sym, search="mse")
    return weight, round_to_nearest(weight, scale, zero, bits=bits, sym=sym)


def slow(latent, scale, zero, above, bits, pruned):
    """One weight after another: the weight, and what reaches its latent and its scale."""
    made, by_latent, by_scale = torch.zeros_like(latent), torch.zeros_like(latent), 0 * scale
    for o in range(len(latent)):
        for i in range(latent.shape[1]):
            group, u, g = (o, i // SIZE), float(latent[o, i]), float(above[o, i])
            code = min(max(round(u), 0), 2**bits - 1)  # Python's halves go to even, too
            made[o, i] = (code - float(zero[group])) * scale[group]
            by_scale[group] += g * (code - float(zero[group]))
            slope = g * float(scale[group])
            outwards = (u < -0.5 and slope > 0) or (u > 2**bits - 0.5 and slope < 0)
            by_latent[o, i] = 0 if outwards or pruned[o, i] else slope
    return made, by_latent, by_scale


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_and_gradients_equal_those_made_one_by_one(bits, sign):
    latent = 2 ** (bits - 1) + 2 ** (bits - 1) * draw(ROWS, COLUMNS)  # some are off the grid
    latent[0, :4] = torch.tensor([-0.5, 2**bits - 0.5, 0.5, 1.5])  # its edges, and halves
    scale, above = (
        sign * (draw(ROWS, COLUMNS // SIZE, seed=1).abs() + 0.1),
        draw(ROWS, COLUMNS, seed=2),
    )
    zero = torch.randint(0, 2**bits, scale.shape).byte()
    pruned = draw(ROWS, COLUMNS, seed=3) > 1
    expected = slow(latent, scale, zero, above, bits, pruned)
    latent, scale = latent.requires_grad_(), scale.requires_grad_()
    made = weights(latent, scale, Steps(zero, bits, pruned), dtype=torch.float64)
    made.backward(above)
    for found, slowly in zip((made, latent.grad, scale.grad), expected, strict=True):
        torch.testing.assert_close(found.detach(), slowly, rtol=1e-12, atol=1e-12)
    assert (expected[1] == 0).sum() > pruned.sum()  # some pushed outwards


def test_what_left_its_grid_can_come_back():
    latent = torch.tensor([[-1.0, 8.0]], requires_grad=True)
    steps, scale = Steps(torch.zeros(1, 1).byte(), 3), torch.ones(1, 1)
    weights(latent, scale, steps, dtype=torch.float32).backward(torch.tensor([[-1.0, 1.0]]))
    assert latent.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_a_start_makes_the_weights_that_are_there(bits, sym):
    weight, rounded = matrix(bits, sym=sym)
    moved = rounded.codes.clone()  # as GPTQ might have chosen: not the nearest
    moved[:, 0] = (moved[:, 0].short() + 1).clamp(0, 2**bits - 1).byte()
    other = Rounded(moved, rounded.scale, rounded.zero, bits, SIZE, sym)
    for one, exact in ((rounded, None), (rounded, weight), (other, weight), (other, 1e4 * weight)):
        latent = start(one, exact)
        assert torch.equal(codes(latent, bits).byte(), one.codes)
        made = weights(latent, one.scale, Steps(one.zero, bits), dtype=torch.float32)
        assert torch.equal(made, one.dequantize())
        small = weights(latent, one.scale, Steps(one.zero, bits), dtype=torch.bfloat16)
        assert torch.equal(small, one.dequantize().bfloat16())


def test_a_start_lies_where_the_weight_does_or_between_its_neighbours():
    weight, rounded = matrix()
    moved = rounded.codes.clone()
    moved[:, 0] = (moved[:, 0].short() + 1).clamp(0, 7).byte()
    other = Rounded(moved, rounded.scale, rounded.zero, 3, SIZE, True)
    latent = start(other, weight)
    scale, zero = (t.repeat_interleave(SIZE, 1) for t in (rounded.scale, rounded.zero))
    exact = weight / scale + zero
    near, others = (exact - moved).abs() < 0.48, codes(exact, 3) != moved
    torch.testing.assert_close(latent[near], exact[near])
    assert torch.equal(latent[others], moved[others].float())
    assert 0 < others.sum() < near.sum()


def test_inputs_are_rounded_forward_and_not_back():
    x, how = draw(3, 5, 16).float().requires_grad_(), Inputs("int8")
    rounded, above = inputs(x, how), draw(3, 5, 16, seed=1).float()
    rounded.backward(above)
    assert torch.equal(rounded, round_inputs(x.detach(), how))
    assert torch.equal(x.grad, above)
    assert inputs(x.bfloat16(), how).dtype == torch.bfloat16


def test_codes_that_stay_have_no_gradient_and_scales_do():
    _, rounded = matrix()
    scale = rounded.scale.clone().requires_grad_()
    made = weights(rounded.codes, scale, Steps(rounded.zero, 3), dtype=torch.float32)
    assert torch.equal(made, rounded.dequantize())
    made.sum().backward()
    assert scale.grad.count_nonzero() > 0


def test_any_number_of_rows_at_once_makes_the_same(monkeypatch):
    _, rounded = matrix(rows=11)
    found = []
    for at_once in (1, 3 * COLUMNS, 1 << 18):
        monkeypatch.setattr("compress.kernels.straight_through._AT_ONCE", at_once)
        latent = start(rounded).requires_grad_()
        made = weights(latent, rounded.scale, Steps(rounded.zero, 3), dtype=torch.float32)
        made.backward(draw(11, COLUMNS).float())
        found.append((made.detach(), latent.grad))
    for made, grad in found[1:]:
        assert torch.equal(made, found[0][0])
        assert torch.equal(grad, found[0][1])
