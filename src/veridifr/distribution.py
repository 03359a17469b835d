"""The probability of a token that was drawn with noise nobody knows, when logits carry independent errors.

Honest tokens are draws from p = softmax(l/T) over the kept set. Errors of sigma logits do two things to that:

- The *edge* of the filters moves by one common shift d ~ N(0, sigma^2), as in `likelihood`. Candidate c is kept while
  its distance m_c is below d, so its probability is the mean over d of [m_c < d] p_c / K(d), with K(d) the mass that is
  kept. Candidates in descending order of logit make K a running sum, and the mean a running sum over intervals of d.
- *Inside*, p becomes its own mean over the errors. With s = sigma/T that is p_c (1 + s^2 (sum p^2 - p_c) + O(s^4)):
  unlikely tokens become likelier. The mean is that of a logistic of one normal variable, once the sum of the rivals'
  weights is taken as log-normal (Fenton 1960); both orders above are exact.

Both sum to one over c, the second up to O(s^4). As everywhere, a share epsilon of tokens that no error explains is
drawn from the reference's own distribution before the filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr

from veridifr.contracts.unknown import UNKNOWN
from veridifr.filters import filters_on, membership
from veridifr.likelihood import SIGMA_GRID, log_likelihoods, mix
from veridifr.scores import Choices, Scores
from veridifr.statistic import SPREAD, Alternative, Floats, LikelihoodRatio, equally, error_sizes, prefixes_of
from veridifr.trace import Sampling

Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
HOT = 2.0
"""Tokens of the alternative `replaced` are drawn at this many times the temperature, from all candidates."""
MOST = 0.8
"""Largest error, in temperatures, for which the mean inside the kept set is taken from the formula above: it still sums
to one within 3 % there. Larger ones, as of another model, look like tokens from a hotter distribution."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()

ALTERNATIVES = (
    *equally("noise", tuple(2.0 ** (k / 2) for k in range(1, 13)), 0.5),
    *equally("temperature", (-0.2, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.2), 0.2),
    *equally("cut", (-1.0, -0.4, 0.4, 0.8, 1.2), 0.15),
    *equally("replaced", (0.01, 0.05, 0.2, 0.9), 0.15),
)
"""As for the seeded statistic; `replaced` is a share of tokens drawn at `HOT` times the temperature."""
NOMINAL_SIGMA = 0.03
"""Honest errors, in logits, where no filter has an edge that would show them: what a small model measures."""


class Law:
    """The distribution that each token is a draw of, at one temperature."""

    def __init__(self, choices: Choices, temperature: float) -> None:
        self.temperature = temperature
        self._starts_T, self._rows_M = choices.starts_T, choices.rows_M
        self._weights_M: Floats = np.exp(choices.logits_M.astype(np.float64) / temperature)
        self._all_T: Floats = self._sum(self._weights_M)
        self._filtered = bool((choices.edges_M > -np.inf).any())
        if not self._filtered:
            self._total_T, self._square_T = self._all_T, self._sum(self._weights_M**2)
            return
        self._edges_M: Floats = choices.edges_M.astype(np.float64)
        self._edges_M[self._starts_T] = -np.inf  # the largest logit is always kept
        self._kept_M: Floats = self._running(self._weights_M)
        inside_M = self._edges_M <= 0
        self._inside_M: Flags = inside_M
        self._total_T = self._sum(np.where(inside_M, self._weights_M, 0.0))
        self._square_T = self._sum(np.where(inside_M, self._weights_M**2, 0.0))

    def kept(self, index_I: Index, sigma: float, cut: float = 0.0) -> Floats:
        """Probability of candidates with the edge averaged over errors of `sigma` and lying `cut` logits deeper."""
        if not self._filtered:
            return self.all_of(index_I)
        stays_M = ndtr(-(self._edges_M + cut) / sigma)
        following_M = np.append(stays_M[1:], 0.0)
        following_M[self._starts_T[1:] - 1] = 0.0
        share_M = np.maximum(stays_M - following_M, 0.0) / self._kept_M
        rest_M = self._sum(share_M)[self._rows_M] - self._running(share_M) + share_M
        found: Floats = self._weights_M[index_I] * rest_M[index_I]
        return np.clip(found, 0.0, 1.0)

    def moved(self, index_I: Index, sigma: float) -> Floats:
        """By what factor errors of `sigma` change the probability of candidates within the kept set."""
        rows_I, own_I = self._rows_M[index_I], self._weights_M[index_I]
        outside_I = np.where(self._inside_M[index_I], 0.0, own_I) if self._filtered else np.zeros_like(own_I)
        total_I = self._total_T[rows_I] + outside_I
        rivals_I = total_I - own_I
        few_I = rivals_I <= 1e-12 * total_I  # alone, or as good as
        rivals_I = np.where(few_I, 1.0, rivals_I)
        squares_I = np.maximum(self._square_T[rows_I] + outside_I**2 - own_I**2, 0.0)
        spread = (sigma / self.temperature) ** 2
        rivals_spread_I = np.log1p(np.expm1(spread) * np.minimum(squares_I / rivals_I**2, 1.0))
        odds_I = np.log(np.maximum(own_I, 1e-300) / rivals_I)
        middle_I = odds_I - 0.5 * (spread - rivals_spread_I)
        points_IK = middle_I[:, None] + np.sqrt(spread + rivals_spread_I)[:, None] * _NODES
        mean_I = expit(points_IK) @ _WEIGHTS
        return np.where(few_I, 1.0, mean_I / expit(odds_I))

    def all_of(self, index_I: Index) -> Floats:
        """Probability of candidates without any filter."""
        found: Floats = self._weights_M[index_I] / self._all_T[self._rows_M[index_I]]
        return found

    def _running(self, values_M: Floats) -> Floats:
        """Sums over the candidates of a token up to and including each."""
        summed_M = np.cumsum(values_M)
        before_T = summed_M[self._starts_T] - values_M[self._starts_T]
        found: Floats = summed_M - before_T[self._rows_M]
        return found

    def _sum(self, values_M: Floats) -> Floats:
        found: Floats = np.add.reduceat(values_M, self._starts_T)
        return found


