"""Which sampler contract drew these tokens, if any: for engines whose record does not tell.

Each contract recomputes its own choice for every token. If the tokens were drawn with other noise, then given the
tokens a match at token t happens with the probability pi_t that the reference gives the claimed token under the
settings, and independently over tokens that have noise of their own. That holds however the tokens came about, so
Chernoff's bound

    P(matches >= k) <= min over theta of exp(-theta k) prod_t (1 + pi_t (e^theta - 1))

needs nothing of the provider. A contract is named if its bound, times the number of contracts tried, is at most `RISK`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from veridifr.contracts.registry import CONTRACTS, REFUSED
from veridifr.errors import UnsupportedError
from veridifr.evidence import Evidence
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.scores import Hypothesis
from veridifr.scoring import sampling_probability, score
from veridifr.trace import EngineRecord, Trace

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
RISK = 1e-6
"""Largest chance with which a contract is named for tokens that were drawn with other noise."""
SEQUENCES = 16
"""Sequences looked at, at most: an honest one of a hundred tokens is often enough."""
_LARGEST = 40.0
"""Theta beyond which the bound gains nothing."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """How well one contract fits: tokens that it chooses too, and how many would be by chance.

    `risk` bounds the chance of so many matches with other noise, over all contracts tried. `reason` says why a contract
    could not be tried; the numbers are then None.
    """

    contract: str
    matches: int | None
    by_chance: float | None
    risk: float | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Identification:
    """The contract that the tokens fit, or None. `same` are others that choose the very same tokens."""

    contract: str | None
    same: tuple[str, ...]
    sequences: int
    tokens: int
    tried: tuple[Tried, ...]

    @property
    def sentence(self) -> str:
        """One sentence for a report."""
        if not self.tokens:
            return "No token could be used to identify the sampler: that takes seeds and a temperature above 0."
        best = max(self.tried, key=lambda one: one.matches or 0)
        about = f"{best.matches} of {self.tokens} tokens, {best.by_chance or 0.0:.0f} by chance"
        if self.contract is None:
            return f"The tokens fit none of {_count(self.tried)} contracts (best: {best.contract}, {about})."
        twins = f" (so would {', '.join(self.same)}: the same choices)" if self.same else ""
        return f"The tokens fit {self.contract}{twins}: {about}."


def identify(traces: Sequence[Trace], reference: Reference, *, replayer: Replayer | None = None) -> Identification:
    """Which contract drew the tokens of `traces`, by their seeds and settings; their engine records are not asked.

    At most `SEQUENCES` sequences are replayed, none that shares its noise with another. `ReferenceError` and
    `EvidenceError` as in an audit.
    """
    planned = [
        Planned(id=trace.id, trace=trace, end=len(trace.output_token_ids), tokens=len(trace.output_token_ids))
        for trace in traces
    ]
    return identify_planned(planned, replayer or Replayer(reference))


def identify_planned(planned: Sequence[Planned], replayer: Replayer, prefer: Sequence[str] = ()) -> Identification:
    """The same for planned sequences. Of contracts that choose the same tokens the first of `prefer` is named."""
    chosen = _with_own_noise(planned)
    found = [
        (item.trace, evidence)
        for item, evidence in replayer.run(chosen, label="identify")
        if item.trace is not None and evidence is not None
    ]
    eos_ids = replayer.reference.eos_ids
    names = [name for name in CONTRACTS if name != "greedy"]
    fits = {name: _fit(name, found, eos_ids, len(names)) for name in names}
    named = [name for name, fit in fits.items() if fit.tried.risk is not None and fit.tried.risk <= RISK]
    named.sort(key=lambda name: (-(fits[name].tried.matches or 0), name not in prefer))
    same = [name for name in named[1:] if np.array_equal(fits[name].match_T, fits[named[0]].match_T)]
    return Identification(
        contract=named[0] if named else None,
        same=tuple(same),
        sequences=len(found),
        tokens=max((len(fit.match_T) for fit in fits.values()), default=0),
        tried=(*(fit.tried for fit in fits.values()), *_refused()),
    )


def presumed(engine: EngineRecord, contract: str) -> EngineRecord:
    """The record with what a contract needs to know and the record leaves open: only then can it be the one."""
    return replace(
        engine,
        sampler=contract,
        deterministic=True if engine.deterministic is None else engine.deterministic,
        filtered_batch=False if engine.filtered_batch is None else engine.filtered_batch,
    )


def match_bound(chances_T: Floats, matches: int) -> float:
    """Chernoff's bound on P(at least so many of independent events of these probabilities)."""
    if matches <= chances_T.sum():
        return 1.0

    def exponent(theta: float) -> float:
        return float(np.log1p(chances_T * np.expm1(theta)).sum() - theta * matches)

    best = minimize_scalar(exponent, bounds=(0.0, _LARGEST), method="bounded")
    return float(np.exp(min(float(best.fun), 0.0)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    tried: Tried
    match_T: Flags


def _with_own_noise(planned: Sequence[Planned]) -> list[Planned]:
    """The first sequences with a seed of their own: shared noise would make matches depend on each other."""
    found: dict[tuple[int, int], Planned] = {}
    for item in planned:
        if item.trace is None or item.trace.sampling.greedy or item.trace.sampling.seed is None:
            continue
        found.setdefault((item.trace.sampling.seed, item.trace.engine.child or 0), item)
    return list(found.values())[:SEQUENCES]


def _fit(name: str, found: Sequence[tuple[Trace, Evidence]], eos_ids: tuple[int, ...], tried: int) -> _Fit:
    matches, chances = [np.zeros(0, dtype=bool)], [np.zeros(0)]
    try:
        for trace, evidence in found:
            own = replace(trace, engine=presumed(trace.engine, name))
            claim = Hypothesis(contract=CONTRACTS[name], sampling=trace.sampling, seed=trace.sampling.seed)
            scores = score(own, evidence, claim, eos_ids=eos_ids)
            matches.append(scores.match_T[scores.usable_T])
            chances.append(sampling_probability(own, evidence, claim)[scores.usable_T])
    except UnsupportedError as error:
        none = Tried(contract=name, matches=None, by_chance=None, risk=None, reason=str(error))
        return _Fit(tried=none, match_T=np.zeros(0, dtype=bool))
    match_T, chance_T = np.concatenate(matches), np.clip(np.concatenate(chances), 0.0, 1.0)
    count = int(match_T.sum())
    risk = min(1.0, tried * match_bound(chance_T, count))
    by_chance = float(chance_T.sum())
    return _Fit(tried=Tried(contract=name, matches=count, by_chance=by_chance, risk=risk), match_T=match_T)


def _refused() -> Iterator[Tried]:
    for name, reason in REFUSED.items():
        yield Tried(contract=name, matches=None, by_chance=None, risk=None, reason=reason)


def _count(tried: Sequence[Tried]) -> int:
    return sum(one.matches is not None for one in tried)
