"""Scores of engines that invert a cumulative distribution: one uniform number per token, no Gumbel noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.evidence import TAIL_MASS, Evidence
from veridifr.scores import GAP_CAP, Contenders, Floats, Hypothesis, Scores
from veridifr.scoring import statuses, stream_of
from veridifr.scoring_table import Table
from veridifr.trace import Trace


def score_inverse_cdf(trace: Trace, evidence: Evidence, hypothesis: Hypothesis, table: Table) -> Scores:
    """One uniform u per token picks a point of the cumulative distribution in descending order of logit.

    The claimed token owns the interval (F_lo, F_hi] of it. Distances are taken in logits as for top-p: raising all
    that stands before a point by d/T multiplies its odds F/(1-F) by exp(d/T).
    """
    empty = np.empty(0, dtype=np.int64)
    steps_T = np.arange(table.steps, dtype=np.int64)
    uniform_T = hypothesis.contract.noise(stream_of(trace, evidence, hypothesis), steps_T, empty, empty)
    logits_N = table.logits_N.astype(np.float64)
    edges_N = table.edges_N if table.edges_N is not None else np.full(len(logits_N), -np.inf)
    gap_T, best_T, match_T = np.empty(table.steps), np.empty(table.steps, np.int32), np.empty(table.steps, bool)
    rows, scores, edges, claimed = [], [], [], []
    for step in steps_T:  # a few microseconds a token: this family is rare and its sets are short
        lo, hi = evidence.offsets_T1[step], evidence.offsets_T1[step + 1]
        found = _interval(logits_N[lo:hi], edges_N[lo:hi], table, float(uniform_T[step]), int(step), lo)
        gap_T[step], best_T[step], match_T[step] = found.gap, evidence.ids_N[lo + found.best], found.match
        rows.append(np.full(len(found.lower), step, np.int32))
        scores.append(found.lower)
        edges.append(found.upper)
        claimed.append(found.own)
    return Scores(
        status_T=statuses(evidence, table, TAIL_MASS),
        gap_T=gap_T,
        match_T=match_T,
        best_T=best_T,
        rank_T=evidence.rank_T,
        logprob_T=table.logprob_T,
        contenders=Contenders(
            rows_M=np.concatenate(rows) if rows else np.empty(0, np.int32),
            scores_M=np.concatenate(scores).astype(np.float32) if rows else np.empty(0, np.float32),
            edges_M=np.concatenate(edges).astype(np.float32) if rows else np.empty(0, np.float32),
            noise_M=np.zeros(sum(map(len, rows)), np.float32),  # one point for all: no candidate has noise of its own
            claimed_M=np.concatenate(claimed) if rows else np.empty(0, bool),
        ),
        hashes=table.steps,
        inverse_cdf=True,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Interval:
    gap: float
    best: int
    match: bool
    lower: Floats
    upper: Floats
    own: npt.NDArray[np.bool_]


def _interval(logits_K: Floats, edges_K: Floats, table: Table, uniform: float, step: int, offset: int) -> _Interval:
    """Where u falls for one token: `lower`/`upper` are signed distances, in logits, of u to the claimed interval."""
    heat, claimed = table.temperature, int(table.claimed_T[step]) - int(offset)
    kept = edges_K <= 0
    kept[claimed] = True
    ids = np.flatnonzero(kept)
    ids = ids[np.argsort(-logits_K[ids], kind="stable")]
    weights = np.exp((logits_K[ids] - logits_K[ids[0]]) / heat)
    if edges_K[claimed] > 0:  # outside the set it owns no interval; it stands where the set ends
        weights[ids == claimed] = 0.0
    reach = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    odds = np.log(np.clip(reach, 1e-12, 1 - 1e-12)) - np.log1p(-np.clip(reach, 1e-12, 1 - 1e-12))
    point = np.log(max(uniform, 1e-12)) - np.log1p(-min(uniform, 1 - 1e-12))
    place = int(np.flatnonzero(ids == claimed)[0])
    below = np.inf if place == 0 else heat * (point - odds[place])
    above = np.inf if place == len(ids) - 1 else heat * (odds[place + 1] - point)
    hit = min(int(np.searchsorted(reach[1:], uniform, side="left")), len(ids) - 1)
    gap = float(np.clip(min(below, above, -edges_K[claimed]), -GAP_CAP, GAP_CAP))
    return _Interval(
        gap=gap,
        best=int(ids[hit]),
        match=hit == place,
        lower=np.array([min(below, GAP_CAP)]),
        upper=np.array([min(above, GAP_CAP)]),
        own=np.array([True]),
    )
