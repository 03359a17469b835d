"""From rows of logits to the candidates worth keeping.

Sorting whole vocabularies would cost more than the forward pass. So whole rows are only ever compared with a threshold,
on the device that holds them: one that the k largest are sure to reach where the settings keep a known number, min-p's
own edge, or one on the probability where the tail has to be small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from veridifr.evidence import CANDIDATE_BYTES, HOT
from veridifr.filters import EDGE_WINDOW, filters_on
from veridifr.references.shares import ROUNDING, Shares, floats, shares_at
from veridifr.trace import Sampling

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_BOLD = 8.0
"""A threshold this many times the safe one, allowed / V, nearly always leaves out no more than is allowed."""
GROUPS = 4
"""Groups per candidate wanted, for the threshold that the largest reach: it then lets about a seventh more through."""
_ROOM = 192
"""Candidates per row for which there is room at first when listings are joined."""
_MOVED = 1.0
"""How far, in logits, the edge of top-p may move without reaching unlisted tokens."""
_FINITE = float(np.finfo(np.float32).min)
_LONG = 1024
"""A larger top-k cuts so little that the tail is listed instead, as without it; above V it is off."""
EDGE_ROOM = 16
"""Candidates listed beyond what top-k keeps, so that the cut may move."""


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
    """Which candidates R rows keep: `flat_N` = row * V + id, ascending, and their processed logits. No other logit is
    larger than `floor_R`; minus infinity where nothing that could win is left out."""

    flat_N: Indices
    values_N: npt.NDArray[np.float32]
    floor_R: npt.NDArray[np.float32]


def list_candidates(
    logits_RV: torch.Tensor,
    processed_RV: torch.Tensor,
    claimed_R: torch.Tensor,
    sampling: Sampling,
    *,
    tail_mass: float,
    list_bytes: int,
    scratch_RV: torch.Tensor | None = None,
) -> Listing:
    """List candidates of R rows over V tokens (float32 logits), the claimed one always among them.

    `processed_RV` decides what can win (the same object as `logits_RV` unless penalties and the like are on); the
    logits listed are the model's own. `scratch_RV`, of the same shape, is written over: new memory for every block of
    rows costs as much as what is computed in it.
    """
    rows, vocab = logits_RV.shape
    heat = 1.0 if sampling.greedy else sampling.temperature
    same = processed_RV is logits_RV
    if scratch_RV is None:
        scratch_RV = torch.empty_like(logits_RV)
    filtered = sampling.greedy or filters_on(sampling)
    base = 1.0 if not filtered and 0.5 <= heat <= 1.0 else heat  # without filters only a bound on the tail is needed
    lse_R = base_lse_R = shares_at(logits_RV, 1.0, scratch_RV)
    if base != 1.0 or not same:
        base_lse_R = shares_at(processed_RV, base, scratch_RV)
    short = min(vocab, fewest_listed(sampling, list_bytes))
    best_RG, tail_R = _best_of_groups(processed_RV, short), None
    if sampling.greedy or sampling.top_k is not None:
        cut = _cut_at(processed_RV, _largest(best_RG, short))
    elif sampling.min_p is not None:
        least_R = torch.minimum(_largest(best_RG, short), _min_p_edge(processed_RV, sampling.min_p, heat))
        cut = _cut_at(processed_RV, least_R)
    else:
        shares, allowed = Shares(scratch_RV, base, base_lse_R, heat), allowed_tail(sampling, tail_mass)
        cut, tail_R = _cut_tail(processed_RV, shares, best_RG, short, allowed)
        tail_R = tail_R if sampling.top_p is None else None  # top-p needs the very mass, not a bound on it
    own_R = logits_RV.gather(1, claimed_R[:, None])[:, 0]
    shown_own_R = own_R if same else processed_RV.gather(1, claimed_R[:, None])[:, 0]
    wanted_R = np.arange(rows, dtype=np.int64) * vocab + claimed_R.cpu().numpy()
    flat_N, shown_N = _with_claimed(cut, wanted_R, shown_own_R.cpu().numpy())
    counts_R = _counts(flat_N, rows, vocab)
    if tail_R is None:
        share_N = np.exp(shown_N.astype(np.float64) / heat - np.repeat(base_lse_R, counts_R))
        tail_R = 1.0 - np.add.reduceat(share_N, np.cumsum(counts_R) - counts_R)
    tail_R = np.where(cut.floor_R == -np.inf, 0.0, np.clip(tail_R, 0.0, 1.0))
    values_N = shown_N if same else logits_RV.reshape(-1)[torch.from_numpy(flat_N).to(logits_RV.device)].cpu().numpy()
    return Listing(
        counts_R=counts_R,
        ids_N=flat_N.astype(np.int32) - np.repeat(np.arange(rows, dtype=np.int32) * vocab, counts_R),
        logits_N=values_N,
        lse_R=lse_R,
        rank_R=_ranks(logits_RV, own_R, values_N, counts_R, cut.floor_R if same else None),
        floor_R=cut.floor_R,
        tail_R=tail_R,
        hot_tail_R=hot_tail(shown_N, counts_R, cut.floor_R, HOT * heat, vocab),
    )


def fewest_listed(sampling: Sampling, list_bytes: int) -> int:
    """How many candidates are wanted at least, so that about a seventh more fill the budget."""
    top_k = sampling.top_k if sampling.top_k is not None and sampling.top_k <= _LONG else None
    return max(list_bytes // CANDIDATE_BYTES * 7 // 8, 2, (top_k or 0) + EDGE_ROOM)


def _counts(flat_N: Indices, rows: int, vocab: int) -> Indices:
    """How many of the ascending `flat_N` = row * V + id each row owns, int64[R]."""
    return np.diff(np.searchsorted(flat_N, np.arange(rows + 1, dtype=np.int64) * vocab))


def _ranks(
    logits_RV: torch.Tensor,
    own_R: torch.Tensor,
    values_N: npt.NDArray[np.float32],
    counts_R: Indices,
    floor_R: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.int32]:
    """How many logits of the row are larger than the claimed one.

    Where that one reaches the floor, all that are larger are listed; elsewhere the whole row is counted.
    """
    claimed_R = own_R.cpu().numpy()
    larger = np.flatnonzero(values_N > np.repeat(claimed_R, counts_R))
    edges = np.searchsorted(larger, np.cumsum(counts_R))
    rank_R = np.diff(edges, prepend=0).astype(np.int32)
    below = np.arange(len(claimed_R)) if floor_R is None else np.flatnonzero(claimed_R < floor_R)
    if len(below):
        chosen = torch.from_numpy(below).to(logits_RV.device)
        rank_R[below] = (logits_RV[chosen] > own_R[chosen, None]).sum(dim=1, dtype=torch.int32).cpu().numpy()
    return rank_R


def _min_p_edge(processed_RV: torch.Tensor, min_p: float, heat: float) -> torch.Tensor:
    """The logit down to which min-p is decided, [R]: its own edge, lower by what still counts as near.

    min-p compares with the largest probability, so the number it keeps has no bound. A filter that stands before the
    temperature works at temperature 1: the lower of the two edges counts.
    """
    return processed_RV.amax(dim=1) + (max(heat, 1.0) * math.log(min_p) - EDGE_WINDOW)


def allowed_tail(sampling: Sampling, tail_mass: float) -> float:
    """Probability that may stay unlisted. Under top-p it is what surely is cut, also where the edge moves by `_MOVED`.

    Raising all that stands above a token by d/T multiplies the odds of their mass by exp(d/T): see `filters`.
    """
    if sampling.top_p is None:
        return tail_mass
    odds_left = (1.0 - sampling.top_p) / sampling.top_p * math.exp(-max(_MOVED / sampling.temperature, 1.4))
    return max(tail_mass, odds_left / (1.0 + odds_left))


def _best_of_groups(processed_RV: torch.Tensor, count: int) -> torch.Tensor:
    """Each row dealt to groups: the largest logit of every group, [R, G]; several groups for each of `count` tokens."""
    rows, vocab = processed_RV.shape
    groups = GROUPS * count
    deep = vocab // groups
    if deep < 2:
        return processed_RV
    best_RG = processed_RV[:, : deep * groups].view(rows, deep, groups).amax(dim=1)
    rest = vocab - deep * groups
    if rest:
        best_RG[:, :rest] = torch.maximum(best_RG[:, :rest], processed_RV[:, deep * groups :])
    return best_RG


def _largest(best_RG: torch.Tensor, count: int) -> torch.Tensor:
    """The `count`-th largest of each row, float32[R]: at least so many logits of the row reach it, and few others."""
    if best_RG.device.type != "cpu":
        return best_RG.topk(count, dim=1).values[:, -1]
    place = best_RG.shape[1] - count
    return torch.from_numpy(np.partition(best_RG.numpy(), place, axis=1)[:, place])


def _cut_tail(
    processed_RV: torch.Tensor, shares: Shares, best_RG: torch.Tensor, short: int, allowed: float
) -> tuple[_Cut, Floats]:
    """All but a tail of at most `allowed` probability, `short` tokens at least; and what the tail holds at most."""
    rows, vocab = processed_RV.shape
    lse_R = shares.lse_at_heat(best_RG)
    likely_R = (shares.heat * (lse_R + math.log(_BOLD * allowed / vocab)) - ROUNDING).astype(np.float32)
    least_R = torch.from_numpy(likely_R).to(processed_RV.device)
    few = torch.nonzero((best_RG >= least_R[:, None]).sum(dim=1) < short)[:, 0]
    if len(few):  # elsewhere the `short` largest reach it anyway
        least_R[few] = torch.minimum(least_R[few], _largest(best_RG[few], short))
    cut = _cut_at(processed_RV, least_R)
    tail_R = shares.tail(floats(least_R), _counts(cut.flat_N, rows, vocab), lse_R)
    over = np.flatnonzero(tail_R > allowed)
    if len(over):
        least_R[torch.from_numpy(over).to(least_R.device)] -= shares.heat * math.log(_BOLD)
        cut, tail_R[over] = _cut_at(processed_RV, least_R), allowed
    return cut, tail_R


def _cut_at(processed_RV: torch.Tensor, least_R: torch.Tensor) -> _Cut:
    """All logits of at least `least_R` but minus infinities."""
    rows, vocab = processed_RV.shape
    flat_N, values_N = _at_least(processed_RV, least_R.clamp(min=_FINITE))
    floor_R = least_R.cpu().numpy().copy()
    floor_R[_counts(flat_N, rows, vocab) == vocab] = -np.inf
    return _Cut(flat_N=flat_N, values_N=values_N, floor_R=floor_R)


def _at_least(processed_RV: torch.Tensor, least_R: torch.Tensor) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Flat indices and values of the entries of at least `least_R` of their row, on the CPU."""
    if processed_RV.device.type == "cpu":  # numpy compares and finds them several times as fast as torch
        values_RV = processed_RV.numpy()
        flat_N = np.flatnonzero(values_RV >= least_R.numpy()[:, None])
        return flat_N, values_RV.reshape(-1)[flat_N]
    chosen_N = torch.nonzero((processed_RV >= least_R[:, None]).reshape(-1))[:, 0]
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


