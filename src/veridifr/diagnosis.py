"""Which single cause explains a divergent audit, if one does.

The sequences are split into two halves. On the first, each cause's parameter is fitted by likelihood at the honest
logit noise (for the forward pass, the noise itself is fitted). On the second, causes compete by log-likelihood per
sequence. A cause is named only if its lead over the claim *and* over the best other cause is at least `MARGIN` nats in
total and `Z_MARGIN` standard errors (over sequences); otherwise the divergence is `unexplained`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.finding import Alternative, Diagnosis, Interval
from veridifr.hypotheses import Candidate, ScoredSequence, at_temperature, candidates, log_likelihood_under
from veridifr.likelihood import SIGMA_GRID, fit_sigma, log_likelihoods, sigma_interval
from veridifr.statistic import NoiseMixture

Floats = npt.NDArray[np.float64]
MARGIN = 10.0
"""Least lead in nats over all held-out sequences: odds of e^10 per cause tried, for about 60 causes."""
Z_MARGIN = 3.0
"""Least lead in standard errors over held-out sequences."""
FEWEST = 4
"""Fewest sequences, two in each half, for which a cause is named."""
MOST = 48
"""Sequences used at most: enough to tell causes apart, and the time stays short."""
_REFINED = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cause:
    """A code's best candidate, fitted on one half, with its log-likelihood per sequence of the other."""

    candidate: Candidate
    estimate: float | None
    held_out_S: Floats


