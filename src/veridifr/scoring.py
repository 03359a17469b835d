"""From evidence to scores: processed logits, membership at the edge of the filters, noise, and who wins.

Only candidates that can win get noise: those near or in the kept set and, where the contract's noise is bounded, those
that the bound leaves a chance (exact pruning).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import Stream
from veridifr.errors import UnsupportedError
from veridifr.evidence import TAIL_MASS, Evidence, claimed_index
from veridifr.filters import filters_on, membership
from veridifr.processors import needs_processing, process
from veridifr.scores import EDGE_WINDOW, GAP_CAP, NEAR, WINNER_WINDOW, Contenders, Floats, Hypothesis, Scores, Status
from veridifr.trace import Trace


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
        from veridifr.scoring_inverse_cdf import score_inverse_cdf  # imports this module

        return score_inverse_cdf(trace, evidence, hypothesis, table)
    return _score_perturbed(trace, evidence, hypothesis, table, tail_mass)


_LIKELY = 6.0
"""Candidates with more than exp(-6) of the probability get their noise in the first pass."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Candidates with processed logits and distances to the edge, ready for any family of contract."""

    temperature: float
    steps: int
    rows_N: npt.NDArray[np.int64]
    claimed_T: npt.NDArray[np.int64]
    logits_N: Floats
    edges_N: Floats | None
    decided_T: npt.NDArray[np.bool_] | None
    logprob_T: Floats
    total_T: Floats
    """log of the sum of exp(l/T) over the vocabulary, in nats."""


def _table(trace: Trace, evidence: Evidence, hypothesis: Hypothesis, eos_ids: tuple[int, ...]) -> Table:
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
        edge = membership(
            order, sampling, heat, evidence.offsets_T1, logits_N, evidence.tail_at(heat), evidence.floor_T
        )
        edges_N, decided_T = edge.distance_N, edge.decided_R
    return Table(
        temperature=temperature,
        steps=steps,
        rows_N=rows_N,
        claimed_T=claimed_T,
        logits_N=logits_N,
        edges_N=edges_N,
        decided_T=decided_T,
        logprob_T=logprob_T,
        total_T=total_T,
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
    trace: Trace, evidence: Evidence, hypothesis: Hypothesis, table: Table, tail_mass: float
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
        status_T=statuses(evidence, table, tail_mass),
        gap_T=gap_T,
        match_T=first_T == table.claimed_T,
        best_T=evidence.ids_N[first_T],
        rank_T=evidence.rank_T,
        logprob_T=table.logprob_T,
        contenders=_contenders(table, scores_N, own_T, starts_T),
        hashes=hashes,
    )


def _perturb(
    trace: Trace, evidence: Evidence, hypothesis: Hypothesis, table: Table, live_N: npt.NDArray[np.bool_]
) -> tuple[Floats, int]:
    """Perturbed scores of the candidates that can win, -inf elsewhere, and how many noise values were drawn.

    First the likely candidates of each token; then, of the others, only those whose noise could still bring them near
    the best score so far. What falls short needs no logarithms, and what the noise's bound rules out no hash either.
    """
    contract = hypothesis.contract
    if contract.family == "greedy" or table.temperature == 0.0:
        return np.where(live_N, table.logits_N, -np.inf), 0
    stream, heat = stream_of(trace, evidence, hypothesis), table.temperature
    steps_T = np.arange(table.steps, dtype=np.int64)
    scores_N = np.full(len(table.logits_N), -np.inf)
    live_N = live_N & (table.logits_N > -np.inf)
    likely_N = live_N & (table.logits_N > (heat * table.total_T - heat * _LIKELY)[table.rows_N])
    likely_N[table.claimed_T] = live_N[table.claimed_T]
    first_N = np.flatnonzero(likely_N)
    ids_N = evidence.ids_N.astype(np.int64)
    noise = contract.gumbel(stream, steps_T, table.rows_N[first_N], ids_N[first_N])
    scores_N[first_N] = table.logits_N[first_N] + heat * noise
    best_T = np.maximum.reduceat(scores_N, evidence.offsets_T1[:-1]) - NEAR
    rest_N = live_N & ~likely_N
    if contract.bound is not None:
        rest_N &= table.logits_N > (best_T - heat * contract.bound)[table.rows_N]
    rest = np.flatnonzero(rest_N)
    if len(rest):
        top_T = np.maximum.reduceat(np.where(rest_N, table.logits_N, -np.inf), evidence.offsets_T1[:-1])
        least_T = np.where(top_T > -np.inf, (best_T - top_T) / heat, np.inf)
        index, noise = contract.gumbel_above(stream, steps_T, table.rows_N[rest], ids_N[rest], least_T)
        scores_N[rest[index]] = table.logits_N[rest[index]] + heat * noise
    return scores_N, len(first_N) + len(rest)


def stream_of(trace: Trace, evidence: Evidence, hypothesis: Hypothesis) -> Stream:
    if hypothesis.seed is None:
        raise UnsupportedError("sampling.seed", "not given, and without it the noise is not known")
    return Stream(
        seed=hypothesis.seed,
        prompt_length=len(trace.prompt_token_ids) + hypothesis.prompt_shift,
        vocab_size=evidence.vocab_size,
        engine=trace.engine,
    )


def statuses(evidence: Evidence, table: Table, tail_mass: float) -> npt.NDArray[np.int8]:
    """BOUND where an unlisted token could belong to the kept set with more than `tail_mass` of probability."""
    short_T = evidence.tail_at(table.temperature or evidence.temperature) > tail_mass * (1 + 1e-9)
    if table.decided_T is not None:
        short_T = short_T & ~table.decided_T
    elif table.temperature == 0.0:  # greedy: the argmax is listed, so nothing unlisted can win
        best_T = np.maximum.reduceat(table.logits_N, evidence.offsets_T1[:-1])
        short_T = short_T & (best_T < evidence.floor_T)
    return np.where(short_T, Status.BOUND, Status.SCORED).astype(np.int8)


def _contenders(table: Table, scores_N: Floats, own_T: Floats, starts_T: npt.NDArray[np.int64]) -> Contenders:
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


def sampling_probability(trace: Trace, evidence: Evidence, hypothesis: Hypothesis) -> Floats:
    """Probability of each claimed token under the sampling distribution itself (no noise known); 0 outside the set."""
    table = _table(trace, evidence, hypothesis, ())
    if table.edges_N is None:
        return np.exp(np.minimum(table.logprob_T, 0.0))
    starts_T = evidence.offsets_T1[:-1]
    kept_N = table.edges_N <= 0
    top_T = np.maximum.reduceat(np.where(kept_N, table.logits_N, -np.inf), starts_T)
    weights_N = np.where(kept_N, np.exp((table.logits_N - top_T[table.rows_N]) / (table.temperature or 1.0)), 0.0)
    share: Floats = weights_N[table.claimed_T] / np.add.reduceat(weights_N, starts_T)
    return share
