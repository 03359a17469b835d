"""What could have made the tokens, if not what was claimed: the hypotheses a diagnosis tries.

Each is the claim with one thing changed. Scoring a trace under one costs no run of the model: the evidence is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from veridifr.contracts.registry import CONTRACTS
from veridifr.errors import UnsupportedError
from veridifr.evidence import Evidence
from veridifr.likelihood import log_likelihoods, mix
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import sampling_probability, score
from veridifr.statistic import NoiseMixture
from veridifr.trace import Trace

Floats = npt.NDArray[np.float64]

TEMPERATURES = (
    0.5,
    0.6,
    0.7,
    0.8,
    0.85,
    0.9,
    0.93,
    0.95,
    0.97,
    0.98,
    0.99,
    1.01,
    1.02,
    1.03,
    1.05,
    1.07,
    1.1,
    1.15,
    1.2,
    1.3,
    1.4,
    1.5,
)
"""Multiples of the claimed temperature that are tried before refining."""
TOP_P = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, None)
TOP_K = (1, 2, 5, 10, 20, 30, 40, 50, 64, 80, 100, None)
SEEDS = ("seed + 1", "seed - 1", "0", "1", "42", "none")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One hypothesis with the words a report needs. `value` is what was estimated, in the parameter's own unit."""

    code: str
    parameter: str | None
    label: str
    value: float | None
    hypothesis: Hypothesis | None
    """None for hypotheses that do not re-score: the claim's own scores serve (forward pass, unseeded draws)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSequence:
    """One scored sequence with what re-scoring needs."""

    trace: Trace
    evidence: Evidence
    claim: Hypothesis
    scores: Scores


def candidates(claim: Hypothesis) -> Iterator[Candidate]:
    """The hypotheses of the first round for the claim of one sequence; grids are refined afterwards."""
    sampling, own = claim.sampling, claim.contract.id
    yield Candidate(code="forward_pass", parameter="sigma", label="sigma", value=None, hypothesis=None)
    if sampling.greedy:
        return
    for multiple in TEMPERATURES:
        yield at_temperature(claim, sampling.temperature * multiple)
    for top_p in TOP_P:
        if top_p != sampling.top_p and (top_p is not None or sampling.top_p is not None):
            changed = replace(sampling, top_p=top_p)
            yield _changed(claim, "top_p", "off" if top_p is None else f"{top_p:g}", top_p, changed)
    for top_k in TOP_K:
        if top_k != sampling.top_k and (top_k is not None or sampling.top_k is not None):
            changed = replace(sampling, top_k=top_k)
            yield _changed(claim, "top_k", "off" if top_k is None else str(top_k), top_k, changed)
    for words in SEEDS:
        seed = _seed_of(words, claim.seed)
        if words == "none":
            yield Candidate(code="seed", parameter="seed", label=words, value=None, hypothesis=None)
        elif seed is not None and seed != claim.seed:
            yield Candidate(
                code="seed", parameter="seed", label=words, value=None, hypothesis=replace(claim, seed=seed)
            )
    for name, contract in CONTRACTS.items():
        if name not in (own, "greedy"):
            yield Candidate(
                code="sampler_contract",
                parameter=None,
                label=name,
                value=None,
                hypothesis=replace(claim, contract=contract),
            )


def at_temperature(claim: Hypothesis, temperature: float) -> Candidate:
    """The claim at another temperature."""
    changed = replace(claim.sampling, temperature=temperature)
    return _changed(claim, "temperature", f"{temperature:.6g}", temperature, changed)


def _changed(claim: Hypothesis, code: str, label: str, value: float | None, sampling: object) -> Candidate:
    return Candidate(
        code=code,
        parameter=code,
        label=label,
        value=value,
        hypothesis=replace(claim, sampling=sampling),  # type: ignore[arg-type]
    )


def _seed_of(words: str, seed: int | None) -> int | None:
    if words == "none" or seed is None:
        return None
    if words.startswith("seed"):
        found = seed + (1 if "+" in words else -1)
        return found if -(2**63) <= found < 2**64 else None
    return int(words)


def log_likelihood_under(item: ScoredSequence, candidate: Candidate, statistic: NoiseMixture) -> Floats | None:
    """log q of each token of one sequence under a candidate at the honest sigma: float64[T], nats; None if it cannot
    be computed for this record (a contract that needs what the record does not hold)."""
    if candidate.hypothesis is None:
        if candidate.code != "seed":
            raise ValueError(f"{candidate.code} has no likelihood at the honest sigma")
        return unseeded(item, statistic)
    trace = item.trace
    if candidate.code == "sampler_contract":  # the record's own name for its sampler must not veto the hypothesis
        trace = replace(trace, engine=replace(trace.engine, sampler=None))
    try:
        scores = score(trace, item.evidence, candidate.hypothesis)
    except UnsupportedError:
        return None
    return log_likelihoods(_all_usable(scores), np.array([statistic.sigma]), epsilon=statistic.epsilon)[:, 0]


def unseeded(item: ScoredSequence, statistic: NoiseMixture) -> Floats:
    """log-probability of each token had it been drawn with noise that nobody knows: the sampling distribution itself.

    A token outside the kept set has the share epsilon of the reference's distribution, as everywhere.
    """
    kept_T = sampling_probability(item.trace, item.evidence, item.claim)
    return mix(kept_T[:, None], _all_usable(item.scores), statistic.epsilon)[:, 0]


def _all_usable(scores: Scores) -> Scores:
    """Count bounds as scored: hypotheses differ in what their listing decides, and must be compared on equal tokens."""
    return replace(scores, status_T=np.zeros_like(scores.status_T))
