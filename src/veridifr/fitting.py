"""What is fitted on honest scores: the statistic's honest sigma and epsilon, for known and for unknown noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from veridifr.distribution import (
    MOST,
    NOMINAL_SIGMA,
    DistributionRatio,
    Statistic,
    choices_of,
    draw_matrix,
    sizes_shown,
)
from veridifr.likelihood import SIGMA_GRID, fit_sigma, mix, win_matrix
from veridifr.scores import Scores
from veridifr.shares import fit_shares
from veridifr.statistic import SHARED_ALTERNATIVES, SHARED_SIZES, SPREAD, LikelihoodRatio, error_sizes

Floats = npt.NDArray[np.float64]
EPSILON_GRID = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_STEPS = (2, 3, 4, 6, 8)
"""Spreads that are tried, in units of the usual one: their three sizes lie on the grid of sigma."""
_GAIN = 5.0
"""Nats of log-likelihood that a larger spread must gain."""
_DOUBT = 0.5
"""Nats that a larger epsilon may lose. Where none of n tokens is unexplained it is then 1 / (2 n), as with Jeffreys's
prior."""
_SHARED_EPSILONS = EPSILON_GRID[::2]
"""Every other one: shares are fitted for each."""
_SHARED_GAIN = 20.0
"""Nats that shares of sizes must gain over it: they have nine parameters more."""
EFFECTS = (1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 16.0)
"""Sizes of the simulated deviations, as multiples of the honest logit noise; the declared one is added."""


def fit_statistic(fits: Sequence[Scores]) -> LikelihoodRatio:
    """Honest sigma and epsilon by maximum likelihood over the fit part, and a larger spread where the usual one is too
    small, or shares of sizes where no spread will do: a mixture of experts that takes another expert errs by many times
    the usual at that token."""
    wins = [win_matrix(scores, SIGMA_GRID) for scores in fits]
    top, sigma, epsilon = _likeliest(fits, wins, SIGMA_GRID, _DOUBT)
    least, found = top + _GAIN, LikelihoodRatio(sigma=sigma, epsilon=epsilon)
    for steps in _STEPS:
        sizes, weights_K = error_sizes(1.0, SPREAD * steps)
        middle = np.arange(len(SIGMA_GRID) - steps)  # below the grid's end, errors are too small to matter
        places = (np.maximum(middle - steps, 0), middle, middle + steps)
        spread = [sum(w * matrix[:, at] for w, at in zip(weights_K, places, strict=True)) for matrix in wins]
        top, sigma, epsilon = _likeliest(fits, spread, SIGMA_GRID[middle] / sizes[1], _DOUBT)
        if top > least:
            least, found = top, LikelihoodRatio(sigma=sigma, epsilon=epsilon, spread=SPREAD * steps)
    return _shared(fits, wins, found, least + _SHARED_GAIN) if found.spread > SPREAD else found


def _shared(fits: Sequence[Scores], wins: Sequence[Floats], found: LikelihoodRatio, least: float) -> LikelihoodRatio:
    """`found` with shares of sizes and the epsilon that goes with them, if their log-likelihood exceeds `least`."""
    places = np.searchsorted(SIGMA_GRID, SHARED_SIZES)
    best = found
    for epsilon in _SHARED_EPSILONS:
        logs_NG = np.concatenate([mix(m[:, places], s, epsilon) for m, s in zip(wins, fits, strict=True)])
        shares_G = fit_shares(logs_NG)
        total = float(logsumexp(logs_NG, axis=1, b=shares_G).sum())
        if total > least:
            shares = tuple(shares_G.tolist())
            least = total
            best = replace(found, epsilon=epsilon, shares=shares, alternatives=SHARED_ALTERNATIVES)
    return best


def fit_distribution(fits: Sequence[Scores]) -> DistributionRatio:
    """The same for tokens whose noise is not known; without a filter, whose edge shows errors, sigma is nominal."""
    choices = [choices_of(scores) for scores in fits]
    most = MOST * choices[0].temperature
    if not any((entry.edges_M > -np.inf).any() for entry in choices):
        return DistributionRatio(sigma=min(NOMINAL_SIGMA, most), epsilon=EPSILON_GRID[0])
    grid = sizes_shown(fits[0])
    _, sigma, epsilon = _likeliest(fits, [draw_matrix(scores, grid) for scores in fits], grid)
    return DistributionRatio(sigma=sigma, epsilon=epsilon)


def _likeliest(
    fits: Sequence[Scores], wins: Sequence[Floats], grid: Floats, doubt: float = 0.0
) -> tuple[float, float, float]:
    """Log-likelihood, sigma and epsilon: of the values of epsilon that lose at most `doubt` nats to the likeliest, the
    largest. Tokens of that kind are so rare that few sequences often hold none, which does not make them impossible;
    more doubt than half a token would hide the few tokens that a provider replaces."""
    found = []
    for epsilon in EPSILON_GRID:
        totals = np.array([mix(matrix, scores, epsilon).sum(axis=0) for matrix, scores in zip(wins, fits, strict=True)])
        found.append((float(totals.sum(axis=0).max()), fit_sigma(totals, grid), epsilon))
    least = max(top for top, _, _ in found) - doubt
    return [entry for entry in found if entry[0] >= least][-1]


def effects_with(declared: float) -> tuple[float, ...]:
    """`EFFECTS` with the declared size among them."""
    return tuple(sorted([effect for effect in EFFECTS if abs(effect - declared) > 1e-6 * declared] + [declared]))


def declared_by_default(statistic: Statistic, fits: Sequence[Scores]) -> float:
    """The deviation, in logits, that a consistent verdict rules out: twice the honest noise.

    Where the noise is not known it takes more to be seen: four times, or six tenths of the temperature where there is
    no filter, so that nothing but the shape of the distribution tells.
    """
    if isinstance(statistic, LikelihoodRatio):
        return 2.0 * statistic.sigma
    choices = [choices_of(scores) for scores in fits]
    if any((entry.edges_M > -np.inf).any() for entry in choices):
        return 4.0 * statistic.sigma
    return 0.6 * choices[0].temperature
