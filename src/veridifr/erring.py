"""Another forward pass as a cause where noise is not known or there is none: log q of tokens, by size of the errors.

With known noise one size of error for all tokens is enough to name the cause (`likelihood`). Without, a token shows
only whether it was likely, and other weights err most where tokens are unlikely, or by much at some tokens and hardly
at others. One size for all then describes them worse than a temperature or a wider filter does. So errors have a shape:

- *Draws of unknown noise*: a share of the tokens comes from the distribution at `distribution.HOT` times the
  temperature without filters, as in that module's alternatives.
- *Temperature 0*: the size is drawn anew for each token, log-normal with log-deviation `APART`, as three points.

Columns are pairs of size and shape. Which of them fits best is chosen on sequences that are not compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veridifr.distribution import HOT, Law, choices_of, draw_matrix
from veridifr.likelihood import SIGMA_GRID, mix, win_matrix
from veridifr.scores import Scores

Floats = npt.NDArray[np.float64]
SIZES: Floats = np.array([0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8])
"""Sizes of the errors of draws, in temperatures; beyond the last the probabilities no longer sum to one."""
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
    hot_T = Law(choices, HOT * choices.temperature).all_of(choices.claimed_T)
    drawn_TG = draw_matrix(scores, choices.temperature * SIZES)
    columns = [(1.0 - share) * drawn_TG + share * hot_T[:, None] for share in SHARES]
    return mix(np.hstack(columns), scores, epsilon)


def _at_zero(scores: Scores) -> tuple[Floats, Floats]:
    """P(the claimed token is the likeliest) under one size for all of `SIGMA_GRID`, and under a log-normal one."""
    wins_TG = win_matrix(scores, SIGMA_GRID)
    padded = np.pad(wins_TG, ((0, 0), (_STEPS, _STEPS)), mode="edge")
    low, high = padded[:, : -2 * _STEPS], padded[:, 2 * _STEPS :]
    return wins_TG, low / 6.0 + wins_TG * (2.0 / 3.0) + high / 6.0
