"""A planned sequence with its scores: what judging, summing up and diagnosing share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veridifr.hypotheses import ScoredSequence
from veridifr.requests import Planned
from veridifr.scores import Scores, Status
from veridifr.statistic import edge_of


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredItem:
    """One sequence that was asked for, replayed and scored."""

    planned: Planned
    scored: ScoredSequence

    @property
    def scores(self) -> Scores:
        """Scores of its tokens under the claim."""
        return self.scored.scores

    @property
    def speaks(self) -> bool:
        """Whether it holds evidence: some token is scored, and the request left a choice."""
        return not self.planned.forced and bool(self.scores.usable_T.any())


def reaching(items: Sequence[ScoredItem], edges: Sequence[int]) -> list[tuple[ScoredItem, int]]:
    """Sequences that speak and reach an edge, each with the number of the last one that it reaches."""
    placed = [(item, edge_of(item.planned.end, edges)) for item in items if item.speaks]
    return [(item, place) for item, place in placed if place is not None]


def tokens_owed(planned: Sequence[Planned]) -> int:
    """Tokens that were asked for and are evidence if they are there."""
    return sum(item.tokens for item in planned if not item.forced)


def tokens_scored(items: Sequence[ScoredItem]) -> int:
    """Tokens with an exact score."""
    return sum(int(item.scores.usable_T.sum()) for item in items if not item.planned.forced)


def tokens_by_status(planned: Sequence[Planned], items: Sequence[ScoredItem]) -> dict[str, int]:
    """How many tokens have each status; what was asked for and is not there is missing."""
    found: Counter[str] = Counter({status.name.lower(): 0 for status in Status})
    covered = 0
    for item in items:
        if item.planned.forced:
            continue
        counts = np.bincount(item.scores.status_T, minlength=len(Status))
        found.update({status.name.lower(): int(counts[status]) for status in Status})
        covered += item.scored.evidence.tokens
    found["missing"] += max(0, tokens_owed(planned) - covered)
    found["forced"] += sum(item.tokens for item in planned if item.forced)
    return dict(found)
