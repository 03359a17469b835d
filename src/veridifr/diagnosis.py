"""Which single cause explains a divergent audit, if one does.

The sequences are split into two halves. On the first, each cause's parameter is fitted by likelihood at the honest
logit noise (for the forward pass, the noise itself is fitted): a coarse grid on a few sequences, then finer ones about
the best value of the causes that are not hopeless. On the second half, the best causes compete by log-likelihood per
sequence. A cause is named only if its lead over the claim *and* over the best other cause is at least `MARGIN` nats in
total and `Z_MARGIN` standard errors (over sequences); otherwise the divergence is `unexplained`. What was named is then
estimated on all sequences. docs/diagnosis.md has the rates at which right and wrong causes are named.

Where the noise is not known, or at temperature 0, a token says less. Then more sequences are used, each half is held
out once while the other is fitted, and the forward pass has errors of more than one shape (`erring`). At temperature 0
draws at a low temperature are hardly told from errors of the logits: if neither leads, the forward pass is named, and
the sentence says which temperature would do as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from veridifr.cause_words import named, sentence, twin
from veridifr.contracts.registry import infer, mode_of
from veridifr.distribution import Statistic, token_log_likelihoods
from veridifr.erring import log_likelihoods_erring
from veridifr.errors import UnsupportedError
from veridifr.finding import Alternative, Diagnosis, Interval
from veridifr.hypotheses import (
    NUMERIC,
    Candidate,
    ScoredSequence,
    between,
    candidates,
    log_likelihood_under,
    neighbours,
    same_for,
)
from veridifr.likelihood import SIGMA_GRID, fit_sigma, sigma_interval

Floats = npt.NDArray[np.float64]
MARGIN = 10.0
"""Least lead in nats over all held-out sequences: odds of e^10 per cause tried, for about 70 causes."""
Z_MARGIN = 3.0
"""Least lead in standard errors over held-out sequences."""
Z_WITHOUT_NOISE = 2.33
"""The same where there is no known noise: the best of two that fit equally well leads by so much in one of a hundred
audits. Four causes are tried then, or two, and not seventy."""
FEWEST = 4
"""Fewest sequences, two in each half, for which a cause is named."""
MOST = 48
"""Sequences used at most: enough to tell causes apart, and the time stays short."""
MOST_WITHOUT_NOISE = 96
"""The same where there is no known noise: a token says less, and a cause is tried in less time."""
FINALISTS = 6
"""Causes that compete on the second half, the forward pass among them."""
_FIRST = 2
"""Sequences of the first half on which every candidate is tried."""
_FEW = 6
"""Sequences on which the candidates are tried that those left over, and on which values are refined."""
_SAME = 1.0
"""Nats in all, summed over sequences without sign, within which two contracts are taken for one."""
_KEPT = 4
"""Candidates of each code that are tried on more than `_FIRST` sequences where there is no known noise."""
_BEHIND = 40.0
"""Nats in all behind the best of those candidates at which a value is not refined, where there is no known noise."""
_HOPELESS = 40.0
"""Nats per sequence behind the best candidate of all at which one is dropped, unless the noise is known and it is the
best of its code."""
_BAR_DELAY = 2.0
"""Seconds before a progress bar shows."""
_REFINED = 7
_STEPS = {"temperature": 0.00125, "top_p": 0.0025, "top_k": 1.0}
"""Steps in which a named cause's value is estimated; of the temperature, relative to it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cause:
    """A code's best candidate, fitted on one half, with its log-likelihood per sequence of the other."""

    candidate: Candidate
    estimate: float | None
    held_out_S: Floats


