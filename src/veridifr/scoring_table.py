"""The candidates of a trace's tokens, as scores need them: processed logits, membership, and sums over whole rows.

Long listings have a thousand candidates a token, and all but a few only ever meet a threshold. So their logits stay in
float32, and values that belong to rows are repeated, which costs a fraction of looking them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.evidence import Evidence, claimed_index
from veridifr.filters import filters_on, membership
from veridifr.processors import needs_processing, process
from veridifr.rng import compiled
from veridifr.rng.exponentials import C1, C2, C3, C4, C5, C6, HALF, LEAST, LOG2E, ONE, scratch
from veridifr.scores import Floats, Hypothesis
from veridifr.trace import Trace

Indices = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_SMALL = 10.0
"""Terms below exp(-10) of the largest need no float64 in a sum: that of all of them is at most a few per cent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Candidates with processed logits and distances to the edge, ready for any family of contract."""

    evidence: Evidence
    temperature: float
    first: int
    """The output step of the first of the T tokens."""
    steps: int
    claimed_T: Indices
    logits_N: Logits
    """float32 as listed, or float64 where settings act on single logits."""
    edges_N: Floats | None
    decided_T: npt.NDArray[np.bool_] | None
    logprob_T: Floats
    total_T: Floats
    """log of the sum of exp(l/T) over the vocabulary, in nats."""

    @property
    def counts_T(self) -> Indices:
        """How many candidates each token has."""
        return np.diff(self.evidence.offsets_T1)

    def rows_of(self, index_M: Indices) -> tuple[Indices, Indices]:
        """The rows of M candidates given in ascending order, int64[M], and where among them each row begins."""
        edges_T1 = np.searchsorted(index_M, self.evidence.offsets_T1)
        return np.repeat(np.arange(self.steps, dtype=np.int64), np.diff(edges_T1)), edges_T1[:-1]


def table_of(
    trace: Trace, evidence: Evidence, hypothesis: Hypothesis, eos_ids: tuple[int, ...], first: int = 0
) -> Table:
    sampling, order = hypothesis.sampling, hypothesis.contract.order
    temperature = 0.0 if sampling.greedy else hypothesis.contract.effective_temperature(sampling.temperature)
    steps = evidence.tokens
    logits_N: Logits = evidence.logits_N
    claimed_T = claimed_index(evidence, trace.output_token_ids[first : first + steps])
    heat = temperature or 1.0
    total_T = evidence.lse_T if heat == 1.0 else _log_total(evidence, heat)
    logprob_T = logits_N[claimed_T].astype(np.float64) / heat - total_T
    if needs_processing(sampling):
        steps_T = np.arange(first, first + steps, dtype=np.int64)
        processed_N = process(
            order, sampling, trace.prompt_token_ids, trace.output_token_ids, steps_T, evidence.rows_N,
            evidence.ids_N.astype(np.int64), logits_N.astype(np.float64), eos_ids,
        )  # fmt: skip
        logits_N = np.asarray(processed_N, dtype=np.float64)
    edges_N = decided_T = None
    if filters_on(sampling) and not sampling.greedy:
        edge = membership(
            order, sampling, heat, evidence.offsets_T1, logits_N.astype(np.float64),
            evidence.tail_at(heat), evidence.floor_T,
        )  # fmt: skip
        edges_N, decided_T = edge.distance_N, edge.decided_R
    return Table(
        evidence=evidence,
        temperature=temperature,
        first=first,
        steps=steps,
        claimed_T=claimed_T,
        logits_N=logits_N,
        edges_N=edges_N,
        decided_T=decided_T,
        logprob_T=logprob_T,
        total_T=total_T,
    )


def _log_total(evidence: Evidence, temperature: float) -> Floats:
    """log of the sum of exp(l / temperature) over the vocabulary; the unlisted part is what the listing says of it.

    The stated tail belongs to the claimed temperature; at a lower one it is smaller, so this errs by at most the tail.
    """
    logits_N, offsets_T1 = evidence.logits_N, evidence.offsets_T1
    top_T = np.maximum.reduceat(logits_N, offsets_T1[:-1])
    fast = compiled.function(_sum, reassociate=True) if compiled.worth(len(logits_N), _sum) else None
    if fast is None:
        listed_T = _listed(logits_N, offsets_T1, top_T, temperature)
    else:
        listed_T = np.empty(len(top_T))
        longest = int(np.diff(offsets_T1).max(initial=0))
        fast(logits_N, offsets_T1, top_T, np.float32(1.0 / temperature), temperature, listed_T, scratch(longest))
    exact = evidence.race is not None and evidence.race.temperature == temperature  # elsewhere the tail is a bound
    tail_T = np.minimum(evidence.tail_at(temperature), 1.0 - 1e-9 if exact else 0.5)
    total: Floats = top_T.astype(np.float64) / temperature + np.log(listed_T) - np.log1p(-tail_T)
    return total


def _listed(logits_N: Logits, offsets_T1: Indices, top_T: Logits, temperature: float) -> Floats:
    """Sums of exp((l - top) / temperature) over each row's candidates.

    Terms below exp(-`_SMALL`) of the largest are added in float32: their sum, a few per cent, is good to 1e-6 of it.
    """
    start_T, counts_T = offsets_T1[:-1], np.diff(offsets_T1)
    weights_N = logits_N - np.repeat(top_T, counts_T)
    large = np.flatnonzero(weights_N > np.float32(-_SMALL * temperature))
    firsts_T = np.searchsorted(large, start_T)  # every row has one: its largest
    top_L = np.repeat(top_T, np.diff(firsts_T, append=len(large)))
    terms_L = np.exp(np.subtract(logits_N[large], top_L, dtype=np.float64) / temperature)
    weights_N[large] = -np.inf
    np.multiply(weights_N, np.float32(1.0 / temperature), out=weights_N)
    listed_T = np.add.reduceat(np.exp(weights_N, out=weights_N), start_T, dtype=np.float64)
    listed_T += np.add.reduceat(terms_L, firsts_T)
    return np.asarray(listed_T)


def _sum(logits_N: Any, offsets_T1: Any, top_T: Any, by: Any, heat: Any, listed_T: Any, scratch: Any) -> None:
    """`_listed`, compiled: float32 terms as 2^n 2^r, |r| <= 1/2, to 3e-7 of each; large ones in float64."""
    share_V, bits_V, power_V = scratch
    for row in range(len(top_T)):
        x_V, top = logits_N[offsets_T1[row] : offsets_T1[row + 1]], top_T[row]
        for i in range(len(x_V)):
            a = max((x_V[i] - top) * by * LOG2E, LEAST)
            n = np.int32(a - HALF)  # the nearest integer, as a is not above 0
            r = a - np.float32(n)
            share_V[i] = ONE + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
            bits_V[i] = (n + np.int32(127)) << np.int32(23)
        small, least = np.float32(0.0), top - np.float32(_SMALL * heat)
        for i in range(len(x_V)):
            small += share_V[i] * power_V[i] if x_V[i] <= least else np.float32(0.0)
        large = 0.0
        for i in range(len(x_V)):
            if x_V[i] > least:
                large += np.exp((np.float64(x_V[i]) - np.float64(top)) / heat)
        listed_T[row] = small + large


def above(values_N: Logits, least_T: Floats, counts_T: Indices) -> npt.NDArray[np.bool_]:
    """Whether each value exceeds the threshold of its row, exactly as if compared in float64.

    float32 values are compared with the largest float32 number that is not above the threshold.
    """
    if values_N.dtype == np.float64:
        return np.greater(values_N, np.repeat(least_T, counts_T))
    with np.errstate(over="ignore"):  # beyond the largest float32 lies infinity, which compares rightly
        rounded_T = least_T.astype(np.float32)
        rounded_T = np.where(rounded_T > least_T, np.nextafter(rounded_T, np.float32(-np.inf)), rounded_T)
    return np.greater(values_N, np.repeat(rounded_T, counts_T))


def largest_by_row(values_M: Logits, firsts_T: Indices) -> Floats:
    """The largest of the values of each row, which begin at `firsts_T`; minus infinity where there is none."""
    top_T = np.full(len(firsts_T), -np.inf)
    some_T = np.diff(firsts_T, append=len(values_M)) > 0
    if some_T.any():
        top_T[some_T] = np.maximum.reduceat(values_M, firsts_T[some_T])
    return top_T