def diagnose(items: Sequence[ScoredSequence], statistic: NoiseMixture, rng: np.random.Generator) -> Diagnosis:
    """The cause that fits best, `forward_pass` and the sampling causes on equal terms; `unexplained` if none does."""
    if len(items) < FEWEST:
        return Diagnosis(
            code="unexplained", sentence=f"Naming a cause takes at least {FEWEST} sequences; there are {len(items)}."
        )
    order = rng.permutation(len(items))[:MOST]
    fit = [items[i] for i in order[: len(order) // 2]]
    held = [items[i] for i in order[len(order) // 2 :]]
    claim_S = _claim(held, statistic)
    causes = _causes(fit, held, statistic)
    tokens = sum(item.evidence.tokens for item in held)
    ranked = sorted(causes, key=lambda cause: -float(cause.held_out_S.sum()))
    tried = tuple(_alternative(cause, claim_S, tokens) for cause in ranked)
    if not ranked or not _leads(ranked[0].held_out_S - claim_S):
        return Diagnosis(code="unexplained", sentence="No single cause that was tried explains it.", alternatives=tried)
    best, others = ranked[0], ranked[1:]
    if others and not _leads(best.held_out_S - others[0].held_out_S):
        return Diagnosis(
            code="unexplained",
            sentence=f"{_named(best)} and {_named(others[0])} explain it about equally well.",
            alternatives=tried,
        )
    return _diagnosis(best, items, statistic, rng, tried)


def _leads(difference_S: Floats) -> bool:
    total, count = float(difference_S.sum()), len(difference_S)
    error = float(np.std(difference_S, ddof=1)) * np.sqrt(count) if count > 1 else np.inf
    return total >= MARGIN and total >= Z_MARGIN * error


def _claim(items: Sequence[ScoredSequence], statistic: NoiseMixture) -> Floats:
    sigma = np.array([statistic.sigma])
    return np.array([log_likelihoods(i.scores, sigma, epsilon=statistic.epsilon).sum() for i in items])


def _causes(fit: Sequence[ScoredSequence], held: Sequence[ScoredSequence], statistic: NoiseMixture) -> list[_Cause]:
    """The best candidate of each code (and each contract on its own), fitted on `fit`, evaluated on `held`."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates(fit[0].claim):
        key = candidate.label if candidate.code == "sampler_contract" else candidate.code
        groups.setdefault(key, []).append(candidate)
    causes = [_forward_pass(fit, held, statistic)]
    for key, group in groups.items():
        if key == "forward_pass":
            continue
        totals = _totals(fit, group, statistic)
        if not totals:
            continue
        best = max(totals, key=lambda label: totals[label])
        chosen = next(c for c in group if c.label == best)
        if key == "temperature":
            chosen = _refine_temperature(fit, chosen, statistic)
        held_out = _per_sequence(held, chosen, statistic)
        if held_out is not None:
            causes.append(_Cause(candidate=chosen, estimate=chosen.value, held_out_S=held_out))
    return causes


def _forward_pass(fit: Sequence[ScoredSequence], held: Sequence[ScoredSequence], statistic: NoiseMixture) -> _Cause:
    sigma = fit_sigma(_grid(fit, statistic), SIGMA_GRID)
    held_out = np.array([log_likelihoods(i.scores, np.array([sigma]), epsilon=statistic.epsilon).sum() for i in held])
    candidate = Candidate(code="forward_pass", parameter="sigma", label="sigma", value=sigma, hypothesis=None)
    return _Cause(candidate=candidate, estimate=sigma, held_out_S=held_out)


def _grid(items: Sequence[ScoredSequence], statistic: NoiseMixture) -> Floats:
    return np.array([log_likelihoods(i.scores, SIGMA_GRID, epsilon=statistic.epsilon).sum(axis=0) for i in items])


def _totals(
    items: Sequence[ScoredSequence], group: Sequence[Candidate], statistic: NoiseMixture
) -> Mapping[str, float]:
    """Summed log-likelihood of each candidate of one code. Most are hopeless, so few sequences sort them first."""
    found: dict[str, float] = {}
    few = items[: max(2, len(items) // 4)]
    for candidate in group:
        values = _per_sequence(few, candidate, statistic)
        if values is not None:
            found[candidate.label] = float(values.sum())
    return found


def _per_sequence(items: Sequence[ScoredSequence], candidate: Candidate, statistic: NoiseMixture) -> Floats | None:
    values = []
    for item in items:
        own = _for(item, candidate)
        log_q = log_likelihood_under(item, own, statistic) if own is not None else None
        if log_q is None:
            return None
        values.append(float(log_q.sum()))
    return np.array(values)


def _for(item: ScoredSequence, candidate: Candidate) -> Candidate | None:
    """The same candidate for another sequence: its seed and settings are its own."""
    if candidate.hypothesis is None:
        return candidate
    if candidate.code == "temperature" and candidate.value is not None:
        return at_temperature(item.claim, candidate.value)
    for own in candidates(item.claim):
        if own.code == candidate.code and own.label == candidate.label:
            return own
    return None


def _refine_temperature(items: Sequence[ScoredSequence], start: Candidate, statistic: NoiseMixture) -> Candidate:
    """Two rounds of a finer grid about the best temperature, each a fourth as wide as the one before."""
    assert start.value is not None  # noqa: S101  (temperatures are numbers)
    best, width = start, 0.04 * start.value
    for _ in range(2):
        center = best.value or start.value
        group = [
            at_temperature(items[0].claim, float(t)) for t in np.linspace(center - width, center + width, _REFINED)
        ]
        totals = _totals(items, group, statistic)
        label = max(totals, key=lambda name: totals[name])
        best = next(c for c in group if c.label == label)
        width /= 4
    return best


def _diagnosis(
    best: _Cause,
    items: Sequence[ScoredSequence],
    statistic: NoiseMixture,
    rng: np.random.Generator,
    tried: tuple[Alternative, ...],
) -> Diagnosis:
    code = best.candidate.code
    estimate, interval, parameter = best.estimate, None, best.candidate.parameter
    if code == "forward_pass":
        totals = _grid(items, statistic)
        estimate = fit_sigma(totals, SIGMA_GRID)
        interval = sigma_interval(totals, SIGMA_GRID, rng)
    elif code == "temperature" and estimate is not None:
        interval = _temperature_interval(items[:MOST], estimate, statistic, rng)
    elif code == "seed":
        parameter = best.candidate.label
    return Diagnosis(
        code=code,
        contract=best.candidate.label if code == "sampler_contract" else None,
        parameter=parameter,
        estimate=estimate,
        interval=interval,
        sentence=_sentence(best, items[0], statistic),
        alternatives=tried,
    )


def _temperature_interval(
    items: Sequence[ScoredSequence], center: float, statistic: NoiseMixture, rng: np.random.Generator
) -> Interval | None:
    """95 % bootstrap interval over sequences, from a grid about the estimate."""
    grid = np.linspace(0.96, 1.04, 17) * center
    columns = [_per_sequence(items, at_temperature(items[0].claim, float(t)), statistic) for t in grid]
    known = [column for column in columns if column is not None]
    if len(known) != len(grid):
        return None
    totals_SG = np.column_stack(known)
    weights = rng.multinomial(len(items), np.full(len(items), 1.0 / len(items)), size=400)
    chosen = grid[np.argmax(weights @ totals_SG, axis=1)]
    half = (grid[1] - grid[0]) / 2
    low, high = np.quantile(chosen, [0.025, 0.975])
    return float(low - half), float(high + half)


def _alternative(cause: _Cause, claim_S: Floats, tokens: int) -> Alternative:
    candidate = cause.candidate
    return Alternative(
        code=candidate.code,
        contract=candidate.label if candidate.code == "sampler_contract" else None,
        parameter=candidate.label if candidate.code == "seed" else candidate.parameter,
        estimate=cause.estimate,
        gain=float((cause.held_out_S - claim_S).sum()) / max(tokens, 1),
    )


def _named(cause: _Cause) -> str:
    candidate = cause.candidate
    if candidate.code == "forward_pass":
        return f"another forward pass (logit noise {cause.estimate:.3g})"
    if candidate.code == "sampler_contract":
        return f"the sampler {candidate.label}"
    return f"{candidate.code} {candidate.label}"


def _sentence(cause: _Cause, item: ScoredSequence, statistic: NoiseMixture) -> str:
    candidate, claim = cause.candidate, item.claim
    if candidate.code == "forward_pass":
        times = (cause.estimate or 0.0) / statistic.sigma
        return (
            f"The forward pass differs: its logits carry errors of {cause.estimate:.3g}, {times:.0f} times the honest "
            f"{statistic.sigma:.3g}. Other weights, a quantization or a bug would do this."
        )
    if candidate.code == "sampler_contract":
        return f"These tokens fit {candidate.label}, not {claim.contract.id}."
    if candidate.code == "seed":
        kind = "noise that no seed explains" if candidate.label == "none" else f"seed {candidate.label}"
        return f"These tokens fit {kind}, not the seed that was claimed."
    claimed = getattr(claim.sampling, candidate.code)
    found = f"{cause.estimate:.3g}" if cause.estimate is not None else candidate.label
    return f"These tokens fit {candidate.code} {found}, not {'off' if claimed is None else f'{claimed:g}'}."