@dataclass(frozen=True, kw_only=True)
class DistributionRatio:
    """The statistic of tokens whose noise is not known: `statistic.LikelihoodRatio` over this module's probabilities.

    `sigma` is the honest errors' size in logits, which filters show at their edge; `epsilon` and `spread` as there.
    """

    sigma: float
    epsilon: float
    spread: float = SPREAD
    alternatives: tuple[Alternative, ...] = ALTERNATIVES
    name: str = field(default="distribution_ratio", init=False)

    @property
    def unexplained(self) -> float:
        """The share of tokens that errors of the size sigma alone leave unexplained."""
        return self.epsilon

    def prefix_scores(self, scores: Scores, edges: Sequence[int]) -> Floats:
        """S of the first `edges[i]` tokens, in nats: float64[len(edges)]."""
        choices = choices_of(scores)
        ratios_TA, applies_A = self.ratios_at(choices, choices.claimed_T)
        ratios_TA[~scores.usable_T] = 0.0
        return prefixes_of(self.alternatives, ratios_TA, applies_A, edges)

    def ratios_at(self, choices: Choices, index_I: Index) -> tuple[Floats, Flags]:
        """log q_a / q_0 of candidates for each alternative, float64[I, A] in nats, and which alternatives apply."""
        law = Law(choices, choices.temperature)
        wide = Law(choices, HOT * choices.temperature)
        raw_I = np.exp(np.minimum(choices.raw_M[index_I].astype(np.float64), 0.0))
        sizes_K, weights_K = error_sizes(self.sigma, self.spread)
        known: dict[float, Floats] = {}

        def erring(size: float) -> Floats:
            name = round(float(np.log(size)), 6)
            if name not in known:
                known[name] = np.minimum(law.kept(index_I, size) * law.moved(index_I, size), 1.0)
            return known[name]

        def at(multiple: float) -> Floats:
            found: Floats = np.column_stack([erring(multiple * size) for size in sizes_K]) @ weights_K
            return found

        def cut(one: Law, deeper: float) -> Floats:
            found: Floats = np.column_stack([one.kept(index_I, size, deeper) for size in sizes_K]) @ weights_K
            return found

        honest_I = self._mix(at(1.0), raw_I)
        applies_A = np.array([self._applies(entry, choices) for entry in self.alternatives])
        ratios_IA = np.zeros((len(index_I), len(self.alternatives)))
        for place in np.flatnonzero(applies_A):
            entry = self.alternatives[place]
            if entry.kind == "replaced":
                drawn_I = (1.0 - entry.size) * np.exp(honest_I) + entry.size * wide.all_of(index_I)
                ratios_IA[:, place] = np.log(drawn_I) - honest_I
                continue
            if entry.kind == "noise":
                found_I = at(entry.size)
            elif entry.kind == "cut":
                found_I = cut(law, entry.size)
            else:
                found_I = cut(Law(choices, choices.temperature * (1.0 + entry.size)), 0.0)
            ratios_IA[:, place] = self._mix(found_I, raw_I) - honest_I
        return ratios_IA, applies_A

    def _applies(self, entry: Alternative, choices: Choices) -> bool:
        """A cut needs a filter, and errors must not be beyond `MOST`."""
        if entry.kind == "cut":
            return bool((choices.edges_M > -np.inf).any())
        return entry.kind != "noise" or entry.size * self.sigma <= MOST * choices.temperature

    def _mix(self, kept_I: Floats, raw_I: Floats) -> Floats:
        found: Floats = np.log((1.0 - self.epsilon) * kept_I + self.epsilon * raw_I + 1e-300)
        return found


