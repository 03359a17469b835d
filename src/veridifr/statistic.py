"""From token scores to one number per sequence: how much better a deviation explains it than honest noise does.

Under the honest hypothesis a token has the probability q_0 of `likelihood`, the size of its logit error being drawn
anew for each token: a log-normal about sigma with log-deviation `spread`, as three points (Gauss-Hermite), because the
errors of honest runs have heavier tails than one normal distribution; or, where that does not describe them either, of
one of `SHARED_SIZES` with the shares that were fitted. Each alternative a changes one thing: larger errors, another
temperature, a cut of top-k, top-p or min-p that lies elsewhere, or a share of tokens replaced by draws from the
reference. Log-likelihood ratios are summed over the first L tokens and the alternatives are mixed with their prior
weights outside that sum,

    S = log sum_a w_a exp(sum_t log q_a / q_0).

Tokens depend on each other, so S is a score and not a log Bayes factor: its error rate comes from the calibrated test,
over sequences. Prefixes of equal length are compared, so S is taken at fixed lengths, the `edges`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from veridifr.likelihood import EPSILON, SIGMA_GRID, mix, shifted, win_matrix_of
from veridifr.scores import Contenders, Scores

Floats = npt.NDArray[np.float64]
Kind = Literal["noise", "temperature", "cut", "replaced"]
SPREAD = float(np.log(2.0) / (2.0 * np.sqrt(3.0)))
"""Log-deviation of the size of a token's error, 0.2: its three points then lie a factor sqrt(2) apart, as the multiples
of sigma do, and share their integrals."""
SHARED_SIZES: Floats = SIGMA_GRID[1::2]
"""Sizes of errors (logits) among which `LikelihoodRatio.shares` are shared out: a factor of 2 apart."""
_LARGE = 4.0
"""Errors of more than so many times sigma are none of its size."""
CAP = 40.0
"""Sequence scores are cut at this many nats, so that one absurd honest sequence cannot hide a provider."""
_FINE = (1, 2, 4, 8)
_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way to deviate, of prior weight `weight`. `size` is a multiple of the honest sigma (`noise`), a relative
    change of the temperature (`temperature`), how many logits deeper the filters cut (`cut`), or the share of tokens
    drawn anew from the reference's own distribution (`replaced`)."""

    kind: Kind
    size: float
    weight: float


def equally(kind: Kind, sizes: Sequence[float], weight: float) -> Iterator[Alternative]:
    """Alternatives of one kind that share a prior weight."""
    for size in sizes:
        yield Alternative(kind=kind, size=size, weight=weight / len(sizes))


_NOISE = tuple(2.0 ** (k / 2) for k in range(1, 11))
_TEMPERATURE = (-0.2, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.2)
_CUT = (-1.0, -0.4, 0.4, 0.8, 1.2)
_REPLACED = (0.01, 0.05, 0.2, 0.9)
ALTERNATIVES = (
    *equally("noise", _NOISE, 0.5),
    *equally("temperature", _TEMPERATURE, 0.2),
    *equally("cut", _CUT, 0.15),
    *equally("replaced", _REPLACED, 0.15),
)
"""Half of the weight is on larger errors, which any change of the forward pass makes; the rest on the sampler."""
SHARED_ALTERNATIVES = (
    *(Alternative(kind="noise", size=size, weight=0.8 * 2.0**-k) for k, size in enumerate(_NOISE, start=1)),
    *equally("temperature", _TEMPERATURE, 0.1),
    *equally("cut", _CUT, 0.04),
    *equally("replaced", _REPLACED, 0.06),
)
"""With `LikelihoodRatio.shares`: honest sequences then vary as much as slightly deviating ones, which only many
together tell apart. Weight is on errors that are little larger: what explains one sequence best only adds chance."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodRatio:
    """The statistic's settings: honest `sigma` (root mean square, logits) and `epsilon`, `spread` and alternatives.

    With `shares` a token's error has each of `SHARED_SIZES` with that probability. `sigma` and `spread` then describe
    honest errors in short, and are what a changed temperature or cut is compared under: rare large errors would look
    like one."""

    sigma: float
    epsilon: float = EPSILON
    spread: float = SPREAD
    shares: tuple[float, ...] = ()
    alternatives: tuple[Alternative, ...] = ALTERNATIVES
    name: str = field(default="likelihood_ratio", init=False)

    def prefix_scores(self, scores: Scores, edges: Sequence[int]) -> Floats:
        """S of the first `edges[i]` tokens, in nats, at most `CAP`: float64[len(edges)].

        Tokens that are not scored add nothing, so a bound can never hurt the provider.
        """
        return self.prefixes(*self.ratios(scores), edges)

    def prefixes(self, ratios_TA: Floats, applies_A: npt.NDArray[np.bool_], edges: Sequence[int]) -> Floats:
        """S of the first `edges[i]` tokens from their log ratios, over the alternatives that apply."""
        return prefixes_of(self.alternatives, ratios_TA, applies_A, edges)

    def ratios(self, scores: Scores) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """log q_a / q_0 of each token and alternative, float64[T, A] in nats, and which alternatives apply, bool[A].

        Temperature needs noise to act on and a cut needs a filter; elsewhere their ratios are 0 and they don't apply.
        """
        found, tokens = scores.contenders, len(scores.status_T)
        sizes_K, weights_K = self.sizes()
        wins = _Wins(found, tokens, scores.inverse_cdf)
        honest_T = self._log_q(wins.at(sizes_K) @ weights_K, scores)
        plain_K, shape_K = error_sizes(self.sigma, self.spread)
        plain_T = self._log_q(wins.at(plain_K) @ shape_K, scores) if self.shares else honest_T
        apart = {
            "temperature": not scores.inverse_cdf and bool(found.noise_M.any()),
            "cut": not scores.inverse_cdf and bool((found.edges_M > -np.inf).any()),
        }
        applies_A = np.array([apart.get(entry.kind, True) for entry in self.alternatives])
        ratios_TA = np.zeros((tokens, len(self.alternatives)))
        for place in np.flatnonzero(applies_A):
            entry = self.alternatives[place]
            if entry.kind == "replaced":
                drawn_T = np.log(entry.size) + np.minimum(scores.logprob_T, 0.0) - honest_T
                ratios_TA[:, place] = np.logaddexp(np.log1p(-entry.size), drawn_T)
            elif entry.kind == "noise":
                wins_T = wins.at(self.sizes(entry.size)[0]) @ weights_K
                ratios_TA[:, place] = self._log_q(wins_T, scores) - honest_T
            else:
                moved = shifted(found, **{entry.kind: entry.size})
                ratios_TA[:, place] = self._log_q(win_matrix_of(moved, tokens, plain_K) @ shape_K, scores) - plain_T
        ratios_TA[~scores.usable_T] = 0.0
        return ratios_TA, applies_A

    @property
    def unexplained(self) -> float:
        """The share of tokens that errors of the size sigma alone leave unexplained: epsilon, and with `shares` those
        of more than four times that size."""
        large = [share for size, share in zip(SHARED_SIZES, self.shares, strict=False) if size > _LARGE * self.sigma]
        return self.epsilon + sum(large)

    def sizes(self, multiple: float = 1.0) -> tuple[Floats, Floats]:
        """Sizes of a token's error, `multiple` times the honest ones, and their weights, float64[K] each."""
        if not self.shares:
            sizes_K, weights_K = error_sizes(self.sigma, self.spread)
            return multiple * sizes_K, weights_K
        return np.minimum(multiple * SHARED_SIZES, SIGMA_GRID[-1]), np.array(self.shares)

    def _log_q(self, wins_T: Floats, scores: Scores) -> Floats:
        return mix(wins_T[:, None], scores, self.epsilon)[:, 0]


