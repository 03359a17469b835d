"""How honest errors are shared out among sizes, where no named distribution describes them.

A mixture of experts that takes another expert errs at that token by many times the usual: most errors are of one size,
a few lie anywhere up to a hundred times it. Then the share of tokens at each of a few fixed sizes is fitted instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ROUNDS = 200
_SEEN = 0.1
"""Tokens added to what was seen of each size, so that none is impossible."""


def fit_shares(logs_NG: Floats) -> Floats:
    """The shares of G sizes under which N observations are likeliest, float64[G], from each one's log-likelihood at
    each size. They sum to one, none is 0.

    Expectation-maximisation for the weights of a mixture of known parts (Dempster, Laird and Rubin 1977).
    Observations that no size explains better than another say nothing of the shares, and are left out.
    """
    telling = np.ptp(logs_NG, axis=1) > 1e-9
    likely_NG = np.exp(logs_NG[telling] - logs_NG[telling].max(axis=1, keepdims=True))
    count = logs_NG.shape[1]
    shares_G: Floats = np.full(count, 1.0 / count)
    for _ in range(_ROUNDS):
        belongs_NG = likely_NG * shares_G
        belongs_NG /= belongs_NG.sum(axis=1, keepdims=True)
        seen_G = belongs_NG.sum(axis=0) + _SEEN
        shares_G = seen_G / seen_G.sum()
    return shares_G
