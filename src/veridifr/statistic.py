"""From token scores to one number per sequence: how much better logit noise above the honest level explains it.

For each alternative a (a larger sigma, or a share of tokens replaced by draws from the reference) the log-likelihood
ratio to the honest hypothesis is summed over the first L tokens; the alternatives are mixed with equal prior weight
outside that sum, S = log sum_a w_a exp(sum_t log q_a / q_0). Tokens depend on each other, so S is a score and not a
log Bayes factor: its error rate comes from the permutation test, over sequences. Prefixes of equal length are
compared, so S is taken at fixed lengths, the `edges`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from veridifr.likelihood import EPSILON, mix, win_matrix
from veridifr.scores import Contenders, Scores

Floats = npt.NDArray[np.float64]
MULTIPLES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
REPLACED = 0.05
CAP = 40.0
"""Sequence scores are cut at this many nats, so that one absurd honest sequence cannot hide a provider."""
_FINE = (1, 2, 4, 8)
_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class NoiseMixture:
    """The statistic's settings: honest `sigma` (logits) and `epsilon`, multiples of sigma and the replaced share."""

    sigma: float
    epsilon: float = EPSILON
    multiples: tuple[float, ...] = MULTIPLES
    replaced: float = REPLACED
    name: str = field(default="noise_mixture", init=False)

    def prefix_scores(self, scores: Scores, edges: Sequence[int]) -> Floats:
        """S after the first L tokens, for each L in `edges` (each at most the number of tokens): float64[E], nats.

        Tokens that are not scored add nothing, so they neither help nor hurt the provider.
        """
        wins = win_matrix(scores, self.sigma * np.array([1.0, *self.multiples]))
        log_q = mix(wins, scores, self.epsilon)
        honest_T = log_q[:, 0]
        reference_T = np.minimum(scores.logprob_T, 0.0)
        replaced_T = np.logaddexp(np.log1p(-self.replaced), np.log(self.replaced) + reference_T - honest_T)
        ratios = np.column_stack([log_q[:, 1:] - honest_T[:, None], replaced_T])
        ratios[~scores.usable_T] = 0.0
        totals = np.cumsum(ratios, axis=0)[np.asarray(edges, dtype=np.int64) - 1]
        mixed: Floats = logsumexp(totals, axis=1) - np.log(ratios.shape[1])
        return np.minimum(mixed, CAP)


def edges_up_to(longest: int) -> tuple[int, ...]:
    """The lengths at which sequences of up to `longest` tokens are compared."""
    edges = {e for e in _FINE if e <= longest} | set(range(_BLOCK, longest + 1, _BLOCK)) | {longest}
    return tuple(sorted(e for e in edges if e > 0))


def edge_of(length: int, edges: Sequence[int]) -> int | None:
    """Index of the largest edge that `length` tokens reach; None if they reach none."""
    place = int(np.searchsorted(np.asarray(edges), length, side="right")) - 1
    return place if place >= 0 else None


def simulate(scores: Scores, sigma: float, rng: np.random.Generator) -> Scores:
    """The same tokens' scores had the provider's logits carried independent errors of `sigma` logits.

    Each token is drawn anew among its contenders: perturbed scores and the cut of the filters move as `likelihood`
    assumes. The text that follows is left as it is, so this is the effect on single tokens, which is what S adds up.
    """
    found = scores.contenders
    return Scores(
        status_T=scores.status_T,
        gap_T=scores.gap_T,
        match_T=scores.match_T,
        best_T=scores.best_T,
        rank_T=scores.rank_T,
        logprob_T=scores.logprob_T,
        contenders=(
            _redraw_interval(found, sigma, rng)
            if scores.inverse_cdf
            else _redraw(found, len(scores.status_T), sigma, rng)
        ),
        hashes=0,
        inverse_cdf=scores.inverse_cdf,
    )


def _redraw(found: Contenders, tokens: int, sigma: float, rng: np.random.Generator) -> Contenders:
    rows = found.rows_M
    cut_T = sigma * rng.standard_normal(tokens)
    drawn = found.scores_M + sigma * rng.standard_normal(len(rows))
    drawn = np.where((found.edges_M < cut_T[rows]) | (found.edges_M == -np.inf), drawn, -np.inf)
    top_T = np.full(tokens, -np.inf)
    np.maximum.at(top_T, rows, drawn)
    emptied = top_T[rows] == -np.inf  # the shift threw everyone out: the claimed token stays
    wins = np.where(emptied, found.claimed_M, drawn == top_T[rows])
    first = np.zeros(len(rows), dtype=bool)
    index = np.flatnonzero(wins)
    first[index[np.unique(rows[index], return_index=True)[1]]] = True
    own_T = np.zeros(tokens, dtype=np.float32)
    own_T[rows[first]] = found.scores_M[first]
    return Contenders(rows_M=rows, scores_M=found.scores_M - own_T[rows], edges_M=found.edges_M, claimed_M=first)


def _redraw_interval(found: Contenders, sigma: float, rng: np.random.Generator) -> Contenders:
    """An inverse-CDF sampler: the point moves by N(0, sigma^2) logits, perhaps into the neighbouring interval.

    How far that interval reaches is not recorded, so its far end is taken as out of reach.
    """
    shift = sigma * rng.standard_normal(len(found.rows_M))
    lower, upper = found.scores_M.astype(np.float64), found.edges_M.astype(np.float64)
    over, under = shift > upper, shift < -lower
    far = np.float64(np.inf)
    return Contenders(
        rows_M=found.rows_M,
        scores_M=np.where(over, -upper, np.where(under, far, lower)).astype(np.float32),
        edges_M=np.where(over, far, np.where(under, -lower, upper)).astype(np.float32),
        claimed_M=found.claimed_M,
    )
