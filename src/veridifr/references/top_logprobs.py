"""From the n likeliest tokens of each position, as servers list them, to evidence that says what they leave open.

Logits are log-probabilities here, so the log-sum-exp of a whole row is 0. Of an unlisted token two things are known: it
is no likelier than the least likely listed one, and together they hold what the listed ones leave. From these follow
bounds on their probability at every other temperature, and a token that they could have decided becomes a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.evidence import HOT, Evidence, evidence_key, listing_temperature
from veridifr.trace import Sampling, Trace

Floats = npt.NDArray[np.float64]
ROUNDING = 2e-5
"""More than the sum of a row's listed probabilities is off by, where a server computes them in float32."""
_MOVED = 5e-3
"""How far, in logits, what is not known of the unlisted mass may move the edge of top-p before a token is a bound: less
than honest runs differ by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TopLogprobs:
    """What a server lists for T positions: N tokens, ids ascending within each, the claimed one always among them.

    `logprobs_N` in nats at temperature 1. `rank_T` counts tokens likelier than the claimed one; None: not stated.
    """

    counts_T: npt.NDArray[np.int64]
    ids_N: npt.NDArray[np.int32]
    logprobs_N: Floats
    rank_T: npt.NDArray[np.int64] | None


def evidence_from(trace: Trace, vocab_size: int, top: TopLogprobs) -> Evidence:
    """Evidence for all output tokens of `trace`. Each position lists at least two tokens."""
    offsets_T1 = np.concatenate([[0], np.cumsum(top.counts_T)]).astype(np.int64)
    starts_T = offsets_T1[:-1]
    claimed_N = top.ids_N == np.repeat(trace.output_token_ids, top.counts_T)
    own_T = top.logprobs_N[claimed_N]
    # A claimed token from below the n likeliest is listed after them, so it does not bound what is unlisted.
    floor_T = np.minimum.reduceat(np.where(claimed_N, np.inf, top.logprobs_N), starts_T)
    left = _Left.of(top, vocab_size, floor_T)
    heat = listing_temperature(trace.sampling)
    share_T, error_T = left.share(heat)
    hot_share_T, _ = left.share(HOT * heat)
    larger_T = np.add.reduceat(top.logprobs_N > np.repeat(own_T, top.counts_T), starts_T, dtype=np.int64)
    floor_T = np.where(left.unlisted_T == 0, -np.inf, floor_T)
    vague_T = _moves_top_p(trace.sampling, top.counts_T, heat, error_T)
    best_T = np.maximum.reduceat(top.logprobs_N, starts_T)
    return Evidence(
        trace_id=trace.id,
        trace_digest=evidence_key(trace),
        vocab_size=vocab_size,
        temperature=heat,
        offsets_T1=offsets_T1,
        ids_N=top.ids_N,
        logits_N=top.logprobs_N.astype(np.float32),
        lse_T=np.zeros(len(own_T)),
        rank_T=_ranks(larger_T, own_T >= floor_T, top.rank_T, vocab_size),
        # Where the edge of top-p is not known well enough, the weakest bound that is true leaves it undecided.
        floor_T=np.where(vague_T, best_T, floor_T).astype(np.float32),
        tail_T=share_T,
        hot_tail_T=hot_share_T,
    )


def _ranks(
    larger_T: npt.NDArray[np.int64],
    inside_T: npt.NDArray[np.bool_],
    stated_T: npt.NDArray[np.int64] | None,
    vocab_size: int,
) -> npt.NDArray[np.int32]:
    """Ranks counted where all that is larger is listed; elsewhere what the server states, or at least those listed."""
    below_T = larger_T if stated_T is None else np.clip(stated_T, larger_T, vocab_size - 1)
    return np.where(inside_T, larger_T, below_T).astype(np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Left:
    """What T rows leave unlisted: how many tokens, none above `floor_T`, with `least_T` to `most_T` of probability."""

    top: TopLogprobs
    floor_T: Floats
    unlisted_T: npt.NDArray[np.int64]
    least_T: Floats
    most_T: Floats

    @classmethod
    def of(cls, top: TopLogprobs, vocab_size: int, floor_T: Floats) -> _Left:
        unlisted_T = vocab_size - top.counts_T
        left_T = 1.0 - np.add.reduceat(np.exp(top.logprobs_N), np.cumsum(top.counts_T) - top.counts_T)
        ceiling_T = unlisted_T * np.exp(floor_T)  # every unlisted token at the floor
        most_T = np.minimum(np.maximum(left_T, 0.0) + ROUNDING, ceiling_T)
        least_T = np.clip(left_T - ROUNDING, 0.0, most_T)
        return cls(top=top, floor_T=floor_T, unlisted_T=unlisted_T, least_T=least_T, most_T=most_T)

    def share(self, heat: float) -> tuple[Floats, Floats]:
        """At temperature `heat`, the most that unlisted tokens hold of the probability, and by how much it may be less.

        With p the probabilities at temperature 1, theirs at `heat` go with p^a, a = 1/heat. Of all ways to spread a
        given mass over tokens of at most exp(floor), the sum of p^a is extreme where it is spread evenly and where it
        fills as few tokens as it can: for a > 1 convex, for a < 1 concave.
        """
        power = 1.0 / heat
        starts_T = np.cumsum(self.top.counts_T) - self.top.counts_T
        listed_T = np.logaddexp.reduceat(self.top.logprobs_N * power, starts_T)
        steep, even = self._steep, self._even
        most_T, least_T = (steep, even) if power >= 1.0 else (even, steep)
        ratio_T = np.exp(most_T(self.most_T, power) - listed_T)
        less_T = np.minimum(np.exp(least_T(self.least_T, power) - listed_T), ratio_T)
        share_T: Floats = ratio_T / (1.0 + ratio_T)
        return share_T, (ratio_T - less_T) / (1.0 + less_T)

    def _steep(self, mass_T: Floats, power: float) -> Floats:
        """log of the sum of p^a where every token with any mass is at the floor."""
        return _log(mass_T) + (power - 1.0) * self.floor_T

    def _even(self, mass_T: Floats, power: float) -> Floats:
        """log of the sum of p^a where all unlisted tokens share the mass evenly."""
        return (1.0 - power) * np.log(np.maximum(self.unlisted_T, 1)) + power * _log(mass_T)


def _log(values_T: Floats) -> Floats:
    return np.log(values_T, out=np.full(len(values_T), -np.inf), where=values_T > 0)


def _moves_top_p(
    sampling: Sampling, counts_T: npt.NDArray[np.int64], heat: float, error_T: Floats
) -> npt.NDArray[np.bool_]:
    """Rows in which the mass that top-p is taken of is not known well enough.

    A relative error e of it moves the odds of the mass S above a token by e / (1 - S), and the edge lies where S = p. A
    top-k that cuts among the listed tokens leaves a mass that is known.
    """
    if sampling.top_p is None or sampling.greedy:
        return np.zeros(len(counts_T), dtype=np.bool_)
    whole_T = counts_T <= (sampling.top_k or np.inf)
    return whole_T & (heat * error_T / (1.0 - sampling.top_p) > _MOVED)