def hot_tail(
    values_N: npt.NDArray[np.float32],
    counts_R: Indices,
    floor_R: npt.NDArray[np.float32],
    hot: float,
    vocab: int,
) -> Floats:
    """Upper bound on the unlisted probability at temperature `hot`: every unlisted token at the floor."""
    starts_R = np.cumsum(counts_R) - counts_R
    top_R = np.maximum.reduceat(values_N, starts_R)
    weights_N = values_N - np.repeat(top_R, counts_R)
    weights_N /= np.float32(hot)
    torch.from_numpy(weights_N).exp_()  # in place, and on all threads
    listed_R = np.add.reduceat(weights_N, starts_R)
    unlisted_R = (vocab - counts_R) * np.exp((floor_R - top_R) / hot)
    bound: Floats = unlisted_R / (unlisted_R + listed_R.astype(np.float64))
    return bound


def joined(parts: Iterable[Listing], rows: int) -> Listing:
    """Listings of consecutive rows, `rows` in all, as one.

    Each part is copied out as soon as it is made: small arrays that outlive the logits they came from would pin the
    holes that those leave in the heap, and memory would grow by whole blocks of logits.
    """
    kinds = {"counts_R": np.int64, "rank_R": np.int32, "floor_R": np.float32}
    kinds |= dict.fromkeys(("lse_R", "tail_R", "hot_tail_R"), np.float64)
    by_row: dict[str, npt.NDArray[Any]] = {name: np.empty(rows, dtype=kind) for name, kind in kinds.items()}
    ids_N, logits_N = np.empty(rows * _ROOM, dtype=np.int32), np.empty(rows * _ROOM, dtype=np.float32)
    row = filled = 0
    for part in parts:
        end, full = row + len(part.counts_R), filled + len(part.ids_N)
        if full > len(ids_N):  # half as much again as the rows so far make likely: untouched memory costs nothing
            longer = full + full * (rows - end) * 3 // (2 * end)
            ids_N, logits_N = (_longer(values, filled, longer) for values in (ids_N, logits_N))
        ids_N[filled:full], logits_N[filled:full] = part.ids_N, part.logits_N
        for name, values in by_row.items():
            values[row:end] = getattr(part, name)
        row, filled = end, full
        del part  # before the next one is made
    for values in (ids_N, logits_N):
        values.resize(filled, refcheck=False)  # gives the rest back where it stands, without a copy
    return Listing(ids_N=ids_N, logits_N=logits_N, **by_row)


def _longer(values: npt.NDArray[Any], filled: int, length: int) -> npt.NDArray[Any]:
    longer = np.empty(length, dtype=values.dtype)
    longer[:filled] = values[:filled]
    return longer
