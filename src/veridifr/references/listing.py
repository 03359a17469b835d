"""From rows of logits to the candidates worth keeping, on whatever device the logits are.

Sorting whole vocabularies would cost more than the forward pass, so rows are cut by thresholds: exact top-k where a
short list is known to do, and a histogram of probabilities where the tail has to be small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from veridifr.evidence import CANDIDATE_BYTES, HOT
from veridifr.trace import Sampling

_BINS_PER_NAT = 4
_BINS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Candidates of R rows; the fields are those of `evidence.Evidence`."""

    counts_R: npt.NDArray[np.int64]
    ids_N: npt.NDArray[np.int32]
    logits_N: npt.NDArray[np.float32]
    lse_R: npt.NDArray[np.float64]
    rank_R: npt.NDArray[np.int32]
    floor_R: npt.NDArray[np.float32]
    tail_R: npt.NDArray[np.float64]
    hot_tail_R: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Which candidates a set of rows keeps, as parallel arrays sorted by (row, id), with what they leave out."""

    rows_N: torch.Tensor
    ids_N: torch.Tensor
    floor_R: torch.Tensor
    tail_R: torch.Tensor


def list_candidates(
    logits_RV: torch.Tensor,
    processed_RV: torch.Tensor,
    claimed_R: torch.Tensor,
    sampling: Sampling,
    *,
    tail_mass: float,
    list_bytes: int,
) -> Listing:
    """List candidates of R rows over V tokens (float32 logits), the claimed one always among them.

    `processed_RV` decides what can win (equal to `logits_RV` unless penalties and the like are on); the logits listed
    are the model's own.
    """
    vocab = logits_RV.shape[1]
    heat = 1.0 if sampling.greedy else sampling.temperature
    lse_R = torch.logsumexp(logits_RV, dim=1)
    heat_lse_R = lse_R
    if heat != 1.0 or processed_RV is not logits_RV:
        heat_lse_R = torch.logsumexp(processed_RV / heat, dim=1)
    own_R = logits_RV.gather(1, claimed_R[:, None])
    rank_R = (logits_RV > own_R).sum(dim=1)
    most = _most_kept(sampling)
    short = min(vocab, max(list_bytes // CANDIDATE_BYTES, 2, (most or 0) + 16))
    if sampling.greedy or most is not None:
        cut = _cut_top(processed_RV, heat_lse_R, heat, short)
    else:
        allowed = _allowed_tail(sampling, tail_mass)
        cut = _cut_tail(processed_RV, heat_lse_R, heat, short, allowed)
    rows_N, ids_N = _with_claimed(cut, claimed_R, vocab)
    values_N = logits_RV[rows_N, ids_N]
    counts_R = torch.bincount(rows_N, minlength=len(logits_RV))
    shown_N = values_N if processed_RV is logits_RV else processed_RV[rows_N, ids_N]
    hot_R = _hot_tail(rows_N, shown_N, counts_R, cut.floor_R, HOT * heat, vocab)
    return Listing(
        counts_R=counts_R.cpu().numpy().astype(np.int64),
        ids_N=ids_N.cpu().numpy().astype(np.int32),
        logits_N=values_N.cpu().numpy().astype(np.float32),
        lse_R=lse_R.cpu().numpy().astype(np.float64),
        rank_R=rank_R.cpu().numpy().astype(np.int32),
        floor_R=cut.floor_R.cpu().numpy().astype(np.float32),
        tail_R=cut.tail_R.cpu().numpy().astype(np.float64).clip(0.0, 1.0),
        hot_tail_R=hot_R.cpu().numpy().astype(np.float64).clip(0.0, 1.0),
    )


def _most_kept(sampling: Sampling) -> int | None:
    """How many tokens top-k or min-p can keep at most: min-p keeps only what has a 1/min_p-th of the whole mass."""
    limits = [] if sampling.top_k is None else [sampling.top_k]
    if sampling.min_p is not None:
        limits.append(int(1.0 / sampling.min_p) + 1)
    return min(limits) if limits else None


def _allowed_tail(sampling: Sampling, tail_mass: float) -> float:
    """Probability that may stay unlisted: what top-p surely cuts, with room for the edge to move."""
    if sampling.top_p is not None:
        return max(tail_mass, (1.0 - sampling.top_p) / 4)
    return tail_mass


def _cut_top(processed_RV: torch.Tensor, lse_R: torch.Tensor, heat: float, count: int) -> _Cut:
    """The `count` largest of each row."""
    rows, vocab = processed_RV.shape
    values, ids = processed_RV.topk(count, dim=1)
    listed_R = torch.exp(values.double() / heat - lse_R.double()[:, None]).sum(dim=1)
    floor_R = values[:, -1].clone()
    if count == vocab:
        floor_R.fill_(-torch.inf)
    ids_RK = ids.sort(dim=1).values
    index = torch.arange(rows, device=ids.device)[:, None].expand(rows, count)
    tail_R = torch.zeros_like(listed_R) if count == vocab else (1.0 - listed_R).clamp(min=0.0)
    return _Cut(rows_N=index.reshape(-1), ids_N=ids_RK.reshape(-1), floor_R=floor_R, tail_R=tail_R)


def _cut_tail(processed_RV: torch.Tensor, lse_R: torch.Tensor, heat: float, short: int, allowed: float) -> _Cut:
    """All but a tail of at most `allowed` probability, and at least the `short` largest of each row."""
    rows, vocab = processed_RV.shape
    # Half of the allowance goes to everything below a safe threshold, half to what the histogram cuts.
    safe_R = heat * (lse_R + float(np.log(allowed / (2 * vocab))))
    rows_N, ids_N = torch.nonzero(processed_RV >= safe_R[:, None], as_tuple=True)
    depth_N = lse_R[rows_N] - processed_RV[rows_N, ids_N] / heat
    bins_N = (depth_N * _BINS_PER_NAT).long().clamp_(0, _BINS - 1)
    mass_B = torch.bincount(rows_N * _BINS + bins_N, weights=torch.exp(-depth_N.double()), minlength=rows * _BINS)
    below_RB = mass_B.view(rows, _BINS).flip(1).cumsum(1).flip(1)  # mass of a bin and of all deeper ones
    cut_R = (below_RB > allowed / 2).sum(dim=1)  # the first bin that may be dropped with all below it
    kept_N = bins_N < cut_R[rows_N]
    counts_R = torch.bincount(rows_N[kept_N], minlength=rows)
    floor_R = heat * (lse_R - cut_R.to(lse_R.dtype) / _BINS_PER_NAT)
    dropped_R = below_RB.gather(1, cut_R.clamp(max=_BINS - 1)[:, None])[:, 0]
    dropped_R = torch.where(cut_R < _BINS, dropped_R, torch.zeros_like(dropped_R))
    tail_R = dropped_R + allowed / 2
    floor_R = torch.maximum(floor_R, safe_R)
    whole_R = counts_R == vocab
    tail_R, floor_R = tail_R.masked_fill(whole_R, 0.0), floor_R.masked_fill(whole_R, -torch.inf)
    rows_N, ids_N = rows_N[kept_N], ids_N[kept_N]
    few = torch.nonzero(counts_R < short)[:, 0]
    if len(few):
        top = _cut_top(processed_RV[few], lse_R[few], heat, short)
        tail_R[few] = torch.minimum(top.tail_R, tail_R[few])
        floor_R[few] = top.floor_R
        rest = (counts_R >= short)[rows_N]
        rows_N = torch.cat([rows_N[rest], few[top.rows_N]])
        ids_N = torch.cat([ids_N[rest], top.ids_N])
        order = torch.argsort(rows_N, stable=True)
        rows_N, ids_N = rows_N[order], ids_N[order]
    return _Cut(rows_N=rows_N, ids_N=ids_N, floor_R=floor_R, tail_R=tail_R)


def _with_claimed(cut: _Cut, claimed_R: torch.Tensor, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Insert claimed ids that are not listed."""
    keys_N = cut.rows_N * vocab + cut.ids_N
    wanted_R = torch.arange(len(claimed_R), device=claimed_R.device) * vocab + claimed_R
    place_R = torch.searchsorted(keys_N, wanted_R).clamp(max=len(keys_N) - 1)
    absent = wanted_R[keys_N[place_R] != wanted_R]
    if not len(absent):
        return cut.rows_N, cut.ids_N
    keys_N = torch.cat([keys_N, absent]).sort().values
    return keys_N // vocab, keys_N % vocab


def _hot_tail(
    rows_N: torch.Tensor, values_N: torch.Tensor, counts_R: torch.Tensor, floor_R: torch.Tensor, hot: float, vocab: int
) -> torch.Tensor:
    """Upper bound on the unlisted probability at temperature `hot`: every unlisted token at the floor."""
    scaled_N = torch.exp((values_N.double() - floor_R.double()[rows_N]) / hot).clamp(max=1e300)
    listed_R = torch.zeros(len(counts_R), dtype=torch.float64, device=values_N.device).index_add_(0, rows_N, scaled_N)
    unlisted_R = (vocab - counts_R).double()
    return unlisted_R / (unlisted_R + listed_R)