Statistic = LikelihoodRatio | DistributionRatio
"""What scores sequences: with known noise, or without."""


def token_log_likelihoods(scores: Scores, sigmas_G: Floats, epsilon: float) -> Floats:
    """log q of each of T claimed tokens under each of G values of sigma, in nats: float64[T, G], by the likelihood of
    the family that the scores were made for."""
    if scores.choices is None:
        return log_likelihoods(scores, sigmas_G, epsilon=epsilon)
    return mix(draw_matrix(scores, sigmas_G), scores, epsilon)


def shows_errors(scores: Scores) -> bool:
    """Whether tokens show how large the errors of their logits are: draws do so at the edge of a filter alone."""
    return scores.choices is None or bool((scores.choices.edges_M > -np.inf).any())


def sizes_shown(scores: Scores) -> Floats:
    """The sizes of `SIGMA_GRID` on which likelihoods differ, in logits: of draws, those up to `MOST` temperatures."""
    if scores.choices is None:
        return SIGMA_GRID
    most = MOST * scores.choices.temperature * (1.0 + 1e-9)
    shown: Floats = SIGMA_GRID[max(most, SIGMA_GRID[0]) >= SIGMA_GRID]
    return shown


def draw_matrix(scores: Scores, sigmas_G: Floats) -> Floats:
    """P(the claimed token is drawn) of T tokens under G values of sigma (at most `MOST` temperatures): [T, G]."""
    choices = choices_of(scores)
    law, own_T = Law(choices, choices.temperature), choices.claimed_T
    sigmas = np.minimum(sigmas_G, MOST * choices.temperature)
    return np.column_stack([np.minimum(law.kept(own_T, s) * law.moved(own_T, s), 1.0) for s in sigmas])


def log_likelihoods_claiming(scores: Scores, sampling: Sampling, sigma: float, epsilon: float) -> Floats | None:
    """log q of each token at `sigma` logits had another temperature, top-k or top-p been claimed: float64[T], nats.

    Every candidate must be listed whatever the filters, and something be drawn: None where a filter was claimed, and
    for a temperature of 0. Tokens count as they do in `scores`.
    """
    choices = choices_of(scores)
    if filters_on(choices.sampling) or sampling.greedy:
        return None
    heat = sampling.temperature
    moved = replace(choices, sampling=sampling)
    moved = replace(moved, edges_M=edges_at(moved, heat).astype(np.float32))
    law, own_T = Law(moved, heat), choices.claimed_T
    drawn_T = np.minimum(law.kept(own_T, sigma) * law.moved(own_T, sigma), 1.0)
    claimed = replace(scores, logprob_T=np.log(np.maximum(law.all_of(own_T), 1e-300)))
    return mix(drawn_T[:, None], claimed, epsilon)[:, 0]


def edges_at(choices: Choices, temperature: float) -> Floats:
    """Distances of the candidates to the edge of the filters at another temperature, float64[M].

    The mass beyond the candidates is known at the claimed temperature only; its odds are taken to a power.
    """
    sampling = choices.sampling
    if not filters_on(sampling):
        return np.full(len(choices.logits_M), -np.inf)
    listed_T = np.add.reduceat(np.exp(choices.raw_M.astype(np.float64)), choices.starts_T)
    rest_T = np.clip(1.0 - listed_T, 1e-12, 0.5)
    odds_T = (rest_T / (1.0 - rest_T)) ** (choices.temperature / temperature)
    found = membership(
        UNKNOWN.order,
        sampling,
        temperature,
        np.append(choices.starts_T, len(choices.logits_M)),
        choices.logits_M.astype(np.float64),
        odds_T / (1.0 + odds_T),
        np.full(len(rest_T), -np.inf),
    )
    return found.distance_N


def choices_of(scores: Scores) -> Choices:
    """What the tokens were drawn from; `ValueError` for scores of a sampler whose noise is known."""
    if scores.choices is None:
        raise ValueError("scores: made with known noise, and this statistic takes those without")
    return scores.choices
