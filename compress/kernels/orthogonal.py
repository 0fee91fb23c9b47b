"""Orthogonal matrices to turn a model by: Hadamard's, which spread best, and random ones.

Which sizes Hadamard's come in is asked before anything runs, so torch is imported on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import Generator, Tensor


def hadamard_core(size: int) -> int | None:
    """The order of the matrix that doubles up to a Hadamard matrix of a size, [size, size].

    It is 1, or one of Paley's: 36 for 576, 28 for 896, 12 for 3,072. None where neither leads
    there; one may exist all the same.
    """
    order = size & -size  # the largest power of two that divides it
    tried = (size // order * 2**k for k in range(order.bit_length()))
    return next((core for core in tried if core == 1 or _paley_prime(core)), None)


def hadamard(size: int, generator: Generator) -> Tensor:
    """A Hadamard matrix over √size whose columns have random signs: [size, size] float64.

    Raises:
        ValueError: none of that size is known here; see `hadamard_core`.
    """
    import torch

    core = hadamard_core(size)
    if core is None:
        raise ValueError(f"no Hadamard matrix of size {size} is made here")
    matrix = torch.ones(1, 1, dtype=torch.float64) if core == 1 else _paley(core)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
    return cast("Tensor", matrix * signs / size**0.5)


def random(size: int, generator: Generator) -> Tensor:
    """An orthogonal matrix of normal numbers made orthogonal: [size, size] float64."""
    import torch

    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return cast("Tensor", torch.linalg.qr(drawn).Q)


def _paley(order: int) -> Tensor:
    """Paley's Hadamard matrix of an order, from which numbers are squares modulo a prime."""
    import torch

    prime = _paley_prime(order)
    squares = {x * x % prime for x in range(1, prime)}
    residues = torch.tensor([0, *(1 if x in squares else -1 for x in range(1, prime))])
    places = torch.arange(prime)
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 0] = 0
    matrix[1:, 1:] = residues[(places[:, None] - places) % prime].double()
    one = torch.eye(prime + 1, dtype=torch.float64)
    if prime % 4 == 3:  # construction I: skew, of order prime + 1
        matrix[1:, 0] = -1
        return matrix + one
    plus, minus = matrix.new_tensor([[1, 1], [1, -1]]), matrix.new_tensor([[1, -1], [-1, -1]])
    return torch.kron(matrix, plus) + torch.kron(one, minus)  # II: symmetric, 2 (prime + 1)


def _paley_prime(order: int) -> int:
    """The prime from which Paley makes a matrix of an order; 0 where there is none."""
    for prime, rest in ((order - 1, 3), (order // 2 - 1, 1)):
        made = prime + 1 if rest == 3 else 2 * (prime + 1)
        if made == order and prime % 4 == rest and _is_prime(prime):
            return prime
    return 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % k for k in range(2, int(number**0.5) + 1))
