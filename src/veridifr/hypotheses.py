"""What could have made the tokens, if not what was claimed: the hypotheses a diagnosis tries.

Each is the claim with one thing changed. Scoring a trace under one costs no run of the model: the evidence is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from veridifr.contracts.registry import CONTRACTS
from veridifr.contracts.unknown import UNKNOWN
from veridifr.distribution import Statistic, log_likelihoods_claiming, token_log_likelihoods
from veridifr.errors import UnsupportedError
from veridifr.evidence import Evidence
from veridifr.likelihood import mix
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import sampling_probability, score
from veridifr.trace import Trace

Floats = npt.NDArray[np.float64]

# fmt: off
TEMPERATURES = (
    0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99,
    1.01, 1.02, 1.03, 1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5,
)
# fmt: on
"""Multiples of the claimed temperature that are tried before refining; 0 is greedy decoding."""
GREEDY_TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)
"""Temperatures that are tried where 0 is claimed."""
TOP_P = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, None)
TOP_K = (2, 5, 10, 20, 30, 40, 50, 64, 80, 100, None)
"""A top-k of 1 is greedy decoding, which is a temperature of 0 here: one cause must not compete with itself."""
NUMERIC = ("temperature", "top_p", "top_k")
"""Codes with a value that can be refined between the values of the first round."""
TOP_K_END = 400
"""Where refining ends if no top-k at all fits best."""
MAX_TEMPERATURE = 1e4
"""The largest that a `Sampling` takes."""
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
    """The hypotheses of the first round for the claim of one sequence; `neighbours` and `between` refine them."""
    sampling, own = claim.sampling, claim.contract.id
    yield Candidate(code="forward_pass", parameter="sigma", label="sigma", value=None, hypothesis=None)
    if sampling.greedy:  # with a temperature there would be noise, and nobody said which
        for temperature in GREEDY_TEMPERATURES:
            yield at_temperature(claim, temperature)
        return
    known = claim.contract.family != "distribution"  # else there is neither a seed nor a contract to be another one
    for multiple in TEMPERATURES:
        if sampling.temperature * multiple <= MAX_TEMPERATURE:
            yield at_temperature(claim, sampling.temperature * multiple)
    for top_p in TOP_P:
        if top_p != sampling.top_p:
            yield at_value(claim, "top_p", top_p)
    for top_k in TOP_K:
        if top_k != sampling.top_k:
            yield at_value(claim, "top_k", top_k)
    for words in SEEDS if known else ():
        if words == "none" or _seed_of(words, claim.seed) not in (None, claim.seed):
            yield _at_seed(claim, words)
    for name in CONTRACTS if known else ():
        if name not in (own, "greedy"):
            yield _at_contract(claim, name)


def same_for(candidate: Candidate, claim: Hypothesis) -> Candidate | None:
    """`candidate` for the claim of another sequence, which has a seed of its own; None if it says nothing there."""
    if candidate.code in NUMERIC:
        return at_value(claim, candidate.code, candidate.value)
    if candidate.code == "sampler_contract":
        return _at_contract(claim, candidate.label)
    if candidate.code == "seed" and candidate.hypothesis is not None:
        return None if _seed_of(candidate.label, claim.seed) is None else _at_seed(claim, candidate.label)
    return candidate


def _at_seed(claim: Hypothesis, words: str) -> Candidate:
    hypothesis = None if words == "none" else replace(claim, seed=_seed_of(words, claim.seed))
    return Candidate(code="seed", parameter="seed", label=words, value=None, hypothesis=hypothesis)


def _at_contract(claim: Hypothesis, name: str) -> Candidate:
    hypothesis = replace(claim, contract=CONTRACTS[name])
    return Candidate(code="sampler_contract", parameter=None, label=name, value=None, hypothesis=hypothesis)


def at_temperature(claim: Hypothesis, temperature: float) -> Candidate:
    """The claim at another temperature."""
    return at_value(claim, "temperature", temperature)


def at_value(claim: Hypothesis, code: str, value: float | None) -> Candidate:
    """The claim with another temperature, top_p or top_k (`code`); None switches top_p or top_k off."""
    if code == "temperature":
        assert value is not None  # noqa: S101  (a temperature is always some number)
        changed = replace(claim.sampling, temperature=value)
        if changed.greedy:
            claim = replace(claim, contract=CONTRACTS["greedy"])
        elif claim.sampling.greedy:
            claim = replace(claim, contract=UNKNOWN)
    elif code == "top_p":
        changed = replace(claim.sampling, top_p=value)
    else:
        value = None if value is None else round(value)
        changed = replace(claim.sampling, top_k=value)
    return Candidate(
        code=code,
        parameter=code,
        label="off" if value is None else f"{value:.6g}",
        value=value,
        hypothesis=replace(claim, sampling=changed),
    )


def neighbours(claim: Hypothesis, candidate: Candidate) -> tuple[float, float]:
    """The values tried next below and above a numeric candidate of the first round, the claim's own among them.

    Where none was tried: half of the lowest, a fourth above the highest temperature, top_p 1, top_k `TOP_K_END`.
    """
    code = candidate.code
    end = {"temperature": None, "top_p": 1.0, "top_k": float(TOP_K_END)}[code]
    tried = [c.value for c in candidates(claim) if c.code == code] + [getattr(claim.sampling, code)]
    known = sorted({float(value) for value in (end if v is None else v for v in tried) if value is not None})
    value = end if candidate.value is None else float(candidate.value)
    assert value is not None  # noqa: S101
    place = int(np.argmin(np.abs(np.array(known) - value)))
    low = known[place - 1] if place else value / 2
    high = known[place + 1] if place + 1 < len(known) else end or 1.25 * value
    return low, high


def between(claim: Hypothesis, code: str, low: float, high: float, count: int) -> list[Candidate]:
    """`count` values evenly from `low` to `high`, or fewer where they coincide or cannot be: top_k is an integer."""
    values = np.linspace(low, high, count)
    if code == "top_k":
        values = np.unique(np.maximum(2, np.round(values)))
    elif code == "top_p":
        values = values[(values > 0.0) & (values < 1.0)]
    else:
        values = values[(values >= 0.0) & (values <= MAX_TEMPERATURE)]
    return [at_value(claim, code, float(value)) for value in values]


def _seed_of(words: str, seed: int | None) -> int | None:
    if words == "none" or seed is None:
        return None
    if words.startswith("seed"):
        found = seed + (1 if "+" in words else -1)
        return found if -(2**63) <= found < 2**64 else None
    return int(words)


def log_likelihood_under(item: ScoredSequence, candidate: Candidate, statistic: Statistic) -> Floats | None:
    """log q of each token of one sequence under a candidate at the honest sigma: float64[T], nats; None if it cannot
    be computed for this record (a contract that needs what the record does not hold)."""
    if candidate.hypothesis is None:
        if candidate.code != "seed":
            raise ValueError(f"{candidate.code} has no likelihood at the honest sigma")
        return unseeded(item, statistic)
    if item.scores.choices is not None:
        usable = _all_usable(item.scores)
        found = log_likelihoods_claiming(usable, candidate.hypothesis.sampling, statistic.sigma, statistic.unexplained)
        if found is not None:
            return found
    trace = item.trace
    if candidate.code == "sampler_contract":  # the record's own name for its sampler must not veto the hypothesis
        trace = replace(trace, engine=replace(trace.engine, sampler=None))
    try:
        scores = score(trace, item.evidence, candidate.hypothesis)
    except UnsupportedError:
        return None
    return token_log_likelihoods(_all_usable(scores), np.array([statistic.sigma]), statistic.unexplained)[:, 0]


def unseeded(item: ScoredSequence, statistic: Statistic) -> Floats:
    """log-probability of each token had it been drawn with noise that nobody knows: the sampling distribution itself.

    A token outside the kept set has the unexplained share of the reference's distribution, as everywhere.
    """
    kept_T = sampling_probability(item.trace, item.evidence, item.claim)
    return mix(kept_T[:, None], _all_usable(item.scores), statistic.unexplained)[:, 0]


def _all_usable(scores: Scores) -> Scores:
    """Count bounds as scored: hypotheses differ in what their listing decides, and must be compared on equal tokens."""
    return replace(scores, status_T=np.zeros_like(scores.status_T))