def diagnose(
    items: Sequence[ScoredSequence], statistic: Statistic, rng: np.random.Generator, *, quiet: bool = True
) -> Diagnosis:
    """The cause that fits best, `forward_pass` and the sampling causes on equal terms; `unexplained` if none does.

    `quiet` hides the progress bar.
    """
    if len(items) < FEWEST:
        return Diagnosis(
            code="unexplained", sentence=f"Naming a cause takes at least {FEWEST} sequences; there are {len(items)}."
        )
    known = _known(items[0])
    order = rng.permutation(len(items))[: MOST if known else MOST_WITHOUT_NOISE]
    fit = [items[i] for i in order[: len(order) // 2]]
    held = [items[i] for i in order[len(order) // 2 :]]
    causes = _causes(fit, held, statistic, quiet)
    if not known:
        causes = _both(causes, _causes(held, fit, statistic, quiet))
        held = [*held, *fit]
    claim_S = _claim(held, statistic)
    tokens = sum(item.evidence.tokens for item in held)
    ranked = sorted(causes, key=lambda cause: -float(cause.held_out_S.sum()))
    tried = tuple(_alternative(cause, claim_S, tokens) for cause in ranked)
    if not ranked or not _leads(ranked[0].held_out_S - claim_S, items[0]):
        return Diagnosis(code="unexplained", sentence="No single cause that was tried explains it.", alternatives=tried)
    same = [cause for cause in ranked if _same_noise(cause, ranked[0]) or _same_at_zero(cause, ranked[0], items[0])]
    best = _preferred(same, items[0])
    if not _leads(best.held_out_S - claim_S, items[0]):
        return Diagnosis(code="unexplained", sentence="No single cause that was tried explains it.", alternatives=tried)
    rivals = [cause for cause in ranked if cause not in same]
    if rivals and not _leads(best.held_out_S - rivals[0].held_out_S, items[0]):
        both = " and ".join(named(cause.candidate, cause.estimate) for cause in (best, rivals[0]))
        return Diagnosis(code="unexplained", sentence=f"{both} explain it about equally well.", alternatives=tried)
    found = _diagnosis(best, items, statistic, rng, tried)
    twins = " or ".join(twin(cause.candidate) for cause in same if cause is not best)
    return replace(found, sentence=f"{found.sentence} {twins} would do as well.") if twins else found


def _both(causes: Sequence[_Cause], swapped: Sequence[_Cause]) -> list[_Cause]:
    """Causes with the held-out likelihoods of one half, then of the other; those that both halves tried."""
    other = {cause.candidate.code: cause.held_out_S for cause in swapped}
    return [
        replace(cause, held_out_S=np.concatenate([cause.held_out_S, other[cause.candidate.code]]))
        for cause in causes
        if cause.candidate.code in other
    ]


def _same_noise(one: _Cause, other: _Cause) -> bool:
    """Whether two contracts draw the same noise for these tokens: vllm-v2-a, -b and -d differ in rare values only."""
    if one is other:
        return True
    both = one.candidate.code == other.candidate.code == "sampler_contract"
    return both and float(np.abs(one.held_out_S - other.held_out_S).sum()) < _SAME


def _same_at_zero(one: _Cause, best: _Cause, item: ScoredSequence) -> bool:
    """Whether a cause is not told from the best one at temperature 0, where there are but two (`hypotheses`)."""
    return item.claim.sampling.greedy and not _leads(best.held_out_S - one.held_out_S, item)


def _preferred(same: Sequence[_Cause], item: ScoredSequence) -> _Cause:
    """Of causes that are not told apart: the forward pass, or the contract that is in use."""
    forward = [cause for cause in same if cause.candidate.code == "forward_pass"]
    return forward[0] if forward else _in_use(same, item)


def _in_use(same: Sequence[_Cause], item: ScoredSequence) -> _Cause:
    """Of contracts that draw the same noise the one that the record's engine and version have, under any runner."""
    engine = replace(item.trace.engine, sampler=None)
    for runner in (engine.runner, "v1", "v2"):
        try:
            found = infer(replace(engine, runner=runner), item.claim.sampling, item.evidence.vocab_size).contract.id
        except UnsupportedError:
            continue
        for cause in same:
            if cause.candidate.label == found:
                return cause
    return same[0]


def _known(item: ScoredSequence) -> bool:
    """Whether the noise of the claim is known."""
    return mode_of(item.claim.contract.id) == "seeded"


def _leads(difference_S: Floats, item: ScoredSequence) -> bool:
    total, count = float(difference_S.sum()), len(difference_S)
    error = float(np.std(difference_S, ddof=1)) * np.sqrt(count) if count > 1 else np.inf
    return total >= MARGIN and total >= (Z_MARGIN if _known(item) else Z_WITHOUT_NOISE) * error


def _claim(items: Sequence[ScoredSequence], statistic: Statistic) -> Floats:
    sigma = np.array([statistic.sigma])
    return np.array([token_log_likelihoods(i.scores, sigma, statistic.unexplained).sum() for i in items])


def _causes(
    fit: Sequence[ScoredSequence], held: Sequence[ScoredSequence], statistic: Statistic, quiet: bool
) -> list[_Cause]:
    """The best candidate of each code (each contract on its own) that is not hopeless on `fit`, evaluated on `held`."""
    ranked = _shortlist(fit[:_FEW], statistic, quiet)
    causes = [_forward_pass(fit, held, statistic) if _known(fit[0]) else _erring(fit, held, statistic)]
    for total, candidate in ranked[: FINALISTS - 1]:
        behind = ranked[0][0] - total > _BEHIND and not _known(fit[0])
        chosen = candidate if behind else _refine(fit[:_FEW], candidate, statistic)
        held_out = _per_sequence(held, chosen, statistic)
        if held_out is not None:
            causes.append(_Cause(candidate=chosen, estimate=chosen.value, held_out_S=held_out))
    return causes


def _shortlist(items: Sequence[ScoredSequence], statistic: Statistic, quiet: bool) -> list[tuple[float, Candidate]]:
    """The best candidate of each code (each contract on its own) on `items` with its log-likelihood, the best first."""
    first: list[tuple[float, Candidate]] = []
    tried = list(candidates(items[0].claim))
    for candidate in tqdm(tried, desc="look for the cause", delay=_BAR_DELAY, disable=quiet or None):
        if candidate.code != "forward_pass":
            values = _per_sequence(items[:_FIRST], candidate, statistic)
            if values is not None:
                first.append((float(values.sum()), candidate))
    first.sort(key=lambda found: -found[0])
    if not _known(items[0]):
        near = [found for found in first if first[0][0] - found[0] <= _HOPELESS * _FIRST]
        first = [found for n, found in enumerate(near) if _before(near[:n], found[1].code) < _KEPT]
    best: dict[str, tuple[float, Candidate]] = {}
    for early, candidate in first:
        key = candidate.label if candidate.code == "sampler_contract" else candidate.code
        if key in best and first[0][0] - early > _HOPELESS * _FIRST:
            continue
        rest = _per_sequence(items[_FIRST:], candidate, statistic)
        if rest is None:
            continue
        total = early + float(rest.sum())
        if key not in best or total > best[key][0]:
            best[key] = total, candidate
    return sorted(best.values(), key=lambda found: -found[0])


def _before(first: Sequence[tuple[float, Candidate]], code: str) -> int:
    return sum(candidate.code == code for _, candidate in first)


def _refine(items: Sequence[ScoredSequence], start: Candidate, statistic: Statistic) -> Candidate:
    """Two rounds of a finer grid about the best value of a numeric cause, each a fourth as wide as the one before."""
    if start.code not in NUMERIC or start.value == 0.0:
        return start
    low, high = neighbours(items[0].claim, start)
    best = start
    for _ in range(2):
        group = between(items[0].claim, start.code, low, high, _REFINED)
        totals = [_per_sequence(items, candidate, statistic) for candidate in group]
        known = [(float(t.sum()), c) for t, c in zip(totals, group, strict=True) if t is not None]
        if not known:
            return best
        best = max(known, key=lambda found: found[0])[1]
        assert best.value is not None  # noqa: S101  (`between` gives numbers)
        width = (high - low) / (_REFINED - 1)
        low, high = max(low, best.value - width), min(high, best.value + width)
    return best


def _forward_pass(fit: Sequence[ScoredSequence], held: Sequence[ScoredSequence], statistic: Statistic) -> _Cause:
    sigma = fit_sigma(_grid(fit, statistic), SIGMA_GRID)
    held_out = np.array([token_log_likelihoods(i.scores, np.array([sigma]), statistic.unexplained).sum() for i in held])
    candidate = Candidate(code="forward_pass", parameter="sigma", label="sigma", value=sigma, hypothesis=None)
    return _Cause(candidate=candidate, estimate=sigma, held_out_S=held_out)


def _erring(fit: Sequence[ScoredSequence], held: Sequence[ScoredSequence], statistic: Statistic) -> _Cause:
    """The forward pass where the noise is not known: size and shape of its errors are fitted, but are no estimate."""
    fit_SG, held_SG = (
        np.array([log_likelihoods_erring(item.scores, statistic.unexplained).sum(axis=0) for item in items])
        for items in (fit, held)
    )
    candidate = Candidate(code="forward_pass", parameter=None, label="errors", value=None, hypothesis=None)
    best = int(np.argmax(fit_SG.sum(axis=0)))
    return _Cause(candidate=candidate, estimate=None, held_out_S=held_SG[:, best])


def _grid(items: Sequence[ScoredSequence], statistic: Statistic) -> Floats:
    return np.array([token_log_likelihoods(i.scores, SIGMA_GRID, statistic.unexplained).sum(axis=0) for i in items])


def _per_sequence(items: Sequence[ScoredSequence], candidate: Candidate, statistic: Statistic) -> Floats | None:
    values = []
    for item in items:
        own = same_for(candidate, item.claim)
        log_q = log_likelihood_under(item, own, statistic) if own is not None else None
        if log_q is None:
            return None
        values.append(float(log_q.sum()))
    return np.array(values)


def _diagnosis(
    best: _Cause,
    items: Sequence[ScoredSequence],
    statistic: Statistic,
    rng: np.random.Generator,
    tried: tuple[Alternative, ...],
) -> Diagnosis:
    code = best.candidate.code
    estimate, interval, parameter = best.estimate, None, best.candidate.parameter
    if code == "forward_pass" and parameter is not None:
        totals = _grid(items, statistic)
        estimate = fit_sigma(totals, SIGMA_GRID)
        interval = sigma_interval(totals, SIGMA_GRID, rng)
    elif code in NUMERIC and estimate:  # greedy decoding is no estimate
        estimate, interval = _estimate(items[:MOST], best.candidate, statistic, rng)
    elif code == "seed":
        parameter = best.candidate.label
    return Diagnosis(
        code=code,
        contract=best.candidate.label if code == "sampler_contract" else None,
        parameter=parameter,
        estimate=estimate,
        interval=interval,
        sentence=sentence(best.candidate, estimate, items[0].claim, statistic),
        alternatives=tried,
    )


def _estimate(
    items: Sequence[ScoredSequence], start: Candidate, statistic: Statistic, rng: np.random.Generator
) -> tuple[float | None, Interval | None]:
    """Maximum-likelihood value and 95 % bootstrap interval over sequences, on a fine grid about the value that the
    first half gave; on one four times as wide where the interval reaches the end of that."""
    center, found = start.value, None
    assert center is not None  # noqa: S101  (only numbers are estimated)
    step = _STEPS[start.code] * (center if start.code == "temperature" else 1.0)
    for wider in (1.0, 4.0):
        reach = 4 * wider * step
        group = between(items[0].claim, start.code, center - reach, center + reach, 9)
        columns = [_per_sequence(items, candidate, statistic) for candidate in group]
        known = [column for column in columns if column is not None]
        if len(known) != len(group) or not group:
            return center, None
        totals_SG = np.column_stack(known)
        values = np.array([candidate.value for candidate in group], dtype=np.float64)
        weights = rng.multinomial(len(items), np.full(len(items), 1.0 / len(items)), size=400)
        low, high = np.quantile(values[np.argmax(weights @ totals_SG, axis=1)], [0.025, 0.975])
        half = 0.0 if start.code == "top_k" else wider * step / 2
        found = float(values[np.argmax(totals_SG.sum(axis=0))]), (float(low - half), float(high + half))
        if values[0] < low and high < values[-1]:
            break
    return found if found is not None else (center, None)


def _alternative(cause: _Cause, claim_S: Floats, tokens: int) -> Alternative:
    candidate = cause.candidate
    return Alternative(
        code=candidate.code,
        contract=candidate.label if candidate.code == "sampler_contract" else None,
        parameter=candidate.label if candidate.code == "seed" else candidate.parameter,
        estimate=cause.estimate,
        gain=float((cause.held_out_S - claim_S).sum()) / max(tokens, 1),
    )
