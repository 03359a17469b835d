"""The probability of the claimed token when the provider's logits differ from the reference's by independent errors.

Under sigma (logits, before temperature) every perturbed score is z_j + sigma e_j with e_j standard normal, so among the
members of the kept set

    P(c wins) = integral of phi(x) prod_{j != c} Phi((z_c - z_j) / sigma + x) dx,

which sums to one over c. Membership at the edge of a filter is averaged too: the cut moves by one common shift
d ~ N(0, sigma^2) in logits, because top-p's cut moves with mass and not with one token's error, and candidate j belongs
to the set while its distance m_j is below d. The token's probability is

    q(c) = (1 - epsilon) P(c wins) + epsilon p_ref(c),

with epsilon the share of tokens that no logit error explains, drawn from the reference's own distribution.
Tokens of one sequence depend on each other, so sums of log q are scores: only the calibrated test gives error rates.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from veridifr.scores import Contenders, Scores

Floats = npt.NDArray[np.float64]

SIGMA_GRID: Floats = np.geomspace(0.003125, 3.2, 21)
"""Effective logit noise values (logits) on which likelihoods are tabulated: steps of sqrt(2)."""
EPSILON = 1e-4
"""Default share of tokens that no logit error explains."""
_REACH = 6.0
"""Candidates further than this many sigma from the edge of the kept set are surely in or out."""
_RIVAL_REACH = 5.0 * np.sqrt(2.0)
"""Contenders this many sigma behind the best score would beat it with probability 3e-7 at most. A token whose outcome
would take a larger error to turn round is decided, and costs no integral."""
_MOST = 24
"""Contenders per token beyond this rank of score are left out; together they win with negligible probability."""
_EDGES = 4
"""Candidates at the edge whose membership is averaged over, nearest first."""
_NODES: Floats = np.linspace(-6.0, 6.0, 25)
# The trapezoid rule converges geometrically for analytic integrands that decay like a Gaussian (Trefethen and
# Weideman 2014, "The exponentially convergent trapezoidal rule"): a step of 0.5 errs by about 1e-9 relative for up to
# five equal rivals and 1e-5 for 24.
_WEIGHTS: Floats = np.exp(-0.5 * _NODES**2) / np.sqrt(2 * np.pi) * (_NODES[1] - _NODES[0])


def win_matrix(scores: Scores, sigmas_G: Floats) -> Floats:
    """P(the claimed token wins) of each of T tokens under each of G values of sigma: float64[T, G]."""
    return win_matrix_of(scores.contenders, len(scores.status_T), sigmas_G, interval=scores.inverse_cdf)


def win_matrix_of(contenders: Contenders, tokens: int, sigmas_G: Floats, *, interval: bool = False) -> Floats:
    """As `win_matrix`, from contenders of `tokens` rows; `interval` if they are those of an inverse-CDF sampler."""
    if interval:
        return np.column_stack([_interval_probability(contenders, tokens, float(sigma)) for sigma in sigmas_G])
    gap_T = decisive_gap(contenders, tokens)
    return np.column_stack([_win_probability(contenders, gap_T, float(sigma)) for sigma in sigmas_G])


def win_probability(contenders: Contenders, tokens: int, sigma: float) -> Floats:
    """P(the claimed token wins) for each of `tokens` rows, under independent errors of `sigma` logits."""
    return win_matrix_of(contenders, tokens, np.array([sigma]))[:, 0]


def decisive_gap(contenders: Contenders, tokens: int) -> Floats:
    """The signed gap (`scores`) of each of `tokens` rows, float64[tokens]: below 0 where the claimed token loses."""
    z, edges = contenders.scores_M.astype(np.float64), contenders.edges_M.astype(np.float64)
    turned_M = np.where(contenders.claimed_M, np.where(z == -np.inf, -np.inf, -edges), np.maximum(-z, edges))
    gap_T: Floats = np.minimum.reduceat(turned_M, _starts(contenders, tokens)) if tokens else np.zeros(0)
    return gap_T


def shifted(contenders: Contenders, *, temperature: float = 0.0, cut: float = 0.0) -> Contenders:
    """Contenders had the provider sampled at (1 + `temperature`) times the temperature, and cut `cut` logits deeper.

    T g_j grows with the temperature, so z_j becomes z_j + temperature * T g_j; the kept set is taken as it was. A cut
    that lies deeper leaves every candidate by so much further outside: top-p p' for p is T (logit p - logit p').
    """
    scores = contenders.scores_M + np.float32(temperature) * contenders.noise_M
    return replace(contenders, scores_M=scores, edges_M=contenders.edges_M + np.float32(cut))


def _starts(contenders: Contenders, tokens: int) -> npt.NDArray[np.int64]:
    return np.searchsorted(contenders.rows_M, np.arange(tokens))


def mix(wins_TG: Floats, scores: Scores, epsilon: float) -> Floats:
    """log q of each token in nats, float64[T, G], from win probabilities: see the module's formula.

    Tokens that are not scored get 0: they say nothing for or against any sigma.
    """
    floor_T = epsilon * np.exp(np.minimum(scores.logprob_T, 0.0))
    log_q: Floats = np.log((1.0 - epsilon) * wins_TG + floor_T[:, None] + 1e-300)
    log_q[~scores.usable_T] = 0.0
    return log_q


def log_likelihoods(scores: Scores, sigmas_G: Floats, *, epsilon: float = EPSILON) -> Floats:
    """log q of each of T claimed tokens under each of G values of sigma, in nats: float64[T, G]."""
    return mix(win_matrix(scores, sigmas_G), scores, epsilon)


def _win_probability(contenders: Contenders, gap_T: Floats, sigma: float) -> Floats:
    open_T = np.abs(gap_T) < _RIVAL_REACH * sigma
    probability_T = (gap_T > 0).astype(np.float64)
    if open_T.any():
        some = contenders.at(open_T[contenders.rows_M])
        number_T = np.cumsum(open_T, dtype=np.int32) - 1
        some = replace(some, rows_M=number_T[some.rows_M])
        probability_T[open_T] = _open_probability(some, int(open_T.sum()), sigma)
    return probability_T


def _open_probability(contenders: Contenders, tokens: int, sigma: float) -> Floats:
    near = _near(contenders, tokens, sigma)
    probability_T = np.zeros(tokens)
    edge = np.abs(near.edges_M) < _REACH * sigma
    marginal_T = np.zeros(tokens, dtype=bool)
    marginal_T[near.rows_M[edge]] = True
    plain = ~marginal_T[near.rows_M]
    _add(probability_T, near, plain & (near.edges_M <= 0), sigma, np.ones(tokens))
    if marginal_T.any():
        _add_marginal(probability_T, near, marginal_T, sigma)
    return probability_T


def _near(contenders: Contenders, tokens: int, sigma: float) -> Contenders:
    """Contenders within reach of the best certain member, at most `_MOST` a row, the claimed token always."""
    rows, z = contenders.rows_M, contenders.scores_M.astype(np.float64)
    # A member at the edge may fall out, and then those that it kept from winning matter.
    certain = np.where(contenders.edges_M <= -_REACH * sigma, z, -np.inf)
    top_T = np.maximum.reduceat(certain, _starts(contenders, tokens))
    keep = (z >= top_T[rows] - _RIVAL_REACH * sigma) & (contenders.edges_M < _REACH * sigma)
    keep |= contenders.claimed_M
    index = np.flatnonzero(keep)
    counts = np.bincount(rows[index], minlength=tokens)
    if counts.max(initial=0) > _MOST:
        by_score = np.lexsort((-z[index], ~contenders.claimed_M[index], rows[index]))
        starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
        place = np.arange(len(index)) - starts[rows[index][by_score]]
        index = np.sort(index[by_score[place < _MOST]])
    return contenders.at(index)


def _add(
    probability_T: Floats, near: Contenders, member_M: npt.NDArray[np.bool_], sigma: float, weight_T: Floats
) -> None:
    """Add weight * P(c wins among the members) to every row whose claimed token is a member."""
    own = member_M & near.claimed_M & (near.scores_M > -np.inf)
    rows_own = near.rows_M[own]
    if not len(rows_own):
        return
    rivals = member_M & ~near.claimed_M
    has_own = np.zeros(len(probability_T), dtype=bool)
    has_own[rows_own] = True
    rivals &= has_own[near.rows_M]
    rival_rows, behind = near.rows_M[rivals], -near.scores_M[rivals].astype(np.float64) / sigma
    contested = np.zeros(len(probability_T), dtype=bool)
    contested[rival_rows] = True
    alone = rows_own[~contested[rows_own]]
    probability_T[alone] += weight_T[alone]
    if not len(rival_rows):
        return
    starts = np.flatnonzero(np.diff(rival_rows, prepend=-1))
    product = np.multiply.reduceat(ndtr(behind[:, None] + _NODES), starts, axis=0)
    rows = rival_rows[starts]
    probability_T[rows] += weight_T[rows] * (product @ _WEIGHTS)


def _add_marginal(probability_T: Floats, near: Contenders, marginal_T: npt.NDArray[np.bool_], sigma: float) -> None:
    """Rows with candidates at the edge: average over the common shift of the cut, interval by interval."""
    tokens = len(probability_T)
    in_row = marginal_T[near.rows_M]
    edge = in_row & (np.abs(near.edges_M) < _REACH * sigma)
    index = np.flatnonzero(edge)
    order = index[np.lexsort((np.abs(near.edges_M[index]), near.rows_M[index]))]
    place = np.arange(len(order)) - np.searchsorted(near.rows_M[order], near.rows_M[order])
    order = np.sort(order[place < _EDGES])  # the nearest few; the others stay where the reference has them
    order = order[np.lexsort((near.edges_M[order], near.rows_M[order]))]
    rank_M = np.full(len(near.rows_M), -1)
    rank_M[order] = np.arange(len(order)) - np.searchsorted(near.rows_M[order], near.rows_M[order])
    cuts = np.full((tokens, _EDGES + 2), np.inf)
    cuts[:, 0] = -np.inf
    cuts[near.rows_M[order], rank_M[order] + 1] = near.edges_M[order]
    weights = np.diff(ndtr(cuts / sigma), axis=1)
    fixed = in_row & (rank_M < 0) & (near.edges_M <= 0)
    for entered in range(_EDGES + 1):  # a shift between the cuts lets the first `entered` candidates in
        weight_T = weights[:, entered]
        if weight_T[marginal_T].any():  # none between cuts that coincide
            _add(probability_T, near, fixed | ((rank_M >= 0) & (rank_M < entered)), sigma, weight_T)


def _interval_probability(contenders: Contenders, tokens: int, sigma: float) -> Floats:
    """P(c) of an inverse-CDF sampler: both ends of the claimed interval move by N(0, sigma^2) logits.

    Phi(upper / sigma) - Phi(-lower / sigma) telescopes over neighbouring tokens, so it sums to one.
    """
    probability_T = np.zeros(tokens)
    upper = ndtr(contenders.edges_M.astype(np.float64) / sigma)
    lower = ndtr(-contenders.scores_M.astype(np.float64) / sigma)
    probability_T[contenders.rows_M] = np.maximum(upper - lower, 0.0)
    return probability_T


def fit_sigma(totals_SG: Floats, sigmas_G: Floats) -> float:
    """Maximum-likelihood sigma from summed log-likelihoods of S sequences on the grid, refined by a parabola in log."""
    total_G = totals_SG.sum(axis=0)
    best = int(np.argmax(total_G))
    if not 0 < best < len(sigmas_G) - 1:
        return float(sigmas_G[best])
    left, middle, right = total_G[best - 1 : best + 2]
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    step = np.log(sigmas_G[best + 1] / sigmas_G[best])
    return float(sigmas_G[best] * np.exp(np.clip(offset, -0.5, 0.5) * step))


def sigma_interval(
    totals_SG: Floats, sigmas_G: Floats, rng: np.random.Generator, draws: int = 400
) -> tuple[float, float]:
    """95 % bootstrap interval of `fit_sigma` over sequences (the unit of dependence)."""
    count = len(totals_SG)
    weights = rng.multinomial(count, np.full(count, 1.0 / count), size=draws)
    resampled = weights @ totals_SG
    values = [fit_sigma(row[None, :], sigmas_G) for row in resampled]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
