"""Probabilities of whole rows, and a bound on what is left of them below a threshold, in as few passes as can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

ROUNDING = 1e-4
"""More than float32 rounding moves a logit."""
_VISIBLE = 1e-15
"""Shares below this are not summed: float32 cannot hold their squares, and V times the threshold is little enough."""


def floats(values: torch.Tensor) -> Floats:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)


def shares_at(logits_RV: torch.Tensor, heat: float, out_RV: torch.Tensor) -> Floats:
    """The log-sum-exp of each row at temperature `heat`, float64[R]; the probabilities go to `out_RV`.

    torch's softmax is one pass that stays in the cache, and the largest probability is exp(top - lse).
    """
    scaled_RV = logits_RV if heat == 1.0 else torch.div(logits_RV, heat, out=out_RV)
    top_R = floats(scaled_RV.amax(dim=1))
    torch.softmax(scaled_RV, dim=1, out=out_RV)
    lse_R: Floats = top_R - np.log(floats(out_RV.amax(dim=1)))
    return lse_R


@dataclass(frozen=True, eq=False)
class Shares:
    """Probabilities `share_RV` at temperature `base`, log-sum-exp `lse_R`; what counts is the temperature `heat`.

    `base` is at most twice `heat`, and not below it.
    """

    share_RV: torch.Tensor
    base: float
    lse_R: Floats
    heat: float

    def lse_at_heat(self, best_RG: torch.Tensor) -> Floats:
        """A lower bound on the log-sum-exp at `heat`, and a close one: most of the mass is in its groups' best."""
        if self.base == self.heat:
            return self.lse_R
        return floats(torch.logsumexp(best_RG / self.heat, dim=1))

    def tail(self, least_R: Floats, listed_R: Indices, lse_R: Floats) -> Floats:
        """What logits below `least_R` hold at `heat` at most, of exp(`lse_R`); float64[R]. Writes over the shares.

        Relative to the threshold a share at `base` is x <= 1, and at `heat` x^a with a = base / heat in [1, 2], which
        is at most (2 - a) x + (a - 1) x^2, as the weighted geometric mean is at most the arithmetic. Cut to the
        threshold, what is listed counts as 1 each; the rest is the tail, and no mask has to be stored.
        """
        power = self.base / self.heat
        edge_R = np.exp(least_R / self.base - self.lse_R + ROUNDING)  # reached by nothing unlisted
        limit_R = torch.from_numpy(edge_R.astype(np.float32)).to(self.share_RV.device)
        cut_RV = torch.minimum(self.share_RV, limit_R[:, None], out=self.share_RV)
        spare_R = (1.0 - 4 * ROUNDING) * listed_R  # what is listed counts as this much at least
        visible_R = np.maximum(edge_R, _VISIBLE)
        tail_R = (2.0 - power) * (floats(cut_RV.sum(dim=1)) / visible_R - spare_R).clip(min=0.0)
        if power != 1.0:
            square_R = floats(cut_RV.square_().sum(dim=1)) / np.square(visible_R)
            tail_R += (power - 1.0) * (square_R - spare_R).clip(min=0.0)
        tail_R = np.where(edge_R < _VISIBLE, cut_RV.shape[1], tail_R)
        bound: Floats = tail_R * np.exp(least_R / self.heat - lse_R + 2 * ROUNDING * power)
        return bound
