"""Several providers of one model, audited with one reference and one calibration, at an error rate for all together.

Every provider is audited at alpha / k for k providers: that is the level at which each is sure to be judged, so it is
also the one that power, and with it `consistent`, is stated for. Holm's procedure then rejects those for which the
rejections before them leave a higher level. Both hold however the audits depend on each other, as they do through the
calibration that they share.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from veridifr import stats
from veridifr.auditing import ALPHA, Sources, audit
from veridifr.calibration import Calibration
from veridifr.comparison import Compared, Comparison, Cost
from veridifr.errors import InputError, TraceError
from veridifr.finding import Finding, Interval, Verdict
from veridifr.origins import COST
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.trace import Trace, check_text

CORRECTION = "Holm"
_MOST_COST = 1e9


def compare(  # noqa: PLR0913 (all but three have defaults)
    providers: Mapping[str, Sequence[Trace]],
    reference: Reference,
    calibration: Calibration,
    alpha: float = ALPHA,
    *,
    requests: Mapping[str, Sequence[Trace]] | None = None,
    sources: Mapping[str, Sources] | None = None,
    evidence: Path | None = None,
    sampler: str = "auto",
    quiet: bool = True,
) -> Comparison:
    """Audit each provider's traces and judge them together.

    `alpha` is the probability that any honest provider among them is called divergent. `requests` is what each was
    asked, by its name; `evidence` a folder that keeps each one's evidence, to go on from; `sampler` and the rest as in
    `audit`, for all providers alike.
    Raises what `audit` raises, with the provider's name before it, and `TraceError` for no provider, names that are
    not short texts, or requests of others.
    """
    if not providers:
        raise TraceError("compare: got no provider")
    if requests is not None and requests.keys() != providers.keys():
        raise TraceError("compare: requests: expected those of each provider, by the same names")
    names = [check_text("compare: name", name) for name in providers]
    if not all(names):
        raise TraceError("compare: name: got an empty string, expected a name for each provider")

    def judge(name: str, level: float) -> Finding:
        spool = folder / f"{quote(name, safe='')[:150]}.evidence"
        try:
            return audit(
                providers[name],
                reference,
                calibration,
                level,
                requests=None if requests is None else requests[name],
                replayer=Replayer(reference, spool=spool, quiet=quiet),
                sources=(sources or {}).get(name),
                sampler=sampler,
            )
        except InputError as error:
            raise type(error)(f"{name}: {error}") from error

    with tempfile.TemporaryDirectory() as scratch:
        folder = evidence or Path(scratch)
        findings = {name: judge(name, alpha / len(names)) for name in names}
        # An untested provider counts as one all the same: how many there are was known before anything was seen.
        p_values = [1.0 if finding.p_value is None else finding.p_value for finding in findings.values()]
        for name, rejected, level in zip(names, stats.holm(p_values, alpha), _levels(p_values, alpha), strict=True):
            if rejected and findings[name].verdict is not Verdict.DIVERGENT:
                again = judge(name, level)  # with what a divergent finding says beside its verdict
                findings[name] = again if again.verdict is Verdict.DIVERGENT else findings[name]
    adjusted = dict(zip(names, stats.holm_adjusted(p_values), strict=True))
    found = [_compared(name, providers[name], findings[name], float(adjusted[name])) for name in names]
    found = [replace(one, finding=_told(one.finding, len(names), alpha)) for one in found]
    return Comparison(alpha=alpha, correction=CORRECTION, providers=tuple(sorted(found, key=_order)))


def _levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's procedure looks at each."""
    places = np.argsort(np.argsort(p_values, kind="stable"), kind="stable")
    return [alpha / (len(p_values) - int(place)) for place in places]


def _told(finding: Finding, count: int, alpha: float) -> Finding:
    """The finding with the correction among its assumptions."""
    sentence = (
        f"One of {count} providers compared at {alpha:g} for all together: this one was judged at {finding.alpha:.2g}."
    )
    return finding if count == 1 else replace(finding, assumptions=(*finding.assumptions, sentence))


def _compared(name: str, traces: Sequence[Trace], finding: Finding, adjusted: float) -> Compared:
    scores = [result.score for result in finding.results if result.score is not None]
    return Compared(
        name=name,
        adjusted_p_value=None if finding.p_value is None else adjusted,
        score=float(np.mean(scores)) if scores else None,
        exact_match_interval=_match_interval(finding),
        prompt_tokens=sum(len(trace.prompt_token_ids) for trace in traces),
        output_tokens=sum(len(trace.output_token_ids) for trace in traces),
        cost=cost_of(traces),
        finding=finding,
    )


def _match_interval(finding: Finding) -> Interval | None:
    """95 % interval of the share of matching tokens, sequences drawn anew with all of their tokens."""
    pairs = [(r.exact_match, r.tokens_by_status.get("scored", 0)) for r in finding.results if r.exact_match is not None]
    if len(pairs) < 2:
        return None
    match_N, tokens_N = np.array(pairs, dtype=np.float64).T
    return stats.bootstrap_interval_of(
        lambda index: float(match_N[index] @ tokens_N[index] / tokens_N[index].sum()),
        len(pairs),
        rng=np.random.default_rng(0),
    )


def cost_of(traces: Sequence[Trace]) -> Cost | None:
    """What the traces cost together; None where one does not state it, states it badly, or in another currency."""
    amounts, currencies = [], set()
    for trace in traces:
        stated = trace.extra.get(COST)
        if not isinstance(stated, Mapping):
            return None
        currency, amount = stated.get("currency"), stated.get("amount")
        if not isinstance(currency, str) or not 0 < len(currency) <= 16:
            return None
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= _MOST_COST:
            return None
        currencies.add(currency)
        amounts.append(float(amount))
    return Cost(currency=currencies.pop(), amount=math.fsum(amounts)) if len(currencies) == 1 else None


def _order(one: Compared) -> tuple[float, float, str]:
    """The smallest p-value first, then the largest score; last what could not be tested."""
    p_value = 2.0 if one.finding.p_value is None else one.finding.p_value
    return p_value, -(one.score or 0.0), one.name
