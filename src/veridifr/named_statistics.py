"""The field's other statistics by name, for comparison with published figures: sums of one value for each token.

    mean_clipped_margin    min(margin, clip), the margin being infinite outside the reference's own filters
                           (DiFR, arXiv 2511.20621, section 4.2); clip = 99.9th percentile of finite honest margins
    finite_clipped_margin  the same of this package's margin, which is finite at the edge of a filter
    paper_likelihood       -log Phi(-margin / (sigma sqrt 2)), at most 20 nats: the chance that honest noise turned it
                           (DiFR, appendix A; its closed form for one competitor is that of arXiv 2511.02620)
    match_rate             1 for a token that is not the reference's argmax under the noise
    cross_entropy          -log p of the token at the claimed temperature, in nats
    rank                   number of tokens with a larger logit

Large means deviating, and dividing by the number of tokens gives the mean. The verdict's statistic is
`statistic.LikelihoodRatio`; these are for reading beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from veridifr.scores import GAP_CAP, Scores

Floats = npt.NDArray[np.float64]
NAMES = (
    "mean_clipped_margin",
    "finite_clipped_margin",
    "paper_likelihood",
    "match_rate",
    "cross_entropy",
    "rank",
)
PERCENTILE = 0.999
_MOST = 20.0


@dataclass(frozen=True, kw_only=True)
class NamedStatistics:
    """What the statistics of `NAMES` need: two clips and the honest logit noise, all in logits."""

    clip: float
    finite_clip: float
    sigma: float

    def token_values(self, scores: Scores) -> Floats:
        """One column for each of `NAMES`, float64[T, 6]; tokens that are not scored give 0."""
        hard_T = hard_margin(scores)
        behind_T = np.minimum(hard_T, 1e3) / (np.sqrt(2.0) * self.sigma)
        values_T6 = np.column_stack(
            [
                np.minimum(hard_T, self.clip),
                np.minimum(scores.margin_T, self.finite_clip),
                np.minimum(-log_ndtr(-behind_T), _MOST),
                ~scores.match_T,
                -scores.logprob_T,
                scores.rank_T,
            ]
        ).astype(np.float64)
        values_T6[~scores.usable_T] = 0.0
        return values_T6

    def prefix_scores(self, scores: Scores, edges: Sequence[int]) -> Floats:
        """Sums over the first `edges[i]` tokens, float64[len(edges), 6]."""
        found: Floats = np.cumsum(self.token_values(scores), axis=0)[np.asarray(edges, dtype=np.int64) - 1]
        return found


def fit_named(honest: Sequence[Scores], sigma: float) -> NamedStatistics:
    """Clips from honest sequences that are not judged by them; `sigma` is the honest noise of `LikelihoodRatio`.

    Raises `ValueError` without a scored token.
    """
    hard = [hard_margin(scores)[scores.usable_T] for scores in honest]
    soft = [scores.margin_T[scores.usable_T] for scores in honest]
    if not sum(map(len, hard)):
        raise ValueError("honest: no token is scored, so there is nothing to fit a clip to")
    finite = np.concatenate(hard)
    finite = finite[finite <= GAP_CAP]
    return NamedStatistics(
        clip=float(np.quantile(finite, PERCENTILE)) if len(finite) else GAP_CAP,
        finite_clip=float(np.quantile(np.concatenate(soft), PERCENTILE)),
        sigma=sigma,
    )


def hard_margin(scores: Scores) -> Floats:
    """The paper's margin, float64[T]: infinite where the reference's own filters leave the claimed token out."""
    if scores.inverse_cdf:
        return scores.margin_T
    outside_T = scores.contenders.edges_M[scores.contenders.claimed_M] > 0
    return np.where(outside_T, np.inf, scores.margin_T)
