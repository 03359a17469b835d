"""What a finding says of tokens whose noise is not known, beside its verdict: two classical checks, and how much weaker
the evidence is than that of seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import kstest, norm

from veridifr import stats
from veridifr.calibration import Calibration, scores_at
from veridifr.distribution import DistributionRatio, Law, choices_of
from veridifr.finding import DistributionSummary
from veridifr.scored import ScoredItem, reaching
from veridifr.scores import Scores

Floats = npt.NDArray[np.float64]
_LIMIT = 10_000


def summarize(
    items: Sequence[ScoredItem], calibration: Calibration, rng: np.random.Generator
) -> DistributionSummary | None:
    """The checks over all tokens that are scored; None for evidence of another kind, or without a token.

    Both p-values take the reference's logits as exact, which they are not: they are to be looked at, the verdict does
    not use them.
    """
    statistic = calibration.statistic
    speaking = [item for item in items if item.speaks and item.scores.choices is not None]
    if not isinstance(statistic, DistributionRatio) or not speaking:
        return None
    excess, ranks = zip(*(token_checks(item.scores, statistic.sigma, rng) for item in speaking), strict=True)
    table = np.concatenate(excess)
    deviation = float(np.sqrt(table[:, 1].sum()))
    rank = kstest(np.concatenate(ranks), "uniform")
    z_score = float(table[:, 0].sum()) / deviation if deviation > 0.0 else 0.0
    return DistributionSummary(
        excess=float(table[:, 0].mean()),
        excess_p_value=float(min(1.0, 2.0 * norm.sf(abs(z_score)))),
        rank_distance=float(rank.statistic),
        rank_p_value=float(rank.pvalue),
        tokens_needed=_tokens_needed(items, calibration),
        seeded_tokens=calibration.seeded_tokens,
    )


def token_checks(scores: Scores, sigma: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Of each scored token: (-log p - entropy, variance of -log p) float64[T, 2] in nats, and its randomised rank.

    The rank is uniform on [0, 1] if the token is a draw: the mass above it, plus a random part of its own.
    """
    choices = choices_of(scores)
    law, starts, own = Law(choices, choices.temperature), choices.starts_T, choices.claimed_T
    share_M = law.kept(np.arange(len(choices.logits_M)), sigma)
    cost_M = -np.log(np.maximum(share_M, 1e-12))
    entropy_T = np.add.reduceat(share_M * cost_M, starts)
    variance_T = np.maximum(np.add.reduceat(share_M * cost_M**2, starts) - entropy_T**2, 0.0)
    summed_M = np.cumsum(share_M)
    above_T = summed_M[own] - share_M[own] - (summed_M[starts] - share_M[starts])
    rank_T = np.clip(above_T + rng.random(len(own)) * share_M[own], 0.0, 1.0)
    keep = scores.usable_T
    return np.column_stack([cost_M[own] - entropy_T, variance_T])[keep], rank_T[keep]


def _tokens_needed(items: Sequence[ScoredItem], calibration: Calibration) -> int | None:
    """Tokens that it takes to find the declared deviation with sequences of this length (alpha 0.01, power 0.9)."""
    places = [place for _, place in reaching(items, calibration.edges)]
    if not places:
        return None
    place, detect = int(np.median(places)), calibration.detect_place
    honest = [scores_at(stack.sequences, place) for stack in calibration.stacks]
    deviating = np.concatenate([scores_at(stack.sequences, place, detect) for stack in calibration.stacks])
    if not all(map(len, honest)):
        return None
    rng = np.random.default_rng(place)
    count = stats.sequences_needed(honest, deviating, alpha=0.01, rng=rng, power=0.9, limit=_LIMIT)
    return None if count is None else count * calibration.edges[place]
