"""One set of numbers per token, or a reason why not: what the claimed token scores under the reference and the noise.

With z_j = l_j + T g_j (processed logit plus temperature times Gumbel noise, the Token-DiFR score of arXiv 2511.20621,
section 4.2, in logit units) and m_j the signed distance to the edge of top-k, top-p and min-p (`filters`), candidate j
loses to the claimed token c by

    a_j = max(z_c - z_j, m_j)        (it scores less, or it is not in the set)

and the signed gap is min(-m_c, min over j of a_j): the smallest logit error that would turn the outcome round. The
margin is max(0, -gap): 0 where the claimed token is the argmax, and finite always, also at the edge of a filter.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import Contract
from veridifr.trace import Sampling

Floats = npt.NDArray[np.float64]
GAP_CAP = 32.0
"""Gaps are cut to this many logits: beyond it nothing distinguishes them."""
WINNER_WINDOW = 8.0
"""Contenders kept for the likelihood: within this many logits of the best perturbed score."""

NEAR = 1.0
"""Unlikely candidates count as contenders only within this many logits of the best score."""
ALL_BOUNDS = (
    "every token is a bound, since an unlisted one might have won; let the reference list more (--top-logprobs), or "
    "ask for a top-k or top-p that keeps fewer"
)
"""Why a sequence that was replayed holds no score."""


class Status(IntEnum):
    """What is known about a token's score."""

    SCORED = 0
    """The score is exact up to the unlisted mass allowed."""
    BOUND = 1
    """The listing is too short: an unlisted token might have won, so the margin is a lower bound."""
    MISSING = 2
    """Asked for, but there is no evidence: the token is absent, or the reference did not cover it."""
    FORCED = 3
    """The verifier's own request left no choice, so the token is no evidence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contenders:
    """Candidates that could have won, M in all: `rows_M` (ascending), `scores_M` = z_j - z_c, `edges_M` = m_j,
    `noise_M` = T g_j - T g_c (what a change of temperature acts on), and `claimed_M` marks the claimed token itself, of
    which every row has one. What the likelihood needs, and small."""

    rows_M: npt.NDArray[np.int32]
    scores_M: npt.NDArray[np.float32]
    edges_M: npt.NDArray[np.float32]
    noise_M: npt.NDArray[np.float32]
    claimed_M: npt.NDArray[np.bool_]

    def at(self, chosen_M: npt.NDArray[Any]) -> Contenders:
        """Those that a mask or an index names, in its order; rows keep their numbers."""
        return Contenders(**{entry.name: getattr(self, entry.name)[chosen_M] for entry in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Choices:
    """What T tokens were drawn from if nobody knows the noise: M candidates, those of a token together and in
    descending order of logit, so that every kept set is a prefix of them.

    `logits_M` are processed logits less the largest of the token's, before temperature (minus infinity: forbidden);
    `edges_M` signed distances to the edge of the filters (minus infinity without one); `raw_M` log-probabilities at the
    claimed temperature, before all settings; `claimed_T` says which candidate was claimed. `sampling` are the settings
    that all this holds for, and `temperature` what the engine divides by."""

    sampling: Sampling
    temperature: float
    starts_T: npt.NDArray[np.int64]
    claimed_T: npt.NDArray[np.int64]
    logits_M: npt.NDArray[np.float32]
    edges_M: npt.NDArray[np.floating[Any]]
    raw_M: npt.NDArray[np.float32]

    @property
    def rows_M(self) -> npt.NDArray[np.int64]:
        """The token that each candidate belongs to."""
        counts_T = np.diff(self.starts_T, append=len(self.logits_M))
        return np.repeat(np.arange(len(counts_T), dtype=np.int64), counts_T)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of the T output tokens of one trace.

    `gap_T` and `margin_T` in logits; `match_T` is whether the claimed token is the argmax of the kept set; `rank_T`
    counts larger logits; `logprob_T` is the log-probability at the claimed temperature, before filters, in nats
    (temperature 1 for greedy). Where `status_T` is MISSING the other entries are not to be read.
    """

    status_T: npt.NDArray[np.int8]
    gap_T: Floats
    match_T: npt.NDArray[np.bool_]
    best_T: npt.NDArray[np.int32]
    rank_T: npt.NDArray[np.int32]
    logprob_T: Floats
    contenders: Contenders
    hashes: int
    """How many noise values were computed."""
    inverse_cdf: bool = False
    """Whether `contenders` holds intervals (`scores_M`, `edges_M` = distances of u to both ends) instead."""
    choices: Choices | None = None
    """Where the noise is not known; `contenders` is then empty, the gap is how far inside the filters the claimed token
    lies, and `match_T` whether it is the likeliest."""

    @property
    def margin_T(self) -> Floats:
        """Post-Gumbel margin in logits, at least 0."""
        return np.maximum(0.0, -self.gap_T)

    @property
    def usable_T(self) -> npt.NDArray[np.bool_]:
        """Tokens that count as scored."""
        scored: npt.NDArray[np.bool_] = self.status_T == Status.SCORED
        return scored


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What is assumed of the sampler when a trace is scored. The claim is one hypothesis among many."""

    contract: Contract
    sampling: Sampling
    seed: int | None
    prompt_shift: int = 0
    """Added to the prompt length from which positions are counted."""
