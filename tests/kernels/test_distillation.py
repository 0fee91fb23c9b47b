import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compress.kernels import distillation as distilling
from compress.kernels.distillation import UNLABELLED, Head, Objective, States, distillation

KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]
N, D, DT, V = 7, 5, 4, 11


def made(dtype=torch.float64, *, n=N, v=V, d=D, bias=True):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    own = [draw(n, d), draw(v, d), draw(v) if bias else None]
    theirs = Head(draw(v, DT), draw(v))
    labels = torch.randint(0, v, (n,), generator=g)
    labels[-1] = UNLABELLED
    counted = torch.arange(n) != 2
    return own, draw(n, DT), theirs, labels, counted


def full(own, said, theirs, asked, labels, counted, cap, weights=None):
    """The same from whole logits, by autograd, as the papers write it."""

    def capped(z):
        return z if cap is None else cap * torch.tanh(z / cap)

    hidden, weight, bias = own
    z = capped(hidden @ weight.T + (0 if bias is None else bias))
    t = capped(said @ theirs.weight.T + theirs.bias)
    q, p = torch.softmax(z / asked.temperature, -1), torch.softmax(t / asked.temperature, -1)
    m = asked.beta * p + (1 - asked.beta) * q

    def kl(a, b):
        return (a * (a.log() - b.log())).sum(-1)

    each = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jensen_shannon": asked.beta * kl(p, m) + (1 - asked.beta) * kl(q, m),
    }[asked.kind]
    heavy = torch.ones(len(z), dtype=z.dtype) if weights is None else weights
    mean = (each * heavy)[counted].sum() / heavy[counted].sum()
    loss = (1 - asked.cross_entropy) * asked.temperature**2 * mean
    if asked.cross_entropy:
        right = torch.nn.functional.cross_entropy(z, labels, reduction="none")
        known = labels != UNLABELLED
        mean = (right * heavy)[known].sum() / heavy[known].sum()
        loss = loss + asked.cross_entropy * mean
    return loss


