"""From evidence to scores: processed logits, membership at the edge of the filters, noise, and who wins.

Only candidates that can win get noise: those near or in the kept set and, where the contract's noise is bounded, those
that the bound leaves a chance (exact pruning). Long listings are scored in blocks of tokens on several threads: numpy
lets them run side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import Stream
from veridifr.contracts.registry import infer
from veridifr.errors import UnsupportedError
from veridifr.evidence import TAIL_MASS, Evidence, Race
from veridifr.filters import EDGE_WINDOW
from veridifr.scores import GAP_CAP, NEAR, WINNER_WINDOW, Contenders, Floats, Hypothesis, Scores, Status
from veridifr.scoring_table import Indices, Logits, Table, above, largest_by_row, table_of
from veridifr.threads import threads
from veridifr.trace import Trace

_LIKELY = 6.0
"""Candidates with more than exp(-6) of the probability get their noise in the first pass."""
_THREADS = 4
_BLOCK, _BLOCK_ALONE = 16_384, 65_536
"""Candidates up to which a block is not worth splitting, for four threads and for fewer: a block costs a fraction of a
millisecond in calls alone."""


def score_claim(trace: Trace, evidence: Evidence, *, eos_ids: tuple[int, ...] = ()) -> Scores:
    """Score every token that `evidence` covers under the trace's own claim: its settings, its seed, and the contract
    that its engine record names or implies.

    Raises `UnsupportedError` where the record implies none, or naming the setting that the contract cannot honour.
    """
    contract = infer(trace.engine, trace.sampling, evidence.vocab_size).contract
    claim = Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed)
    return score(trace, evidence, claim, eos_ids=eos_ids)


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
    if contract.family == "inverse_cdf":
        from veridifr.scoring_inverse_cdf import score_inverse_cdf  # imports this module

        return score_inverse_cdf(trace, evidence, hypothesis, table_of(trace, evidence, hypothesis, eos_ids))
    if contract.family == "distribution":
        from veridifr.scoring_distribution import score_distribution  # imports this module

        return score_distribution(table_of(trace, evidence, hypothesis, eos_ids), sampling, tail_mass)

    def part(first: int, last: int) -> Scores:
        table = table_of(trace, _tokens(evidence, first, last), hypothesis, eos_ids, first)
        return _score_perturbed(trace, hypothesis, table, tail_mass)

    count = threads(_THREADS)
    edges = _blocks(evidence.offsets_T1, _BLOCK_ALONE if count < _THREADS else _BLOCK)
    if len(edges) == 2 or count == 1:
        return _joined([part(first, last) for first, last in pairwise(edges)])
    with ThreadPoolExecutor(min(count, len(edges) - 1)) as pool:
        return _joined(list(pool.map(part, edges[:-1], edges[1:])))


def _blocks(offsets_T1: Indices, size: int) -> list[int]:
    """Tokens at which blocks of one to two times `size` candidates begin, and the end: an even number of them."""
    tokens, candidates = len(offsets_T1) - 1, int(offsets_T1[-1])
    count = 1 if candidates <= size else 2 * -(-candidates // (4 * size))
    inner = np.searchsorted(offsets_T1, np.linspace(0, candidates, count + 1)[1:-1])
    return sorted({0, *inner.tolist(), tokens})


def _tokens(evidence: Evidence, first: int, last: int) -> Evidence:
    """The evidence for tokens `first` to `last` - 1."""
    if (first, last) == (0, evidence.tokens):
        return evidence
    low, high = evidence.offsets_T1[first], evidence.offsets_T1[last]
    return replace(
        evidence,
        offsets_T1=evidence.offsets_T1[first : last + 1] - low,
        ids_N=evidence.ids_N[low:high],
        logits_N=evidence.logits_N[low:high],
        lse_T=evidence.lse_T[first:last],
        rank_T=evidence.rank_T[first:last],
        floor_T=evidence.floor_T[first:last],
        tail_T=evidence.tail_T[first:last],
        hot_tail_T=evidence.hot_tail_T[first:last],
        race=None if evidence.race is None else _part_of(evidence.race, first, last),
    )


def _part_of(race: Race, first: int, last: int) -> Race:
    inside_O = (race.open_O >= first) & (race.open_O < last)
    return replace(race, open_O=race.open_O[inside_O] - first)


def _joined(parts: Sequence[Scores]) -> Scores:
    """Scores of consecutive tokens as one."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(len(part.status_T) for part in parts[:-1])]).astype(np.int32)
    few = [part.contenders for part in parts]
    return Scores(
        status_T=np.concatenate([part.status_T for part in parts]),
        gap_T=np.concatenate([part.gap_T for part in parts]),
        match_T=np.concatenate([part.match_T for part in parts]),
        best_T=np.concatenate([part.best_T for part in parts]),
        rank_T=np.concatenate([part.rank_T for part in parts]),
        logprob_T=np.concatenate([part.logprob_T for part in parts]),
        contenders=Contenders(
            rows_M=np.concatenate([found.rows_M + first for found, first in zip(few, firsts, strict=True)]),
            scores_M=np.concatenate([found.scores_M for found in few]),
            edges_M=np.concatenate([found.edges_M for found in few]),
            noise_M=np.concatenate([found.noise_M for found in few]),
            claimed_M=np.concatenate([found.claimed_M for found in few]),
        ),
        hashes=sum(part.hashes for part in parts),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Perturbed:
    """The M candidates that could win, and the claimed ones: `index_M` (ascending) into the table's candidates."""

    index_M: Indices
    rows_M: npt.NDArray[np.int64]
    scores_M: Floats
    """Perturbed scores z; -inf where a setting forbids the claimed token."""
    edges_M: Floats | None
    own_T: Indices
    """Where the claimed token of each row stands."""
    starts_T: Indices
    """Where each row begins."""

    @property
    def members_M(self) -> Floats:
        """Scores of the members of the kept set, -inf for others."""
        return self.scores_M if self.edges_M is None else np.where(self.edges_M <= 0, self.scores_M, -np.inf)


def _score_perturbed(trace: Trace, hypothesis: Hypothesis, table: Table, tail_mass: float) -> Scores:
    field, hashes = _perturb(trace, hypothesis, table)
    z_T = field.scores_M[field.own_T]
    z_T = np.where(z_T == -np.inf, -1e30, z_T)  # a claimed token that the settings forbid scores below all
    loses_M = z_T[field.rows_M] - field.scores_M
    if field.edges_M is not None:
        loses_M = np.maximum(loses_M, field.edges_M)
    loses_M[field.own_T] = np.inf if field.edges_M is None else -field.edges_M[field.own_T]
    gap_T = np.clip(np.minimum.reduceat(loses_M, field.starts_T), -GAP_CAP, GAP_CAP)
    status_T = statuses(table.evidence, table, tail_mass)
    status_T[_raced(trace, hypothesis, table)] = Status.SCORED
    members_M = field.members_M
    top_T = np.maximum.reduceat(members_M, field.starts_T)
    winners = np.flatnonzero(members_M == top_T[field.rows_M])
    winner_T = winners[np.searchsorted(field.rows_M[winners], np.arange(table.steps))]  # the lowest id wins a tie
    return Scores(
        status_T=status_T,
        gap_T=gap_T,
        match_T=winner_T == field.own_T,
        best_T=table.evidence.ids_N[field.index_M[winner_T]],
        rank_T=table.evidence.rank_T,
        logprob_T=table.logprob_T,
        contenders=_contenders(field, table.logits_N[field.index_M], top_T, z_T),
        hashes=hashes,
    )


def _perturb(trace: Trace, hypothesis: Hypothesis, table: Table) -> tuple[_Perturbed, int]:
    """Perturbed scores of the candidates that can win, and how many noise values were drawn.

    First the likely candidates of each token; then, of the others, only those whose noise could still bring them near
    the best score so far. What falls short needs no logarithms, and what the noise's bound rules out no hash either.
    """
    contract, heat, logits_N = hypothesis.contract, table.temperature, table.logits_N
    live_N = logits_N > -np.inf
    if table.edges_N is not None:
        live_N &= table.edges_N < EDGE_WINDOW
        live_N[table.claimed_T] = logits_N[table.claimed_T] > -np.inf
    if contract.family == "greedy" or heat == 0.0:
        live = np.flatnonzero(live_N)
        return _field(table, live, logits_N[live].astype(np.float64)), 0
    stream = stream_of(trace, table.evidence, hypothesis)
    steps_T = np.arange(table.first, table.first + table.steps, dtype=np.int64)
    likely_N = above(logits_N, heat * table.total_T - heat * _LIKELY, table.counts_T)
    likely_N[table.claimed_T] = True
    likely_N &= live_N
    likely = np.flatnonzero(likely_N)
    rows_L, firsts_L = table.rows_of(likely)
    noise = contract.gumbel(stream, steps_T, rows_L, table.evidence.ids_N[likely].astype(np.int64))
    scores_L = logits_N[likely] + heat * noise
    best_T = largest_by_row(scores_L, firsts_L) - NEAR
    rest_N = np.greater(live_N, likely_N, out=live_N)
    if contract.bound is not None:
        rest_N &= above(logits_N, best_T - heat * contract.bound, table.counts_T)
    rest = np.flatnonzero(rest_N)
    if not len(rest):
        return _field(table, likely, scores_L), len(likely)
    (rows_M, firsts_M), rest_M = table.rows_of(rest), logits_N[rest]
    top_T = largest_by_row(rest_M, firsts_M)
    least_T = np.where(top_T > -np.inf, (best_T - top_T) / heat, np.inf)
    ids_M = table.evidence.ids_N[rest].astype(np.int64)
    index, noise = contract.gumbel_above(stream, steps_T, rows_M, ids_M, least_T)
    found = np.concatenate([likely, rest[index]])
    order = np.argsort(found, kind="stable")  # two ascending parts: no more than a merge
    scores = np.concatenate([scores_L, rest_M[index] + heat * noise])
    return _field(table, found[order], scores[order]), len(likely) + len(rest)


def _field(table: Table, index: Indices, scores: Floats) -> _Perturbed:
    """The field of candidates `index` (ascending) with their scores; claimed tokens are added where they lack."""
    own_T = np.searchsorted(index, table.claimed_T)
    lacks_T = index[np.minimum(own_T, len(index) - 1)] != table.claimed_T if len(index) else np.ones(table.steps, bool)
    if lacks_T.any():
        scores = np.insert(scores, own_T[lacks_T], -np.inf)
        index = np.insert(index, own_T[lacks_T], table.claimed_T[lacks_T])
        own_T = np.searchsorted(index, table.claimed_T)
    rows, starts_T = table.rows_of(index)
    return _Perturbed(
        index_M=index,
        rows_M=rows,
        scores_M=scores,
        edges_M=None if table.edges_N is None else table.edges_N[index],
        own_T=own_T,
        starts_T=starts_T,
    )


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


def _raced(trace: Trace, hypothesis: Hypothesis, table: Table) -> npt.NDArray[np.bool_]:
    """Tokens of whose race the reference listed all that could win: it drew the noise of this very hypothesis."""
    race, seed = table.evidence.race, hypothesis.seed
    settled_T = np.zeros(table.steps, dtype=np.bool_)
    if race is None or seed is None or hypothesis.prompt_shift or table.edges_N is not None:
        return settled_T
    drawn = (race.contract, race.seed, race.temperature)
    if drawn == (hypothesis.contract.id, seed + (trace.engine.child or 0), table.temperature):
        settled_T[:] = True
        settled_T[race.open_O] = False
    return settled_T


def _contenders(field: _Perturbed, logits_M: Logits, top_T: Floats, z_T: Floats) -> Contenders:
    """Candidates near the best member of the set; `z_T` is the score of the claimed token, finite."""
    near_M = field.scores_M > top_T[field.rows_M] - WINNER_WINDOW
    near_M[field.own_T] = True
    index = np.flatnonzero(near_M)
    rows = field.rows_M[index]
    claimed_M = np.zeros(len(field.rows_M), dtype=bool)
    claimed_M[field.own_T] = True
    claimed = claimed_M[index]
    relative = np.where(claimed, np.where(z_T[rows] <= -1e30, -np.inf, 0.0), field.scores_M[index] - z_T[rows])
    edges = np.full(len(index), -np.inf) if field.edges_M is None else field.edges_M[index]
    known_M = field.scores_M > -np.inf  # a claimed token that the settings forbid has no score and so no noise
    noise_M = np.subtract(field.scores_M, logits_M, out=np.zeros(len(logits_M)), where=known_M)
    noise = noise_M[index] - noise_M[field.own_T][rows]
    return Contenders(
        rows_M=rows.astype(np.int32),
        scores_M=relative.astype(np.float32),
        edges_M=edges.astype(np.float32),
        noise_M=noise.astype(np.float32),
        claimed_M=claimed,
    )


def sampling_probability(trace: Trace, evidence: Evidence, hypothesis: Hypothesis) -> Floats:
    """Probability of each claimed token under the sampling distribution itself (no noise known); 0 outside the set."""
    table = table_of(trace, evidence, hypothesis, ())
    if table.edges_N is None:
        return np.exp(np.minimum(table.logprob_T, 0.0))
    starts_T = evidence.offsets_T1[:-1]
    kept_N = table.edges_N <= 0
    top_T = np.maximum.reduceat(np.where(kept_N, table.logits_N, -np.inf), starts_T)
    weights_N = (table.logits_N.astype(np.float64) - np.repeat(top_T, table.counts_T)) / (table.temperature or 1.0)
    weights_N = np.where(kept_N, np.exp(weights_N), 0.0)
    share: Floats = weights_N[table.claimed_T] / np.add.reduceat(weights_N, starts_T)
    return share
