"""Sequential test of per-sequence scores: look after every sequence, stop at any time, at the same error rate.

Each audited score is ranked among the calibration's scores of its stratum and the audited ones before it, and its rank
is bet on. Assumption: given the strata, calibration and audited scores are exchangeable when the provider is honest
(with at least one of the stacks), in an order fixed before any was seen; the bets know nothing of the calibration's
scores. Guarantee: then the chance that the e-value is *ever* 1/alpha is at most alpha, at any number of sequences, for
any distribution and any stopping rule. Ranks: Vovk, Gammerman & Shafer 2005, theorem 8.2; betting on them: Vovk 2021,
*Testing randomness online*, Statist. Sci. 36:595; the bound: Ville 1939. Proof in docs/statistics.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from veridifr.stats.bets import Bets, Table
from veridifr.stats.checks import FloatArray, check_count, check_scores
from veridifr.stats.ranks import joined, smoothed_rank, tie_breaker
from veridifr.stats.wealth import Bounds, learned, settle, stake


class SequentialStatus(StrEnum):
    """Where a sequential test stands."""

    OPEN = "open"
    REJECTED = "rejected"
    """Every stack's e-value has been 1/alpha."""
    GIVEN_UP = "given up"
    """An account is at its floor, and can't rise again. Not a rejection, and no evidence of honesty by itself."""
    SPENT = "spent"
    """Every sequence of the order has been used without a rejection."""


@dataclass(frozen=True, kw_only=True)
class StackBet:
    """One stack's side of the test: e-value now, and p-value 1 / largest e-value so far."""

    e_value: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class SequentialOutcome:
    """The test as it stands after `n` ranked sequences (`missing` others had no score).

    `p_value`, the largest over the stacks, holds at any time; it is never below alpha, as no account goes on beyond its
    goal. `e_value`, the smallest over the stacks now, has mean at most 1 for an honest provider (what `e_bh` and
    merging need) with one stack, or where the test ended as rejected, given up, or at the end of an order that wasn't
    extended. `decided_at` is the n at which it was rejected or given up, None before.
    """

    status: SequentialStatus
    e_value: float
    p_value: float
    n: int
    missing: int
    decided_at: int | None
    stacks: tuple[StackBet, ...]


@dataclass(frozen=True)
class _Stratum:
    bag: FloatArray
    table: Table


@dataclass(frozen=True)
class _Stack:
    strata: Mapping[int, _Stratum]
    prior: FloatArray
    shares: FloatArray
    account: float = 1.0
    best: float = 1.0  # largest e-value so far


@dataclass(frozen=True)
class SequentialState:
    """Where a test stands; made by `start`, `update` and `extend`, never changed."""

    order: tuple[str, ...]
    stacks: tuple[_Stack, ...]
    used: int = 0
    missing: int = 0
    decided_at: int | None = None

    @property
    def ranked(self) -> int:
        """Number of sequences that were ranked."""
        return self.used - self.missing