@pytest.mark.parametrize("cross_entropy", [0.0, 0.3])
def test_tokens_count_as_much_as_they_weigh(cross_entropy):
    own, said, theirs, labels, counted = made()
    asked = Objective(cross_entropy=cross_entropy)
    weights = torch.tensor([0.0, 1.0, 5.0, 0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
    a, b = wanting(own), wanting(own)
    expected = full(a, said, theirs, asked, labels, counted, None, weights)
    loss = distillation(
        States(b[0], Head(b[1], b[2])), States(said, theirs), asked,
        labels=labels, counted=counted, weights=weights, chunk_tokens=3,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)
    for mine, oracle in zip(
        torch.autograd.grad(loss, b), torch.autograd.grad(expected, a), strict=True
    ):
        torch.testing.assert_close(mine, oracle)


def wanting(tensors):
    return [None if x is None else x.clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("cross_entropy", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_whole_logits(kind, temperature, cross_entropy, cap):
    own, said, theirs, labels, counted = made()
    asked = Objective(kind, temperature, 0.3, cross_entropy)
    a, b = wanting(own), wanting(own)
    expected = full(a, said, theirs, asked, labels, counted, cap)
    loss = distillation(
        States(b[0], Head(b[1], b[2], cap)),
        States(said, Head(theirs.weight, theirs.bias, cap)), asked,
        labels=labels, counted=counted, chunk_tokens=3,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)
    for mine, oracle in zip(
        torch.autograd.grad(2 * loss, b), torch.autograd.grad(2 * expected, a), strict=True
    ):
        torch.testing.assert_close(mine, oracle)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_differences_of_the_loss(kind):
    own, said, theirs, labels, _ = made()
    asked = Objective(kind, 1.7, 0.4, 0.2)

    def loss(hidden, weight, bias):
        student, teacher = States(hidden, Head(weight, bias)), States(said, theirs)
        return distillation(student, teacher, asked, labels=labels, chunk_tokens=4)

    assert torch.autograd.gradcheck(loss, wanting(own))


def test_an_embedding_that_is_the_head_gets_both_gradients():
    own, said, theirs, _, _ = made(bias=False)
    ids = torch.arange(N) % V
    for chunk in (2, 100):
        table = own[1].clone().requires_grad_()
        loss = distillation(
            States(table[ids], Head(table)), States(said, theirs), Objective(), chunk_tokens=chunk
        )
        (mine,) = torch.autograd.grad(loss, table)
        table = own[1].clone().requires_grad_()
        whole = (table[ids], table, None)
        every = torch.ones(N, dtype=torch.bool)
        oracle = full(whole, said, theirs, Objective(), None, every, None)
        torch.testing.assert_close(mine, torch.autograd.grad(oracle, table)[0])


def test_a_student_that_says_what_its_teacher_says_has_no_loss_and_no_gradient():
    own, *_ = made()
    hidden = own[0].clone().requires_grad_()
    for kind in KINDS:
        head = Head(own[1], own[2])
        loss = distillation(States(hidden, head), States(own[0], head), Objective(kind, 2.0))
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        assert torch.autograd.grad(loss, hidden)[0].abs().max() < 1e-12


def test_products_in_bfloat16_keep_float32_sums():
    own, said, theirs, _, _ = made(torch.float32, n=64, v=300, d=32)
    hidden, weight, _ = wanting(own)
    student, teacher = States(hidden, Head(weight)), States(said, theirs)
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach inside
        exact = distillation(student, teacher, Objective())
        narrow = distillation(student, teacher, Objective(), dtype=torch.bfloat16)
    assert exact.dtype == narrow.dtype == torch.float32
    assert float(narrow.detach()) == pytest.approx(float(exact.detach()), rel=1e-2)
    (a,), (b,) = (torch.autograd.grad(loss, [weight]) for loss in (exact, narrow))
    assert a.dtype == b.dtype == torch.float32
    assert float((a - b).norm() / a.norm()) < 2e-2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": Head(torch.zeros(V + 1, DT))}, "11 tokens and its teacher 12"),
        ({"objective": Objective(temperature=0.0)}, "above 0"),
        ({"objective": Objective(cross_entropy=0.5)}, "needs labels"),
        ({"counted": torch.zeros(N, dtype=torch.bool)}, "no token is counted"),
    ],
)
def test_what_has_no_meaning_is_refused(change, words):
    own, said, theirs, _, _ = made()
    given = {"teacher": theirs, "objective": Objective(), "counted": None, **change}
    with pytest.raises(ValueError, match=words):
        distillation(
            States(own[0], Head(own[1])), States(said, given["teacher"]), given["objective"],
            counted=given["counted"],
        )  # fmt: skip


class Held(TorchDispatchMode):
    """Bytes of all tensors that operations made and nobody has let go of: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return out

    def count(self, storage):
        key, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.let_go, key, size)

    def let_go(self, key, size):
        self.seen.discard(key)
        self.now -= size


def test_no_two_logits_of_a_whole_batch_are_ever_held():
    own, said, theirs, _, _ = made(torch.float32, n=512, v=2000, d=8, bias=False)
    one = 512 * 2000 * 4  # bytes of all logits of one model

    def most(loss_of):
        hidden, weight, _ = wanting(own)
        with Held() as held:
            loss_of(hidden, weight).backward()
        return held.most

    every = torch.ones(512, dtype=torch.bool)
    whole = most(lambda h, w: full((h, w, None), said, theirs, Objective(), None, every, None))
    pieces = most(
        lambda h, w: distillation(
            States(h, Head(w)), States(said, theirs), Objective(), chunk_tokens=32
        )
    )
    assert whole > 4 * one
    assert pieces < one


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_word_that_both_rule_out_costs_nothing(kind):
    head = torch.eye(4)
    said = torch.tensor([[110.0, 0.0, 0.0, 0.0]])
    hidden = (0.98 * said).requires_grad_()
    loss = distillation(States(hidden, Head(head)), States(said, Head(head)), Objective(kind))
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert hidden.grad.isfinite().all()


def test_where_no_gradient_is_wanted_none_is_made(monkeypatch):
    (hidden, weight, bias), said, theirs, labels, counted = made()
    wanting([hidden, weight, bias])
    whole = States(hidden, Head(weight, bias)), States(said, theirs), Objective(cross_entropy=0.3)
    expected = distillation(*whole, labels=labels, counted=counted)
    monkeypatch.setattr(distilling, "_add", None)
    with torch.no_grad():
        found = distillation(*whole, labels=labels, counted=counted)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach())
