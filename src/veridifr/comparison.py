"""What a comparison of several providers concludes, as values: each with its finding, in the order of the evidence."""

from __future__ import annotations

from dataclasses import dataclass

from veridifr.finding import Finding, Interval, Verdict


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the sequences of an audit cost. `currency` as the traces spell it, e.g. USD."""

    currency: str
    amount: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One provider. Its finding's alpha is the level at which it was judged, its p-value as if it were alone."""

    name: str
    adjusted_p_value: float | None
    """By Holm's procedure: at most the comparison's alpha where the provider is rejected; None: nothing was tested."""
    score: float | None
    """Mean over its sequences, None without one that was tested."""
    exact_match_interval: Interval | None
    """95 %, by bootstrap over sequences; None for fewer than two that were scored."""
    prompt_tokens: int
    output_tokens: int
    cost: Cost | None
    """None: not every sequence states what it cost, or not in one currency."""
    finding: Finding


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Providers of one model, judged by one calibration so that any honest one is accused with probability `alpha`."""

    alpha: float
    correction: str
    providers: tuple[Compared, ...]
    """The strongest evidence of a deviation first."""

    @property
    def verdict(self) -> Verdict:
        """Divergent if any provider is, consistent if all are, undecided otherwise."""
        found = {provider.finding.verdict for provider in self.providers}
        if Verdict.DIVERGENT in found:
            return Verdict.DIVERGENT
        return Verdict.CONSISTENT if found == {Verdict.CONSISTENT} else Verdict.UNDECIDED
