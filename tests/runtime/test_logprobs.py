from __future__ import annotations

import pytest
import torch

from compress.runtime.request import Request, Sampling
from compress.runtime.sampling import Chooser, logprob
from compress.runtime.scheduler import Proposal

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])


def test_logprobs_are_those_of_the_model_whatever_was_drawn():
    expected = LOGITS.double().log_softmax(-1).tolist()
    told = logprob(LOGITS, 3, 2)
    assert told.token == 3
    assert told.logprob == pytest.approx(expected[3])
    assert [token for token, _ in told.likeliest] == [1, 2]
    assert [value for _, value in told.likeliest] == pytest.approx([expected[1], expected[2]])
    assert logprob(LOGITS, 0, 0).likeliest == ()
    assert len(logprob(LOGITS, 0, 20).likeliest) == 4


def test_each_token_of_a_step_has_its_own_and_penalties_do_not_show():
    sampling = Sampling(presence_penalty=2.0, logit_bias={2: 5})
    chooser = Chooser(Request((0,), sampling, logprobs=1))
    chosen = chooser.choose(torch.stack([LOGITS, LOGITS.flip(0)]), Proposal((2,)))
    assert chosen.tokens == (2, 2)
    expected = [LOGITS.log_softmax(-1)[2], LOGITS.flip(0).log_softmax(-1)[2]]
    assert [one.logprob for one in chosen.logprobs] == pytest.approx([float(x) for x in expected])
    assert [one.likeliest[0][0] for one in chosen.logprobs] == [1, 2]
