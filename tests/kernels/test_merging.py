import torch

from compress.kernels import merging

D, HEADS, TOKENS = 8, 3, 400


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(rows, position):
    """Rotary embedding of [..., D] at one position, channels j and j + D/2 being a plane."""
    angles = position * 10000 ** -(torch.arange(D // 2) / (D // 2))
    a, b = rows[..., : D // 2], rows[..., D // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def test_equal_values_are_merged_and_taken_apart_without_loss():
    one = drawn(TOKENS, D)
    values = one.repeat(1, HEADS)
    readers = torch.stack([w.T @ w for w in drawn(HEADS, 16, D, seed=1)])
    down, up = merging.value_merge(values.T @ values / TOKENS, readers, D)
    torch.testing.assert_close(values @ down.T @ up.T, values, rtol=1e-3, atol=1e-3)


def test_merged_values_lose_less_of_what_is_read_than_the_mean():
    values = drawn(TOKENS, HEADS * D) @ drawn(HEADS * D, HEADS * D, seed=2)
    read = drawn(HEADS, 16, D, seed=1)
    readers = torch.stack([w.T @ w for w in read])
    down, up = merging.value_merge(values.T @ values / TOKENS, readers, D)

    def lost(found):
        gap = (found - values).view(TOKENS, HEADS, D)
        return float(torch.einsum("nhd,hod->nho", gap, read).square().sum())

    mean = values.view(TOKENS, HEADS, D).mean(1).repeat(1, HEADS)
    assert lost(values @ down.T @ up.T) < 0.7 * lost(mean)


def scores(queries, keys, heads=HEADS):
    """Of queries [TOKENS, heads, D] at position 5 with keys at position 2."""
    return (turned(queries, 5) * turned(keys, 2)).sum(-1)


def merged(keys, queries):
    """Merged keys [N, D] and queries that ask them."""
    flat = keys.flatten(1)
    asked = queries.square().mean(0).view(HEADS, 2, D // 2).sum(1)
    merge, undo = merging.key_merge(flat.T @ flat / TOKENS, asked, D)
    return merging.merged_keys(flat.T, merge).T, merging.asking(queries.flatten(1).T, undo).T


def test_equal_keys_keep_every_score():
    keys, queries = drawn(TOKENS, 1, D).repeat(1, HEADS, 1), drawn(TOKENS, HEADS, D, seed=1)
    key, query = merged(keys, queries)
    torch.testing.assert_close(key, keys[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(query, queries.flatten(1), rtol=1e-3, atol=1e-3)


def test_keys_that_differ_by_a_turn_and_a_length_keep_every_score():
    one, queries = drawn(TOKENS, D), drawn(TOKENS, HEADS, D, seed=1)
    keys = torch.stack([one, 2 * turned(one, 3), -turned(one, 1)], 1)
    key, query = merged(keys, queries)
    found = scores(query.view(TOKENS, HEADS, D), key[:, None])
    torch.testing.assert_close(found, scores(queries, keys), rtol=1e-3, atol=1e-3)


def test_merged_keys_keep_more_of_the_scores_than_the_mean():
    keys, queries = drawn(TOKENS, HEADS, D), drawn(TOKENS, HEADS, D, seed=1)
    key, query = merged(keys, queries)
    wanted = scores(queries, keys)
    found = scores(query.view(TOKENS, HEADS, D), key[:, None])
    mean = scores(queries, keys.mean(1, keepdim=True))
    assert (found - wanted).square().mean() < (mean - wanted).square().mean()
