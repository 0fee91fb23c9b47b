"""How probable the model held a token, and which others it held likely.

OpenAI's and vLLM's convention: logarithms of the softmax of the logits as the model gave them,
before temperature, penalties, bias, filters and grammar. They describe the model, not the draw.
"""

from __future__ import annotations

from torch import Tensor

from compress.runtime.request import Logprob


def logprob(logits: Tensor, token: int, count: int) -> Logprob:
    """The chosen token's log-probability and the `count` likeliest tokens', likeliest first.

    Args:
        logits: [V] float, as the model gave them.
        token: that was chosen, among the likeliest or not.
        count: alternatives, 0 or more.
    """
    total = logits.logsumexp(-1)
    values, tokens = (logits.topk(min(count, len(logits)))) if count else ((), ())
    top = zip(map(int, tokens), (float(value - total) for value in values), strict=True)
    return Logprob(token, float(logits[token] - total), tuple(top))
