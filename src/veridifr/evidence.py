"""What a trusted reference says about one trace: the logits that can matter, listed token by token.

For every output token the reference lists candidates (id and logit), always with the claimed token among them, and
says what it left out: `floor` bounds every unlisted logit and `tail`, `hot_tail` are the probability that unlisted
tokens hold at the claimed temperature and at `HOT` times it. So each score can be recomputed offline, by someone else,
under another hypothesis, and a hypothesis that the listing cannot decide shows as a bound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.errors import EvidenceError
from veridifr.trace import MAX_TOKEN_ID, MAX_TOKENS, Sampling, Trace

HOT = 1.5
"""The hottest temperature hypothesis supported, as a multiple of the claimed temperature."""
TAIL_MASS = 1e-6
"""Default of the probability that may stay unlisted at the claimed temperature."""
LIST_BYTES = 1024
"""Default byte budget per token for listing beyond what the claimed settings need (8 bytes a candidate)."""
CANDIDATE_BYTES = 8
MAX_CANDIDATES = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Race:
    """A reference that drew the noise itself: under this contract, seed and temperature, without filters, no unlisted
    token comes within one logit of the best perturbed score (`scores.NEAR`), but for the tokens in `open_O`."""

    contract: str
    seed: int
    temperature: float
    open_O: npt.NDArray[np.int64]
    """Output steps for which that is not known, ascending."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Reference logits for the T output tokens of one trace, N candidates in all.

    Axes: token t owns candidates `offsets_T1[t]:offsets_T1[t+1]`, in ascending order of id, the claimed id among them.
    Logits are the model's own, before any sampling setting, in float32; `lse_T` is the log-sum-exp of the whole row at
    temperature 1; `rank_T` counts tokens with a larger logit than the claimed one (0 = best; at least so many
    where a server neither lists that far nor states it). `floor_T`: no unlisted token has a larger logit (after
    penalties and the like); a row that lists everything has floor -inf. `temperature` is the one that `tail_T` refers
    to: the claimed one, or 1 for greedy.

    `projections_AFK`: the reference's own fingerprint, projections of its hidden states [taps, entries, k] by the
    specification that the reference was asked for; None if it was asked for none. `sensitivity_AF`: the root mean
    square, over a hidden state's coordinates, of what rounding changes in it [taps, entries]; None if not asked for.

    `race`: whose winner the listing is sure to hold though its tail is long; None where the tail alone decides.
    """

    trace_id: str
    trace_digest: str
    """`evidence_key` of the trace."""
    vocab_size: int
    temperature: float
    offsets_T1: npt.NDArray[np.int64]
    ids_N: npt.NDArray[np.int32]
    logits_N: npt.NDArray[np.float32]
    lse_T: npt.NDArray[np.float64]
    rank_T: npt.NDArray[np.int32]
    floor_T: npt.NDArray[np.float32]
    tail_T: npt.NDArray[np.float64]
    hot_tail_T: npt.NDArray[np.float64]
    projections_AFK: npt.NDArray[np.float32] | None = None
    sensitivity_AF: npt.NDArray[np.float32] | None = None
    race: Race | None = None

    @property
    def tokens(self) -> int:
        """Number of output tokens covered, counted from the first."""
        return len(self.lse_T)

    @property
    def rows_N(self) -> npt.NDArray[np.int64]:
        """For each candidate, the token that it belongs to."""
        return np.repeat(np.arange(self.tokens, dtype=np.int64), np.diff(self.offsets_T1))

    def tail_at(self, temperature: float) -> npt.NDArray[np.float64]:
        """Upper bound on the unlisted probability of each token at `temperature`; 1 where nothing is known.

        A lower temperature moves mass to the top, so the tail of a hotter one bounds it.
        """
        if temperature <= self.temperature * (1 + 1e-9):
            return self.tail_T
        if temperature <= self.temperature * HOT * (1 + 1e-9):
            return self.hot_tail_T
        return np.where(self.floor_T == -np.inf, 0.0, 1.0)

    def validate(self) -> Evidence:
        """Return self if every array is as documented; else raise `EvidenceError` naming the field.

        Called on everything read from disk: an evidence file may come from a stranger.
        """
        tokens, count = self.tokens, len(self.ids_N)
        if not 0 < self.temperature <= 1e4:
            raise self._error("temperature", f"got {self.temperature}, expected above 0 and at most 10000")
        if not 1 <= self.vocab_size <= MAX_TOKEN_ID or tokens > MAX_TOKENS or count > MAX_CANDIDATES:
            raise self._error("vocab_size", "sizes are out of range")
        if len(self.offsets_T1) != tokens + 1 or len(self.logits_N) != count:
            raise self._error("offsets", "array lengths do not agree")
        for name in ("rank_T", "floor_T", "tail_T", "hot_tail_T"):
            if len(getattr(self, name)) != tokens:
                raise self._error(name, f"got {len(getattr(self, name))} values, expected {tokens}")
        steps = np.diff(self.offsets_T1)
        if self.offsets_T1[0] != 0 or self.offsets_T1[-1] != count or (tokens and steps.min() < 1):
            raise self._error("offsets", "every token must own at least one candidate, in order")
        own = self.projections_AFK
        if own is not None and not (own.ndim == 3 and own.shape[1] <= tokens and np.isfinite(own).all()):
            raise self._error("projections", "expected finite values [taps, entries, k]")
        apart = self.sensitivity_AF
        if apart is not None and not (
            own is not None and apart.shape == own.shape[:2] and np.isfinite(apart).all() and (apart > 0).all()
        ):
            raise self._error("sensitivity", "expected values above 0, one for each entry of the projections")
        if self.race is not None and not ((self.race.open_O >= 0) & (self.race.open_O < tokens)).all():
            raise self._error("race", "an open token is outside the output")
        if count:
            self._check_values(steps)
        return self

    def _check_values(self, steps: npt.NDArray[np.int64]) -> None:
        if self.ids_N.min() < 0 or self.ids_N.max() >= self.vocab_size:
            raise self._error("ids", f"an id lies outside the vocabulary of {self.vocab_size}")
        ascending = np.diff(self.ids_N.astype(np.int64)) > 0
        ascending[self.offsets_T1[1:-1] - 1] = True
        if not ascending.all():
            raise self._error("ids", "ids of a token must ascend")
        if not (np.isfinite(self.logits_N).all() and np.isfinite(self.lse_T).all()):
            raise self._error("logits", "a logit is not finite")
        if np.isnan(self.floor_T).any() or (self.floor_T == np.inf).any():
            raise self._error("floor", "a floor is not a number")
        for name in ("tail_T", "hot_tail_T"):
            values = getattr(self, name)
            if not ((values >= 0) & (values <= 1)).all():
                raise self._error(name, "a probability lies outside 0 to 1")
        if self.rank_T.min() < 0 or self.rank_T.max() >= self.vocab_size:
            raise self._error("rank", f"a rank lies outside the vocabulary of {self.vocab_size}")
        if steps.max() > self.vocab_size:
            raise self._error("offsets", "a token lists more candidates than the vocabulary holds")

    def _error(self, field: str, what: str) -> EvidenceError:
        return EvidenceError(f"evidence for sequence {self.trace_id!r}: {field}: {what}")


def evidence_key(trace: Trace) -> str:
    """By what a trace's evidence is found: the digest of its token ids, and of the settings that act on single logits.

    Those settings decide which tokens a reference lists and what it may say of the others, so evidence made under a
    claim without a bias must not serve a claim with one.
    """
    sampling = trace.sampling
    pointwise = (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        tuple(sorted(sampling.logit_bias.items())) or None,
        sampling.allowed_token_ids,
        sampling.bad_words_token_ids or None,
        sampling.min_tokens and (sampling.min_tokens, sampling.stop_token_ids),
    )
    if all(setting is None for setting in pointwise):
        return trace.digest()
    return hashlib.sha256(f"veridifr evidence 1\0{trace.digest()}\0{pointwise!r}".encode()).hexdigest()


def listing_temperature(sampling: Sampling) -> float:
    """The temperature that evidence for such a claim refers to: 1 for greedy."""
    return 1.0 if sampling.greedy else sampling.temperature


def claimed_index(evidence: Evidence, claimed_T: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Index into the candidates of each claimed token; `EvidenceError` if one is not listed."""
    starts_T, ends_T = evidence.offsets_T1[:-1], evidence.offsets_T1[1:]
    index = np.flatnonzero(evidence.ids_N == np.repeat(claimed_T.astype(np.int32, copy=False), ends_T - starts_T))
    if len(index) != evidence.tokens or (index < starts_T).any() or (index >= ends_T).any():
        raise EvidenceError(f"evidence for sequence {evidence.trace_id!r}: ids: a claimed token is not listed")
    return index
