"""What an audit concludes, as values: the verdict with its error rate, the reason, and where every input came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from veridifr.errors import VeridifrError

Interval = tuple[float, float]
LATER: Mapping[str, bool] = MappingProxyType({"later": True})
"""Marks fields that findings of version 1 may lack: they came later, and their default is what those meant."""


class Verdict(Enum):
    """The five outcomes. `sentence` is what a person reads."""

    CONSISTENT = "consistent"
    DIVERGENT = "divergent"
    UNDECIDED = "undecided"
    NO_EVIDENCE = "no_evidence"
    UNSUPPORTED = "unsupported"

    @property
    def sentence(self) -> str:
        """One sentence that says what the verdict means and what it does not."""
        return _SENTENCES[self]


_SENTENCES = {
    Verdict.CONSISTENT: "The outputs differ from the reference no more than honest runs do, and a deviation of the"
    " declared size would have shown.",
    Verdict.DIVERGENT: "The outputs differ from the reference more than honest runs do.",
    Verdict.UNDECIDED: "Nothing was found, but the evidence is too thin to rule a deviation out.",
    Verdict.NO_EVIDENCE: "No token could be scored.",
    Verdict.UNSUPPORTED: "The sampler or its settings cannot be replayed, so nothing was decided.",
}


@dataclass(frozen=True, kw_only=True)
class LogitNoise:
    """Effective logit noise: the standard deviation, in logits before temperature, of a token's logit error.

    `honest` is the calibration's value; `estimate` and its 95 % `interval` are the audited provider's. None: not known.
    """

    estimate: float | None
    honest: float | None
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One cause that was tried. `gain` is its log-likelihood per token over the claim, in nats, on held-out tokens."""

    code: str
    contract: str | None
    parameter: str | None
    estimate: float | None
    gain: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The cause that fits a divergent audit, or `none` / `unexplained`.

    `code`: none, sampler_contract, temperature, top_p, top_k, seed, forward_pass or unexplained. `parameter` names
    what was estimated ("temperature", "sigma", "seed"); `estimate` and its 95 % `interval` are in that unit.
    """

    code: str = "none"
    contract: str | None = None
    parameter: str | None = None
    estimate: float | None = None
    interval: Interval | None = None
    sentence: str = ""
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StackResult:
    """The test against one honest stack of the calibration."""

    name: str
    p_value: float
    floor: float
    sequences: int


@dataclass(frozen=True, kw_only=True)
class SequentialSummary:
    """How a sequential audit ended: `status` is rejected, given up, spent (its order, without a rejection), or
    stopped (the fingerprints had rejected, and the tokens' test was open).

    `e_value` is the smallest over the honest stacks after `n` of the `ordered` sequences; its mean is at most 1 for an
    honest provider. `seed` gave the order and the tie-breaks; `floor` is the account at which the test gives up.
    """

    status: str
    e_value: float
    n: int
    ordered: int
    seed: int
    floor: float


@dataclass(frozen=True, kw_only=True)
class TestSummary:
    """Which test was run, on what, and what it could have seen."""

    name: str
    statistic: str
    permutations: int
    stacks: tuple[StackResult, ...]
    detect_sigma: float | None
    """The smallest deviation that `consistent` rules out, as effective logit noise in logits."""
    power: float | None
    """Chance that this audit would have found `detect_sigma`."""
    further_sequences: int | None
    """How many more sequences to buy for power 0.9; 0 when none are needed, None when not known."""
    sequential: SequentialSummary | None = field(default=None, metadata=LATER)
    """None for the test of a fixed number of sequences."""


@dataclass(frozen=True, kw_only=True)
class FingerprintSummary:
    """What fingerprints of activations say beside the tokens, each of the two tested at half of alpha.

    `speaks`: which of the two rejects: tokens, fingerprints, both, or None for neither.
    """

    spec: str
    """SHA-256 (hex) of the specification."""
    p_value: float | None
    """Largest over the honest stacks, not yet doubled; None where no fingerprint could be compared."""
    tokens_p_value: float
    """The same for the tokens. The finding's p-value is twice the smaller of the two, at most 1."""
    sequences: int
    """Sequences whose fingerprint was compared."""
    missing: int
    """Sequences that owed one and have none that could be compared."""
    speaks: str | None
    tap: str | None
    """With several taps, the first in depth whose scores reject; None if none does, or there is one tap."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why each missing one is missing, by sequence id."""


@dataclass(frozen=True, kw_only=True)
class DistributionSummary:
    """Checks of tokens whose noise is not known, and what knowing it would save.

    `excess` is the mean of -log p less the entropy, in nats per token: above 0, the tokens are less likely than draws.
    `rank_distance` is the largest distance (Kolmogorov-Smirnov) of the tokens' randomised ranks from a uniform
    distribution. Both p-values take the reference's logits as exact, and the verdict does not rest on them.
    """

    excess: float
    excess_p_value: float
    rank_distance: float
    rank_p_value: float
    tokens_needed: int | None
    """Tokens in all that finding the declared deviation takes here, with sequences of this length."""
    seeded_tokens: int | None
    """Tokens that the seeded test would take for it; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class SequenceResult:
    """One sequence of the audit. `reason` says why it is unsupported, None if it was scored."""

    id: str
    tokens_by_status: Mapping[str, int]
    exact_match: float | None
    mean_margin: float | None
    score: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class TokenNote:
    """One token to show a person. Texts are decoded and raw: whoever prints them escapes them. `margin` in logits."""

    sequence: str
    step: int
    claimed_id: int
    best_id: int
    margin: float
    before: str | None
    claimed: str | None
    after: str | None
    best: str | None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where every input came from. Digests are SHA-256 in hex."""

    veridifr: str
    created: str
    """UTC, ISO 8601."""
    traces: tuple[tuple[str, str], ...]
    """File name and digest of each trace file."""
    reference: str
    weights: str
    calibration: str
    calibration_file: str | None
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """dtype, device, threads, tail_mass, hashes per token and the like."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one audit: everything that the JSON, the text and the HTML report say."""

    verdict: Verdict
    alpha: float
    p_value: float | None
    reason: str
    """One sentence: why this verdict."""
    next_step: str | None
    """One sentence: what to do now, for verdicts that leave something open."""
    test: TestSummary | None
    model: str
    engine: str
    contract: str | None
    assumptions: tuple[str, ...]
    """What was assumed because the record or the request did not say it."""
    sequences: int
    sequences_unsupported: int
    tokens_requested: int
    tokens_scored: int
    tokens_by_status: Mapping[str, int]
    exact_match: float | None
    mean_margin: float | None
    effective_logit_noise: LogitNoise
    diagnosis: Diagnosis
    provenance: Provenance
    results: tuple[SequenceResult, ...] = ()
    worst_tokens: tuple[TokenNote, ...] = ()
    honest_scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Per-sequence scores of each honest stack, length-matched, for the report's picture."""
    honest_exact_match: float | None = None
    fingerprints: FingerprintSummary | None = field(default=None, metadata=LATER)
    """None where tokens alone were tested."""
    mode: str | None = field(default=None, metadata=LATER)
    """What the verdict rests on: seeded, greedy or distribution; None where no contract could be named."""
    distribution: DistributionSummary | None = field(default=None, metadata=LATER)
    """None unless the mode is distribution."""

    @property
    def coverage(self) -> float | None:
        """Share of the requested tokens that were scored; None when no token was requested."""
        return self.tokens_scored / self.tokens_requested if self.tokens_requested else None

    def require_consistent(self) -> None:
        """Raise `NotConsistent` unless the verdict is consistent, for callers who want an exception."""
        if self.verdict is not Verdict.CONSISTENT:
            raise NotConsistent(self)


class NotConsistent(VeridifrError):
    """Raised by `Finding.require_consistent`; carries the finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.verdict.value}: {finding.reason}")
        self.finding = finding
