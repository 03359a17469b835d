"""Fingerprints in a sequential audit: a second test beside the tokens', over the same order, each at alpha / 2.

Both are sequential tests of their own scores, valid at any time and for any stopping rule; Bonferroni joins them. The
bets on fingerprints are the general ones, as a calibration has no scores of deviating fingerprints to learn from, and
their test has no floor: the audit ends when the tokens' test is decided, or the fingerprints reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from veridifr import stats
from veridifr.betting import Sequential
from veridifr.errors import CalibrationError, FingerprintError
from veridifr.fingerprint_judging import Settled, weigh
from veridifr.fingerprint_null import FingerprintNull, prefix_scores
from veridifr.judging import Judgement
from veridifr.requests import Planned
from veridifr.scored import ScoredItem
from veridifr.strata import matched
from veridifr.trace import Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Prints:
    """What fingerprints are tested with: as settled for the audit, and the traces as the provider sent them, by id."""

    settled: Settled
    null: FingerprintNull
    sent: Mapping[str, Trace]

    @classmethod
    def of(cls, settled: Settled, traces: Sequence[Trace]) -> Prints | None:
        """None where fingerprints are not used."""
        if settled.null is None:
            return None
        return cls(settled=settled, null=settled.null, sent={trace.id: trace for trace in traces})

    def begin(self, first: Sequence[int], order: Sequence[str], alpha: float, settings: Sequential) -> PrintsState:
        """The test at `alpha` before the first sequence of `order`; `first` are the edges that those of the first
        purchase reach, which give the strata."""
        honest = []
        for stack in self.null.stacks:
            scores_M, strata_M = matched([one.scores[0] for one in stack.sequences], first)
            honest.append({int(place): scores_M[strata_M == place] for place in np.unique(strata_M)})
        known = sorted(set.intersection(*(set(stack) for stack in honest)))
        if not known:
            raise CalibrationError("calibration: fingerprints: some stack's sequences are too short to compare with")
        test = stats.SequentialTest(alpha=alpha, bets=stats.mixed_bets(), tie_seed=settings.seed)
        state = test.start([{place: stack[place] for place in known} for stack in honest], order)
        return PrintsState(prints=self, test=test, state=state, places=tuple(known))


@dataclass(frozen=True, kw_only=True, eq=False)
class PrintsState:
    """Where the test of fingerprints stands; `after` gives the next state."""

    prints: Prints
    test: stats.SequentialTest
    state: stats.SequentialState
    places: tuple[int, ...]

    def after(self, name: str, found: ScoredItem | None, reached: int | None) -> PrintsState:
        """The state after the next sequence of the order, `found` being its scored tokens and `reached` its edge."""
        fitting = [place for place in self.places if reached is not None and place <= reached]
        value = self._score(name, found, fitting[-1]) if found is not None and fitting else None
        place = fitting[-1] if fitting else self.places[0]
        return replace(self, state=self.test.update(self.state, name, value, place))

    @property
    def outcome(self) -> stats.SequentialOutcome:
        """The test as it stands."""
        return self.test.outcome(self.state)

    @property
    def rejected(self) -> bool:
        """Whether the fingerprints have rejected."""
        return self.outcome.status is stats.SequentialStatus.REJECTED

    def _score(self, name: str, found: ScoredItem, place: int) -> float | None:
        prints, edge = self.prints, self.prints.settled.calibration.edges[place]
        try:
            one = prints.settled.measure(prints.sent[name], found.scored.evidence)
        except FingerprintError:
            return None
        if one.tokens < edge:
            return None
        return float(prefix_scores(one, prints.null.spec, prints.null.scales, [edge])[0, 0])

    def weigh(
        self,
        found: Judgement,
        planned: Sequence[Planned],
        items: Sequence[ScoredItem],
        alpha: float,
        rng: np.random.Generator,
    ) -> Judgement:
        """The judgement of the tokens at alpha / 2 (`found`) and of the fingerprints, as both stood at the end."""
        prints = self.prints
        return weigh(found, prints.settled, planned, items, prints.sent, alpha, rng, self.outcome)
