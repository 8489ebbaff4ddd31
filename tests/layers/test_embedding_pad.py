"""An embedding's padding row is read as any other, and trained by no lookup (as by a tied head it may be)."""
import numpy as np

from cllm.layers import Embedding


def test_lookups_of_the_padding_token_train_nothing():
    rng = np.random.default_rng(0)
    tokens, dy, weight = rng.integers(0, 5, (2, 8)).astype(np.int32), rng.normal(0, 1, (16, 3)), rng.normal(0, 1, (5, 3))
    plain, padded = np.ones((5, 3)), np.ones((5, 3))
    Embedding(V=5, C=3, P=8, kind="none").accumulate(dy, tokens, dweight=plain, dpositions=None)
    Embedding(V=5, C=3, P=8, kind="none", pad=2).accumulate(dy, tokens, dweight=padded, dpositions=None)
    assert (tokens == 2).any() and (plain[2] != 1).all() and (padded[2] == 1).all()
    assert (np.delete(plain, 2, 0) == np.delete(padded, 2, 0)).all()
    y = np.empty((16, 3))
    Embedding(V=5, C=3, P=8, kind="none", pad=2).forward(tokens, weight, None, None, y=y)
    assert (y == weight[tokens.reshape(-1)]).all()
