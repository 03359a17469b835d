"""What several test packages build from: traces, evidence that lists whole rows of logits, and contenders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from veridifr.evidence import Evidence
from veridifr.scores import Contenders, Scores, Status
from veridifr.trace import EngineRecord, Sampling, Trace

SELF_SIGNED = Path(__file__).parent / "assets" / "self_signed.pem"
"""A certificate for this machine that nobody vouches for, and its key."""
CODE_NAMES = ("path", "value", "token", "result", "config", "index")
CODE_STARTS = (
    "def {0}_from(self, other):\n    ",
    "import {0}\nfrom typing import",
    "class {0}Error(ValueError):\n",
    "for {0} in self._{0}s:\n    if",
    "    @property\n    def {0}(self):",
    "self.{0} = {0}\nself.",
)
"""Beginnings of code, which is what the bundled model was trained on."""
CPU_ENGINE = EngineRecord(name="vllm", version="0.32.0", runner="v1", device="cpu", speculative_decoding=False)


def make_trace(
    output: Sequence[int] = (3, 1, 2),
    *,
    name: str = "s0",
    prompt: Sequence[int] = (5, 6),
    engine: EngineRecord = CPU_ENGINE,
    finish_reason: str | None = None,
    **sampling: Any,
) -> Trace:
    """A trace with seed 7 at temperature 1 unless `sampling` says otherwise."""
    return Trace(
        id=name,
        model="m",
        prompt_token_ids=np.array(prompt, dtype=np.int32),
        output_token_ids=np.array(output, dtype=np.int32),
        sampling=Sampling(**{"seed": 7, **sampling}),
        engine=engine,
        finish_reason=finish_reason,
    )


def code_prompts(names: Sequence[str] = CODE_NAMES) -> list[str]:
    """Every beginning with every name."""
    return [start.format(name) for name in names for start in CODE_STARTS]


def whole_rows(trace: Trace, logits_TV: np.ndarray) -> Evidence:
    """Evidence that lists every token of every row: nothing is left to a listing's choices."""
    tokens, vocab = logits_TV.shape
    logits_TV = logits_TV.astype(np.float32)
    claimed = trace.output_token_ids[:tokens]
    own = np.take_along_axis(logits_TV, claimed[:, None].astype(np.int64), axis=1)
    return Evidence(
        trace_id=trace.id,
        trace_digest=trace.digest(),
        vocab_size=vocab,
        temperature=1.0 if trace.sampling.greedy else trace.sampling.temperature,
        offsets_T1=np.arange(tokens + 1, dtype=np.int64) * vocab,
        ids_N=np.tile(np.arange(vocab, dtype=np.int32), tokens),
        logits_N=logits_TV.reshape(-1),
        lse_T=np.asarray(logsumexp(logits_TV.astype(np.float64), axis=1)),
        rank_T=(logits_TV > own).sum(axis=1).astype(np.int32),
        floor_T=np.full(tokens, -np.inf, dtype=np.float32),
        tail_T=np.zeros(tokens),
        hot_tail_T=np.zeros(tokens),
    )


def contenders(
    rows: Sequence[Sequence[float]],
    edges: Sequence[Sequence[float]],
    claimed: Sequence[int],
    noise: Sequence[Sequence[float]] | None = None,
) -> Contenders:
    """Contenders of each row from perturbed scores z, edge distances m and noise T g (default 0, as for greedy);
    `claimed` is an index into each row."""
    marks = [np.arange(len(z)) == c for z, c in zip(rows, claimed, strict=True)]
    return Contenders(
        rows_M=np.repeat(np.arange(len(rows), dtype=np.int32), [len(z) for z in rows]),
        scores_M=_relative(rows, claimed),
        edges_M=np.concatenate([np.asarray(m, dtype=float) for m in edges]).astype(np.float32),
        noise_M=np.zeros(sum(map(len, rows)), dtype=np.float32) if noise is None else _relative(noise, claimed),
        claimed_M=np.concatenate(marks),
    )


def _relative(rows: Sequence[Sequence[float]], claimed: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.subtract(row, row[c]) for row, c in zip(rows, claimed, strict=True)]).astype(np.float32)


def scores_of(found: Contenders, tokens: int, *, logprob: float = -3.0, inverse_cdf: bool = False) -> Scores:
    """Scores of `tokens` scored tokens with these contenders; margins and the like are left at 0."""
    return Scores(
        status_T=np.full(tokens, Status.SCORED, dtype=np.int8),
        gap_T=np.zeros(tokens),
        match_T=np.ones(tokens, dtype=bool),
        best_T=np.zeros(tokens, dtype=np.int32),
        rank_T=np.zeros(tokens, dtype=np.int32),
        logprob_T=np.full(tokens, logprob),
        contenders=found,
        hashes=0,
        inverse_cdf=inverse_cdf,
    )
