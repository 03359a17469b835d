"""One set of numbers per token, or a reason why not: what the claimed token scores under the reference and the noise.

With z_j = l_j + T g_j (processed logit plus temperature times Gumbel noise, the Token-DiFR score of arXiv 2511.20621,
section 4.2, in logit units) and m_j the signed distance to the edge of top-k, top-p and min-p (`filters`), candidate j
loses to the claimed token c by

    a_j = max(z_c - z_j, m_j)        (it scores less, or it is not in the set)

and the signed gap is min(-m_c, min over j of a_j): the smallest logit error that would turn the outcome round. The
margin is max(0, -gap): 0 where the claimed token is the argmax, and finite always, also at the edge of a filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import Contract, Stream
from veridifr.errors import UnsupportedError
from veridifr.evidence import TAIL_MASS, Evidence, claimed_index
from veridifr.filters import filters_on, membership
from veridifr.processors import needs_processing, process
from veridifr.trace import Sampling, Trace

Floats = npt.NDArray[np.float64]
GAP_CAP = 32.0
"""Gaps are cut to this many logits: beyond it nothing distinguishes them."""
EDGE_WINDOW = 2.0
"""Candidates further than this many logits outside the kept set cannot win and get no noise."""
WINNER_WINDOW = 8.0
"""Contenders kept for the likelihood: within this many logits of the best perturbed score."""


class Status(IntEnum):
    """What is known about a token's score."""

    SCORED = 0
    """The score is exact up to the unlisted mass allowed."""
    BOUND = 1
    """The listing is too short: an unlisted token might have won, so the margin is a lower bound."""
    MISSING = 2
    """Asked for, but there is no evidence: the token is absent, or the reference did not cover it."""
    FORCED = 3
    """The verifier's own request left no choice, so the token is no evidence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contenders:
    """Candidates that could have won, M in all: `rows_M` (ascending), `scores_M` = z_j - z_c, `edges_M` = m_j, and
    `claimed_M` marks the claimed token itself. What the likelihood needs, and small."""

    rows_M: npt.NDArray[np.int32]
    scores_M: npt.NDArray[np.float32]
    edges_M: npt.NDArray[np.float32]
    claimed_M: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of the T output tokens of one trace.

    `gap_T` and `margin_T` in logits; `match_T` is whether the claimed token is the argmax of the kept set; `rank_T`
    counts larger logits; `logprob_T` is the log-probability at the claimed temperature, before filters, in nats
    (temperature 1 for greedy). Where `status_T` is MISSING the other entries are not to be read.
    """

    status_T: npt.NDArray[np.int8]
    gap_T: Floats
    match_T: npt.NDArray[np.bool_]
    best_T: npt.NDArray[np.int32]
    rank_T: npt.NDArray[np.int32]
    logprob_T: Floats
    contenders: Contenders
    hashes: int
    """How many noise values were computed."""
    inverse_cdf: bool = False
    """Whether `contenders` holds intervals (`scores_M`, `edges_M` = distances of u to both ends) instead."""

    @property
    def margin_T(self) -> Floats:
        """Post-Gumbel margin in logits, at least 0."""
        return np.maximum(0.0, -self.gap_T)

    @property
    def usable_T(self) -> npt.NDArray[np.bool_]:
        """Tokens that count as scored."""
        scored: npt.NDArray[np.bool_] = self.status_T == Status.SCORED
        return scored


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What is assumed of the sampler when a trace is scored. The claim is one hypothesis among many."""

    contract: Contract
    sampling: Sampling
    seed: int | None
    prompt_shift: int = 0
    """Added to the prompt length from which positions are counted."""


def score(
    trace: Trace,
    evidence: Evidence,
    hypothesis: Hypothesis,
    *,
    eos_ids: tuple[int, ...] = (),
    tail_mass: float = TAIL_MASS,
) -> Scores:
    """Score every token that `evidence` covers under `hypothesis`.

    Raises `UnsupportedError` naming the setting that the contract cannot honour.
    """
    contract, sampling = hypothesis.contract, hypothesis.sampling
    contract.check(sampling, trace.engine, evidence.vocab_size)
    table = _table(trace, evidence, hypothesis, eos_ids)
    if contract.family == "inverse_cdf":
        return _score_inverse_cdf(trace, evidence, hypothesis, table)
    return _score_perturbed(trace, evidence, hypothesis, table, tail_mass)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """Candidates with processed logits and distances to the edge, ready for any family of contract."""

    temperature: float
    steps: int
    rows_N: npt.NDArray[np.int64]
    claimed_T: npt.NDArray[np.int64]
    logits_N: Floats
    edges_N: Floats | None
    decided_T: npt.NDArray[np.bool_] | None
    logprob_T: Floats


def _table(trace: Trace, evidence: Evidence, hypothesis: Hypothesis, eos_ids: tuple[int, ...]) -> _Table:
    sampling, order = hypothesis.sampling, hypothesis.contract.order
    temperature = 0.0 if sampling.greedy else hypothesis.contract.effective_temperature(sampling.temperature)
    steps = evidence.tokens
    rows_N, logits_N = evidence.rows_N, evidence.logits_N.astype(np.float64)
    claimed_T = claimed_index(evidence, trace.output_token_ids[:steps])
    heat = temperature or 1.0
    if heat == 1.0:
        total_T = evidence.lse_T
    else:
        total_T = _log_total(evidence, logits_N, heat)
    logprob_T = logits_N[claimed_T] / heat - total_T
    if needs_processing(sampling):
        steps_T = np.arange(steps, dtype=np.int64)
        logits_N = process(
            order, sampling, trace.prompt_token_ids, trace.output_token_ids, steps_T, rows_N,
            evidence.ids_N.astype(np.int64), logits_N, eos_ids,
        )  # fmt: skip
    edges_N = decided_T = None
    if filters_on(sampling) and not sampling.greedy:
        edge = membership(order, sampling, heat, evidence.offsets_T1, logits_N, evidence.tail_at(heat), evidence.floor_T)
        edges_N, decided_T = edge.distance_N, edge.decided_R
    return _Table(
        temperature=temperature,
        steps=steps,
        rows_N=rows_N,
        claimed_T=claimed_T,
        logits_N=logits_N,
        edges_N=edges_N,
        decided_T=decided_T,
        logprob_T=logprob_T,
    )


def _log_total(evidence: Evidence, logits_N: Floats, temperature: float) -> Floats:
    """log of the sum of exp(l / temperature) over the vocabulary; the unlisted part is what the listing says of it.

    The stated tail belongs to the claimed temperature; at a lower one it is smaller, so this errs by at most the tail.
    """
    start_T = evidence.offsets_T1[:-1]
    top_T = np.maximum.reduceat(logits_N, start_T)
    weights_N = np.exp((logits_N - np.repeat(top_T, np.diff(evidence.offsets_T1))) / temperature)
    listed_T = np.add.reduceat(weights_N, start_T)
    total: Floats = top_T / temperature + np.log(listed_T) - np.log1p(-np.minimum(evidence.tail_at(temperature), 0.5))
    return total


def _score_perturbed(
    trace: Trace, evidence: Evidence, hypothesis: Hypothesis, table: _Table, tail_mass: float
) -> Scores:
    starts_T = evidence.offsets_T1[:-1]
    live_N = table.logits_N > -np.inf
    if table.edges_N is not None:
        live_N &= table.edges_N < EDGE_WINDOW
    live_N[table.claimed_T] = True
    scores_N, hashes = _perturb(trace, evidence, hypothesis, table, live_N)
    own_T = scores_N[table.claimed_T]
    own_T = np.where(own_T == -np.inf, -1e30, own_T)  # a claimed token that the settings forbid scores below all
    loses_N = own_T[table.rows_N] - scores_N
    if table.edges_N is not None:
        loses_N = np.maximum(loses_N, table.edges_N)
    loses_N[table.claimed_T] = np.inf if table.edges_N is None else -table.edges_N[table.claimed_T]
    gap_T = np.clip(np.minimum.reduceat(loses_N, starts_T), -GAP_CAP, GAP_CAP)
    kept_N = scores_N if table.edges_N is None else np.where(table.edges_N <= 0, scores_N, -np.inf)
    top_T = np.maximum.reduceat(kept_N, starts_T)
    winner_N = np.flatnonzero(kept_N == top_T[table.rows_N])
    first_T = winner_N[np.searchsorted(table.rows_N[winner_N], np.arange(table.steps))]  # the lowest id wins a tie
    return Scores(
        status_T=_statuses(evidence, table, tail_mass),
        gap_T=gap_T,
        match_T=first_T == table.claimed_T,
        best_T=evidence.ids_N[first_T],
        rank_T=evidence.rank_T,
        logprob_T=table.logprob_T,
        contenders=_contenders(table, scores_N, own_T, starts_T),
        hashes=hashes,
    )


def _perturb(
    trace: Trace, evidence: Evidence, hypothesis: Hypothesis, table: _Table, live_N: npt.NDArray[np.bool_]
) -> tuple[Floats, int]:
    """Perturbed scores of the live candidates that can win, -inf elsewhere, and how many noise values that took."""
    contract = hypothesis.contract
    if contract.family == "greedy" or table.temperature == 0.0:
        return np.where(live_N, table.logits_N, -np.inf), 0
    stream = _stream(trace, evidence, hypothesis)
    steps_T = np.arange(table.steps, dtype=np.int64)
    scores_N = np.full(len(table.logits_N), -np.inf)

    def add(index: npt.NDArray[np.int64]) -> None:
        noise = contract.gumbel(stream, steps_T, table.rows_N[index], evidence.ids_N[index].astype(np.int64))
        scores_N[index] = table.logits_N[index] + table.temperature * noise

    hashes = 0
    if contract.bound is not None:  # exact pruning: nothing below best - T * bound can win
        starts_T = evidence.offsets_T1[:-1]
        alive_N = np.where(live_N, table.logits_N, -np.inf)
        peak_T = np.maximum.reduceat(alive_N, starts_T)
        first_N = np.flatnonzero(alive_N == peak_T[table.rows_N])
        first_N = first_N[peak_T[table.rows_N[first_N]] > -np.inf]
        add(first_N)
        best_T = np.maximum.reduceat(scores_N, starts_T)
        reach_N = table.logits_N + (table.temperature * contract.bound) >= best_T[table.rows_N] - WINNER_WINDOW / 4
        rest_N = live_N & reach_N
        rest_N[table.claimed_T] = live_N[table.claimed_T]
        rest_N[first_N] = False
        hashes += len(first_N)
    else:
        rest_N = live_N
    index = np.flatnonzero(rest_N & (table.logits_N > -np.inf))
    add(index)
    return scores_N, hashes + len(index)


def _stream(trace: Trace, evidence: Evidence, hypothesis: Hypothesis) -> Stream:
    if hypothesis.seed is None:
        raise UnsupportedError("sampling.seed", "not given, and without it the noise is not known")
    return Stream(
        seed=hypothesis.seed,
        prompt_length=len(trace.prompt_token_ids) + hypothesis.prompt_shift,
        vocab_size=evidence.vocab_size,
        engine=trace.engine,
    )


def _statuses(evidence: Evidence, table: _Table, tail_mass: float) -> npt.NDArray[np.int8]:
    """BOUND where an unlisted token could belong to the kept set with more than `tail_mass` of probability."""
    short_T = evidence.tail_at(table.temperature or evidence.temperature) > tail_mass * (1 + 1e-9)
    if table.decided_T is not None:
        short_T = short_T & ~table.decided_T
    elif table.temperature == 0.0:  # greedy: the argmax is listed, so nothing unlisted can win
        best_T = np.maximum.reduceat(table.logits_N, evidence.offsets_T1[:-1])
        short_T = short_T & (best_T < evidence.floor_T)
    return np.where(short_T, Status.BOUND, Status.SCORED).astype(np.int8)


def _contenders(table: _Table, scores_N: Floats, own_T: Floats, starts_T: npt.NDArray[np.int64]) -> Contenders:
    near_N = scores_N > -np.inf
    top_T = np.maximum.reduceat(scores_N, starts_T)
    if table.edges_N is not None:  # the best member of the set, not the best of those cut away
        top_T = np.maximum.reduceat(np.where(table.edges_N <= 0, scores_N, -np.inf), starts_T)
    near_N &= scores_N > top_T[table.rows_N] - WINNER_WINDOW
    near_N[table.claimed_T] = True
    index = np.flatnonzero(near_N)
    edges = np.full(len(index), -np.inf) if table.edges_N is None else table.edges_N[index]
    claimed_N = np.zeros(len(scores_N), dtype=bool)
    claimed_N[table.claimed_T] = True
    rows = table.rows_N[index]
    with np.errstate(invalid="ignore"):
        relative = scores_N[index] - own_T[rows]
    relative = np.where(claimed_N[index], np.where(own_T[rows] <= -1e30, -np.inf, 0.0), relative)
    return Contenders(
        rows_M=rows.astype(np.int32),
        scores_M=relative.astype(np.float32),
        edges_M=edges.astype(np.float32),
        claimed_M=claimed_N[index],
    )


def _score_inverse_cdf(trace: Trace, evidence: Evidence, hypothesis: Hypothesis, table: _Table) -> Scores:
    """One uniform u per token picks a point of the cumulative distribution in descending order of logit.

    The claimed token owns the interval (F_lo, F_hi] of it. Distances are taken in logits as for top-p: raising all
    that stands before a point by d/T multiplies its odds F/(1-F) by exp(d/T).
    """
    empty = np.empty(0, dtype=np.int64)
    steps_T = np.arange(table.steps, dtype=np.int64)
    uniform_T = hypothesis.contract.noise(_stream(trace, evidence, hypothesis), steps_T, empty, empty)
    edges_N = table.edges_N if table.edges_N is not None else np.full(len(table.logits_N), -np.inf)
    gap_T, best_T, match_T = np.empty(table.steps), np.empty(table.steps, np.int32), np.empty(table.steps, bool)
    rows, scores, edges, claimed = [], [], [], []
    for step in steps_T:  # a few microseconds a token: this family is rare and its sets are short
        lo, hi = evidence.offsets_T1[step], evidence.offsets_T1[step + 1]
        found = _interval(table.logits_N[lo:hi], edges_N[lo:hi], table, float(uniform_T[step]), int(step), lo)
        gap_T[step], best_T[step], match_T[step] = found.gap, evidence.ids_N[lo + found.best], found.match
        rows.append(np.full(len(found.lower), step, np.int32))
        scores.append(found.lower)
        edges.append(found.upper)
        claimed.append(found.own)
    return Scores(
        status_T=_statuses(evidence, table, TAIL_MASS),
        gap_T=gap_T,
        match_T=match_T,
        best_T=best_T,
        rank_T=evidence.rank_T,
        logprob_T=table.logprob_T,
        contenders=Contenders(
            rows_M=np.concatenate(rows) if rows else np.empty(0, np.int32),
            scores_M=np.concatenate(scores).astype(np.float32) if rows else np.empty(0, np.float32),
            edges_M=np.concatenate(edges).astype(np.float32) if rows else np.empty(0, np.float32),
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


def _interval(logits_K: Floats, edges_K: Floats, table: _Table, uniform: float, step: int, offset: int) -> _Interval:
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