@dataclass(frozen=True, kw_only=True)
class SequentialTest:
    """Settings of a sequential test, all fixed before the audit.

    `alpha`: level. Give the smallest level at which you would reject, alpha/k for k audits: no e-value exceeds 1/alpha.
    `bets`: one mixture for all strata, or one for each (the same bets in the same order, each as its stratum sees it).
    `tie_seed`: recorded; breaks ties and spreads ranks within 1/(m + 1). Not known to the provider beforehand.
    `floor`: account at which the test gives up and bets no more; the stake that is not kept back is used above it.
    With 0 it never gives up. A floor of b costs about b of the power, averaged over the bets' own alternatives, and
    saves sequences: see `floor_for_power`.
    """

    alpha: float
    bets: Bets | Mapping[int, Bets]
    tie_seed: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        Bounds(alpha=self.alpha, floor=self.floor)
        check_count("tie_seed", self.tie_seed, least=0)
        if not isinstance(self.bets, Bets) and len({bets.weights for bets in self.bets.values()}) != 1:
            raise ValueError("bets: expected the same number of bets with the same weights in every stratum.")

    def start(self, honest: Sequence[Mapping[int, npt.ArrayLike]], order: Sequence[str]) -> SequentialState:
        """The state before the first sequence.

        `honest`: for each stack, the scores float[M] of the calibration's *null* part by stratum; a sequence stands in
        one stratum only. `order`: ids of the sequences as they will be looked at, fixed before any is scored.
        """
        if not honest:
            raise ValueError("honest: got no stack, expected the scores of at least one.")
        _check_order(order)
        return SequentialState(order=tuple(order), stacks=tuple(self._stack(i, s) for i, s in enumerate(honest)))

    def update(self, state: SequentialState, name: str, score: float | None, stratum: int) -> SequentialState:
        """The state after the next sequence of the order, with its finished score; None if it couldn't be scored.

        `stratum` is decided by lengths alone. A sequence is looked at once, at its end or a block edge; a peek in
        between sees the last value. A missing score moves no account: it counts against coverage, and is valid only
        if an honest provider's scores go missing without regard to what they would have been.
        """
        if state.used == len(state.order):
            raise ValueError(f"order: all {state.used} sequences have been used; `extend` it by new ones.")
        if name != state.order[state.used]:
            raise ValueError(f"order: got sequence {name!r}, expected {state.order[state.used]!r} as fixed beforehand.")
        if score is None:
            return replace(state, used=state.used + 1, missing=state.missing + 1)
        check_scores("score", [score])
        lacking = [i for i, stack in enumerate(state.stacks) if stratum not in stack.strata]
        if lacking:
            raise ValueError(f"stratum: honest stack {lacking[0]} has no score in {stratum}, so nothing to rank it in.")
        tie = tie_breaker(self.tie_seed, state.used)
        stacks = tuple(self._bet(stack, float(score), stratum, tie) for stack in state.stacks)
        state = replace(state, stacks=stacks, used=state.used + 1)
        if state.decided_at is None and self._decided(state) is not None:
            state = replace(state, decided_at=state.ranked)
        return state

    def extend(self, state: SequentialState, order: Sequence[str]) -> SequentialState:
        """The state with further sequences at the end of the order; buying them may depend on what was seen."""
        _check_order([*state.order, *order])
        return replace(state, order=(*state.order, *order))

    def outcome(self, state: SequentialState) -> SequentialOutcome:
        """The test as it stands."""
        stacks = tuple(
            StackBet(e_value=self._e_value(stack.account), p_value=min(1.0, 1.0 / stack.best)) for stack in state.stacks
        )
        spent = SequentialStatus.SPENT if state.used == len(state.order) else SequentialStatus.OPEN
        return SequentialOutcome(
            status=self._decided(state) or spent,
            e_value=min(stack.e_value for stack in stacks),
            p_value=max(stack.p_value for stack in stacks),
            n=state.ranked,
            missing=state.missing,
            decided_at=state.decided_at,
            stacks=stacks,
        )

    def _stack(self, number: int, strata: Mapping[int, npt.ArrayLike]) -> _Stack:
        if not strata:
            raise ValueError(f"honest[{number}]: got no stratum, expected at least one.")
        found = {}
        for stratum, scores in strata.items():
            bag = np.sort(check_scores(f"honest[{number}][{stratum}]", scores))
            if not isinstance(self.bets, Bets) and stratum not in self.bets:
                raise ValueError(f"bets: none given for stratum {stratum}.")
            bets = self.bets if isinstance(self.bets, Bets) else self.bets[stratum]
            found[stratum] = _Stratum(bag, bets.table(len(bag)))
        prior = next(iter(self._mixtures())).prior
        return _Stack(found, prior, prior)

    def _mixtures(self) -> Sequence[Bets]:
        return [self.bets] if isinstance(self.bets, Bets) else list(self.bets.values())

    def _bounds(self) -> Bounds:
        return Bounds(alpha=self.alpha, floor=self.floor)

    def _e_value(self, account: float) -> float:
        return float(self._bounds().e_value(np.array([account]))[0])

    def _bet(self, stack: _Stack, score: float, stratum: int, tie: float) -> _Stack:
        """One stack after one more score: ranked, bet on by a stake that does not know the rank, joined."""
        bounds, place = self._bounds(), stack.strata[stratum]
        account_D = np.array([stack.account])
        cell = int(place.table.cell(smoothed_rank(score, place.bag, tie)))
        if not bounds.closed(account_D)[0]:
            paid_DC = stake(stack.shares[None], account_D, place.table, bounds)
            account_D = settle(account_D, paid_DC[:, cell], bounds)
        account = float(account_D[0])
        return replace(
            stack,
            strata={**stack.strata, stratum: _Stratum(joined(place.bag, score), place.table)},
            shares=learned(stack.shares[None], place.table.density[None, :, cell], stack.prior)[0],
            account=account,
            best=max(stack.best, self._e_value(account)),
        )

    def _decided(self, state: SequentialState) -> SequentialStatus | None:
        bounds = self._bounds()
        if all(stack.account >= bounds.goal for stack in state.stacks):
            return SequentialStatus.REJECTED
        if any(bounds.closed(np.array([stack.account]))[0] and stack.account < bounds.goal for stack in state.stacks):
            return SequentialStatus.GIVEN_UP
        return None


def audit_order(seed: int, names: Sequence[str]) -> tuple[str, ...]:
    """`names` in the order of their SHA-256 digests with a recorded seed: fixed before scoring, and nobody's choice."""
    check_count("seed", seed, least=0)
    _check_order(names)
    return tuple(sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()))


def _check_order(order: Sequence[str]) -> None:
    if len(set(order)) != len(order):
        raise ValueError(f"order: {len(order) - len(set(order))} ids occur more than once.")
