import pytest
import torch

from compress.kernels.orthogonal import hadamard, hadamard_core, random


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("size", "core"),
    [(1, 1), (2, 1), (64, 1), (12, 12), (20, 20), (28, 28), (36, 36), (576, 36), (896, 28)],
)
def test_hadamard_matrices_are_orthogonal_and_flat(size, core):
    found = hadamard(size, draw())
    assert hadamard_core(size) == core
    assert torch.allclose(found @ found.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.abs(), torch.full_like(found, size**-0.5), atol=1e-15)


@pytest.mark.parametrize("size", [768, 960, 1152, 1536, 2048, 2560, 3072, 3584, 4096, 5120, 8192])
def test_widths_of_usual_models_have_one(size):
    assert size % hadamard_core(size) == 0


@pytest.mark.parametrize("size", [3, 6, 50, 92 * 2 + 1])
def test_a_size_that_has_none_is_told_before_and_refused(size):
    assert hadamard_core(size) is None
    with pytest.raises(ValueError, match=f"size {size}"):
        hadamard(size, draw())


def test_random_ones_are_orthogonal():
    found = random(30, draw())
    assert torch.allclose(found.T @ found, torch.eye(30, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("make", [hadamard, random])
def test_a_seed_decides(make):
    assert torch.equal(make(36, draw(1)), make(36, draw(1)))
    assert not torch.equal(make(36, draw(1)), make(36, draw(2)))