def error_sizes(sigma: float, spread: float) -> tuple[Floats, Floats]:
    """Sizes of a token's error and their weights: three-point Gauss-Hermite, of mean square `sigma` squared."""
    if spread == 0.0:
        return np.array([sigma]), np.ones(1)
    apart = np.exp(np.sqrt(3.0) * spread * np.array([-1.0, 0.0, 1.0]))
    weights_K = np.array([1 / 6, 2 / 3, 1 / 6])
    return sigma * apart / np.sqrt(weights_K @ apart**2), weights_K


def prefixes_of(
    alternatives: Sequence[Alternative], ratios_TA: Floats, applies_A: npt.NDArray[np.bool_], edges: Sequence[int]
) -> Floats:
    """S of the first `edges[i]` tokens from their log ratios, over the alternatives that apply: float64[len(edges)]."""
    weights_A = np.array([entry.weight for entry in alternatives])[applies_A]
    totals_EA = np.cumsum(ratios_TA[:, applies_A], axis=0)[np.asarray(edges, dtype=np.int64) - 1]
    return np.minimum(mixed(totals_EA, weights_A), CAP)


def mixed(totals_EA: Floats, weights_A: Floats) -> Floats:
    """log of the weighted mean of exp(total) over the alternatives, float64[E]; weights need not sum to one."""
    found: Floats = logsumexp(totals_EA + np.log(weights_A / weights_A.sum()), axis=1)
    return found


class _Wins:
    """P(the claimed token wins) by size of error; what was computed is kept, since alternatives share sizes."""

    def __init__(self, contenders: Contenders, tokens: int, interval: bool) -> None:
        self._contenders, self._tokens, self._interval = contenders, tokens, interval
        self._known: dict[float, Floats] = {}

    def at(self, sizes_K: Floats) -> Floats:
        """P(the claimed token wins) for each size, float64[T, K]."""
        names = [round(float(np.log(size)), 6) for size in sizes_K]
        new = [k for k, name in enumerate(names) if name not in self._known and name not in names[:k]]
        if new:
            wins = win_matrix_of(self._contenders, self._tokens, sizes_K[new], interval=self._interval)
            self._known.update({names[k]: wins[:, place] for place, k in enumerate(new)})
        return np.column_stack([self._known[name] for name in names])


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
    if scores.inverse_cdf:
        return replace(scores, contenders=_redraw_interval(found, sigma, rng), hashes=0)
    return replace(scores, contenders=_redraw(found, len(scores.status_T), sigma, rng), hashes=0)


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
    own_T, noise_T = np.zeros(tokens, dtype=np.float32), np.zeros(tokens, dtype=np.float32)
    own_T[rows[first]], noise_T[rows[first]] = found.scores_M[first], found.noise_M[first]
    return replace(found, scores_M=found.scores_M - own_T[rows], noise_M=found.noise_M - noise_T[rows], claimed_M=first)


def _redraw_interval(found: Contenders, sigma: float, rng: np.random.Generator) -> Contenders:
    """An inverse-CDF sampler: the point moves by N(0, sigma^2) logits, perhaps into the neighbouring interval.

    How far that interval reaches is not recorded, so its far end is taken as out of reach.
    """
    shift = sigma * rng.standard_normal(len(found.rows_M))
    lower, upper = found.scores_M.astype(np.float64), found.edges_M.astype(np.float64)
    over, under = shift > upper, shift < -lower
    far = np.float64(np.inf)
    return replace(
        found,
        scores_M=np.where(over, -upper, np.where(under, far, lower)).astype(np.float32),
        edges_M=np.where(over, far, np.where(under, -lower, upper)).astype(np.float32),
    )
