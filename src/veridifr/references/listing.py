"""From rows of logits to the candidates worth keeping.

Sorting whole vocabularies would cost more than the forward pass. So whole rows are only ever compared with a threshold,
on the device that holds them: exact top-k where a short list is known to do, and a threshold on the
probability where the tail has to be small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from veridifr.evidence import CANDIDATE_BYTES, HOT
from veridifr.trace import Sampling

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_BOLD = 8.0
"""A threshold this many times the safe one, allowed / V, nearly always leaves out no more than is allowed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Candidates of R rows; the fields are those of `evidence.Evidence`."""

    counts_R: Indices
    ids_N: npt.NDArray[np.int32]
    logits_N: npt.NDArray[np.float32]
    lse_R: Floats
    rank_R: npt.NDArray[np.int32]
    floor_R: npt.NDArray[np.float32]
    tail_R: Floats
    hot_tail_R: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cut:
    """Which candidates R rows keep: `flat_N` = row * V + id, ascending, their processed logits, and what is left out."""

    flat_N: Indices
    values_N: npt.NDArray[np.float32]
    floor_R: npt.NDArray[np.float32]
    tail_R: Floats


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

    `processed_RV` decides what can win (the same object as `logits_RV` unless penalties and the like are on); the
    logits listed are the model's own.
    """
    rows, vocab = logits_RV.shape
    heat = 1.0 if sampling.greedy else sampling.temperature
    lse_R = torch.logsumexp(logits_RV, dim=1)
    same = processed_RV is logits_RV
    heat_lse_R = lse_R if heat == 1.0 and same else torch.logsumexp(processed_RV / heat, dim=1)
    own_R = logits_RV.gather(1, claimed_R[:, None])
    rank_R = (logits_RV > own_R).sum(dim=1, dtype=torch.int32)
    most = _most_kept(sampling)
    short = min(vocab, max(list_bytes // CANDIDATE_BYTES, 2, (most or 0) + 16))
    if sampling.greedy or most is not None:
        cut = _cut_top(processed_RV, heat_lse_R, heat, short)
    else:
        cut = _cut_tail(processed_RV, heat_lse_R, heat, short, _allowed_tail(sampling, tail_mass))
    wanted_R = np.arange(rows, dtype=np.int64) * vocab + claimed_R.cpu().numpy()
    processed_own_R = own_R if same else processed_RV.gather(1, claimed_R[:, None])
    flat_N, shown_N = _with_claimed(cut, wanted_R, processed_own_R[:, 0].cpu().numpy())
    starts_R = np.searchsorted(flat_N, np.arange(rows, dtype=np.int64) * vocab)
    counts_R = np.diff(starts_R, append=len(flat_N))
    values_N = shown_N if same else logits_RV.reshape(-1)[torch.from_numpy(flat_N).to(logits_RV.device)].cpu().numpy()
    return Listing(
        counts_R=counts_R,
        ids_N=(flat_N - np.repeat(np.arange(rows, dtype=np.int64) * vocab, counts_R)).astype(np.int32),
        logits_N=values_N,
        lse_R=lse_R.cpu().numpy().astype(np.float64),
        rank_R=rank_R.cpu().numpy(),
        floor_R=cut.floor_R,
        tail_R=cut.tail_R.clip(0.0, 1.0),
        hot_tail_R=_hot_tail(shown_N, starts_R, counts_R, cut.floor_R, HOT * heat, vocab),
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
    values_RK, ids_RK = (found.cpu().numpy() for found in processed_RV.topk(count, dim=1))
    weights_RK = np.exp(values_RK.astype(np.float64) / heat - lse_R.cpu().numpy().astype(np.float64)[:, None])
    flat_RK = ids_RK + np.arange(rows, dtype=np.int64)[:, None] * vocab
    order_RK = np.argsort(ids_RK, axis=1)
    whole = count == vocab
    return _Cut(
        flat_N=np.take_along_axis(flat_RK, order_RK, axis=1).reshape(-1),
        values_N=np.take_along_axis(values_RK, order_RK, axis=1).reshape(-1),
        floor_R=np.full(rows, -np.inf, np.float32) if whole else values_RK[:, -1].copy(),
        tail_R=np.zeros(rows) if whole else (1.0 - weights_RK.sum(axis=1)).clip(min=0.0),
    )


def _cut_tail(processed_RV: torch.Tensor, lse_R: torch.Tensor, heat: float, short: int, allowed: float) -> _Cut:
    """All but a tail of at most `allowed` probability, and at least the `short` largest of each row."""
    rows, vocab = processed_RV.shape
    share_RV = torch.exp(processed_RV / heat - lse_R[:, None])
    safe = allowed / vocab
    least_R = torch.full_like(lse_R, _BOLD * safe)
    mask_RV = share_RV >= _BOLD * safe
    tail_R = share_RV.masked_fill(mask_RV, 0.0).sum(dim=1)
    over = torch.nonzero(tail_R > allowed)[:, 0]
    if len(over):
        least_R[over], tail_R[over] = safe, allowed
        mask_RV[over] = share_RV[over] >= safe
    few = torch.nonzero(mask_RV.sum(dim=1, dtype=torch.int32) < short)[:, 0]
    if len(few):  # room for hotter hypotheses, at little cost
        least_R[few] = torch.minimum(least_R[few], share_RV[few].topk(short, dim=1).values[:, -1])
        mask_RV[few] = share_RV[few] >= least_R[few, None]
    flat_N, values_N = _compressed(processed_RV, mask_RV)
    floor_R = (heat * (lse_R + torch.log(least_R))).cpu().numpy() + np.float32(1e-4)  # more than rounding takes away
    whole_R = np.bincount(flat_N // vocab, minlength=rows) == vocab if len(flat_N) >= vocab else np.zeros(rows, bool)
    return _Cut(
        flat_N=flat_N,
        values_N=values_N,
        floor_R=np.where(whole_R, np.float32(-np.inf), floor_R),
        tail_R=np.where(whole_R, 0.0, tail_R.cpu().numpy().astype(np.float64)),
    )


def _compressed(processed_RV: torch.Tensor, mask_RV: torch.Tensor) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Flat indices and values of the chosen entries, on the CPU."""
    if processed_RV.device.type == "cpu":  # numpy finds them twice as fast as torch
        flat_N = np.flatnonzero(mask_RV.numpy())
        return flat_N, processed_RV.numpy().reshape(-1)[flat_N]
    chosen_N = torch.nonzero(mask_RV.reshape(-1))[:, 0]
    return chosen_N.cpu().numpy(), processed_RV.reshape(-1)[chosen_N].cpu().numpy()


def _with_claimed(
    cut: _Cut, wanted_R: Indices, own_R: npt.NDArray[np.float32]
) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Insert claimed tokens that are not listed."""
    place_R = np.searchsorted(cut.flat_N, wanted_R)
    there = cut.flat_N[np.minimum(place_R, len(cut.flat_N) - 1)] == wanted_R
    if there.all():
        return cut.flat_N, cut.values_N
    at = place_R[~there]
    return np.insert(cut.flat_N, at, wanted_R[~there]), np.insert(cut.values_N, at, own_R[~there])


def _hot_tail(
    values_N: npt.NDArray[np.float32],
    starts_R: Indices,
    counts_R: Indices,
    floor_R: npt.NDArray[np.float32],
    hot: float,
    vocab: int,
) -> Floats:
    """Upper bound on the unlisted probability at temperature `hot`: every unlisted token at the floor."""
    top_R = np.maximum.reduceat(values_N, starts_R)
    listed_R = np.add.reduceat(np.exp((values_N - np.repeat(top_R, counts_R)) / np.float32(hot)), starts_R)
    unlisted_R = (vocab - counts_R) * np.exp((floor_R - top_R) / hot)
    bound: Floats = unlisted_R / (unlisted_R + listed_R.astype(np.float64))
    return bound
