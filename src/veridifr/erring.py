"""Another forward pass as a cause where noise is not known or there is none: log q of tokens, by size of the errors.

With known noise one size of error for all tokens is enough to name the cause (`likelihood`). Without, a token shows
only whether it was likely, and other weights err most where tokens are unlikely, or by much at some tokens and hardly
at others. One size for all then describes them worse than a temperature or a wider filter does. So errors have a shape:

- *Draws of unknown noise*: errors of s temperatures turn the probability k_c, the filters' edge averaged over them,
  into k_c (1 + s^2 (sum k^2 - k_c)), to second order as in `distribution`; cut off there it sums to one, as it must for
  a likelihood that competes with others. And a share of the tokens comes from the distribution at `distribution.HOT`
  times the temperature without filters.
- *Temperature 0*: the size is drawn anew for each token, log-normal with log-deviation `APART`, as three points.

Columns are pairs of size and shape. Which of them fits best is chosen on sequences that are not compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veridifr.distribution import HOT, Law, choices_of
from veridifr.likelihood import SIGMA_GRID, mix, win_matrix
from veridifr.scores import Choices, Scores

Floats = npt.NDArray[np.float64]
SIZES: Floats = np.array([0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8])
"""Sizes of the errors of draws, in temperatures; below 1, or the second order may be negative."""
SHARES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Shares of the tokens from the hotter distribution."""
_STEPS = 3
"""Places of `SIGMA_GRID` between neighbouring points of the log-normal size."""
APART = float(_STEPS * np.log(SIGMA_GRID[1] / SIGMA_GRID[0]) / np.sqrt(3.0))
"""Log-deviation of the size where it is drawn anew, 0.6: one token's errors are easily four times another's."""


def log_likelihoods_erring(scores: Scores, epsilon: float) -> Floats:
    """log q of each of T tokens under each of G pairs of size and shape: float64[T, G], nats.

    `scores` are those of an unknown sampler or of temperature 0; `epsilon` as in `likelihood`.
    """
    if scores.choices is None:
        return mix(np.hstack(_at_zero(scores)), scores, epsilon)
    choices = choices_of(scores)
    law, own_T = Law(choices, choices.temperature), choices.claimed_T
    hot_T = Law(choices, HOT * choices.temperature).all_of(own_T)
    drawn_TG = np.column_stack([_drawn(law, choices, size) for size in SIZES])
    columns = [(1.0 - share) * drawn_TG + share * hot_T[:, None] for share in SHARES]
    return mix(np.hstack(columns), scores, epsilon)


def _drawn(law: Law, choices: Choices, size: float) -> Floats:
    """P(the claimed token is drawn) under errors of `size` temperatures, float64[T]; it sums to one over the tokens."""
    kept_M = law.kept(np.arange(len(choices.logits_M)), size * choices.temperature)
    square_T = np.add.reduceat(kept_M**2, choices.starts_T)
    own_T = kept_M[choices.claimed_T]
    found: Floats = own_T * (1.0 + size**2 * (square_T - own_T))
    return found


def _at_zero(scores: Scores) -> tuple[Floats, Floats]:
    """P(the claimed token is the likeliest) under one size for all of `SIGMA_GRID`, and under a log-normal one."""
    wins_TG = win_matrix(scores, SIGMA_GRID)
    padded = np.pad(wins_TG, ((0, 0), (_STEPS, _STEPS)), mode="edge")
    low, high = padded[:, : -2 * _STEPS], padded[:, 2 * _STEPS :]
    return wins_TG, low / 6.0 + wins_TG * (2.0 / 3.0) + high / 6.0
