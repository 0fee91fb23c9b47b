"""What is kept of a distribution is exact, and the KL from it bounds the whole one from below."""

import pytest
import torch

from compress.kernels.divergence import kl
from compress.kernels.topk import divergence, keep

N, V = 6, 40


def made(seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(N, V, generator=g, dtype=torch.float64) for _ in range(2)]


def oracle(p_logits, q_logits, k):
    """Both distributions over k tokens and one more, added up token by token."""
    found = []
    for p, q in zip(p_logits.softmax(-1), q_logits.softmax(-1), strict=True):
        first = p.argsort(descending=True)[:k]
        rest = [i for i in range(V) if i not in set(first.tolist())]
        pairs = [(p[i], q[i]) for i in first] + [(p[rest].sum(), q[rest].sum())] * bool(rest)
        found.append(sum(float(a * (a / b).log()) for a, b in pairs))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 5, 39, 40])
def test_it_is_the_kl_over_k_tokens_and_all_others_as_one(k):
    teacher, student = made()
    found = divergence(keep(teacher, k), student)
    torch.testing.assert_close(found, oracle(teacher, student, k), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_it_is_below_the_whole_kl_by_the_tails_mass_times_the_kl_inside_it(k):
    teacher, student = made(1)
    kept = keep(teacher, k)
    found, whole = divergence(kept, student), kl(teacher, student)
    assert (found <= whole + 1e-6).all()
    inside = [one.scatter(1, kept.ids.long(), -torch.inf) for one in (teacher, student)]
    p, q = (one.log_softmax(-1) for one in inside)
    lost = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(
        whole - found, kept.log_tail.double().exp() * lost, atol=1e-5, rtol=0
    )


def test_with_the_whole_vocabulary_it_is_the_whole_kl():
    teacher, student = made(2)
    kept = keep(teacher, V)
    assert (kept.log_tail == -torch.inf).all()
    torch.testing.assert_close(
        divergence(kept, student), kl(teacher, student), rtol=1e-5, atol=1e-6
    )


def test_a_tail_too_small_for_a_subtraction_is_exact():
    logits = torch.zeros(1, V, dtype=torch.float64)
    logits[0, 0] = 40.0
    expected = torch.tensor([(V - 1) * torch.tensor(-40.0, dtype=torch.float64).exp()])
    found = keep(logits.float(), 1).log_tail.double().exp()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_gradients_are_those_of_differences():
    teacher, student = made(3, scale=0.7)
    kept = keep(teacher, 5)
    assert torch.autograd.gradcheck(lambda x: divergence(kept, x), student.requires_grad_())


def test_shapes():
    kept = keep(made()[0], 5)
    assert (kept.ids.shape, kept.ids.dtype) == ((N, 5), torch.int32)
    assert kept.log_probs.shape == (N, 5)
    assert kept.log_tail.shape == (N,)
    assert (kept.log_probs.diff(dim=1) <= 0).all()
