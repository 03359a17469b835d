"""Scores against brute force over the whole vocabulary, from whole rows and from what a reference lists of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from makers import whole_rows
from scoring.oracle import Token, brute_force
from veridifr import scoring
from veridifr.contracts.registry import CONTRACTS
from veridifr.evidence import Evidence, claimed_index
from veridifr.references.listing import joined, list_candidates
from veridifr.references.rows import evidence_of
from veridifr.scores import NEAR, Hypothesis, Scores, Status
from veridifr.scoring import score
from veridifr.trace import EngineRecord, Sampling, Trace

VOCAB, TOKENS = 997, 40
GPU = EngineRecord(name="vllm", version="0.24.0", runner="v1", device="NVIDIA H200", speculative_decoding=False)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cool": {"temperature": 0.4},
    "cold": {"temperature": 0.02},
    "hot": {"temperature": 1.7},
    "top-k": {"top_k": 20},
    "top-k 1": {"top_k": 1},
    "top-p": {"top_p": 0.9},
    "narrow top-p": {"top_p": 0.05, "temperature": 0.8},
    "min-p": {"min_p": 0.05, "temperature": 1.2},
    "wide min-p": {"min_p": 0.001, "temperature": 1.5},
    "paper": {"top_k": 50, "top_p": 0.95},
    "all": {"top_k": 30, "top_p": 0.9, "min_p": 0.02, "temperature": 0.7},
}
CONTRACT_IDS = ("vllm-v1-cuda-exp32", "vllm-v2-c", "vllm-v2-e", "vllm-v2-f")


def rows_of_logits(rng: np.random.Generator) -> np.ndarray:
    """Peaked rows and flat ones, with ties: logits come rounded to 1/64 in every other row, as bfloat16 makes them."""
    scale = rng.choice([0.3, 1.0, 3.0, 8.0], size=(TOKENS, 1))
    logits = rng.normal(size=(TOKENS, VOCAB)) * scale + rng.gumbel(size=(TOKENS, VOCAB))
    logits[::2] = np.round(logits[::2] * 64) / 64
    return logits.astype(np.float32)


def claims(contract: Any, sampling: Sampling, logits_TV: np.ndarray, rng: np.random.Generator) -> Trace:
    """Honest tokens of slightly other logits, and every fourth one a random likely or unlikely token."""
    first = Trace(
        id="s", model="m", prompt_token_ids=[5, 6, 7], output_token_ids=[0] * TOKENS, sampling=sampling, engine=GPU
    )
    noisy = (logits_TV + rng.normal(scale=0.05, size=logits_TV.shape)).astype(np.float32)
    ids = np.array([token.best for token in brute_force(contract, first, noisy)])
    ranked = np.argsort(-logits_TV, axis=1)
    for step in range(0, TOKENS, 4):
        ids[step] = ranked[step, int(rng.integers(0, 60 if step % 8 else VOCAB))]
    return Trace(
        id="s",
        model="m",
        prompt_token_ids=[5, 6, 7],
        output_token_ids=ids.astype(np.int32),
        sampling=sampling,
        engine=GPU,
    )


def listed(trace: Trace, logits_TV: np.ndarray, list_bytes: int = 256) -> Evidence:
    logits = torch.from_numpy(logits_TV)
    parts = []
    for low in (0, 15, 30):
        block = logits[low : low + 15]
        claimed = torch.from_numpy(trace.output_token_ids[low : low + 15].astype(np.int64))
        parts.append(list_candidates(block, block, claimed, trace.sampling, tail_mass=1e-6, list_bytes=list_bytes))
    return evidence_of(trace, VOCAB, joined(parts, TOKENS)).validate()


def scored(trace: Trace, evidence: Evidence, contract: Any) -> Scores:
    return score(trace, evidence, Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed))


def agree(got: Scores, want: list[Token], reach_T: np.ndarray, tolerance: float) -> None:
    """Equal to brute force; a gap beyond `reach_T` is only known to be that large: rivals further off get no noise."""
    gaps = np.array([token.gap for token in want])
    np.testing.assert_allclose(np.minimum(got.gap_T, reach_T), np.minimum(gaps, reach_T), rtol=0, atol=tolerance)
    assert got.match_T.tolist() == [token.match for token in want]
    assert got.best_T.tolist() == [token.best for token in want]
    assert got.rank_T.tolist() == [token.rank for token in want]
    np.testing.assert_allclose(got.logprob_T, [token.logprob for token in want], rtol=0, atol=1e-5)
    assert (got.status_T == Status.SCORED).all()


def agree_where_listed(trace: Trace, logits_TV: np.ndarray, got: Scores, want: list[Token], evidence: Evidence) -> None:
    """As `agree`, for a listing that leaves tokens out.

    The distance to top-p's edge follows from the listed mass, which is good to 1e-6; for a claimed token that stands
    among unlisted ones it is a lower bound. Top-k's edge is known as far as the listing reaches beyond it.
    """
    sampling, reach_T = trace.sampling, np.full(TOKENS, NEAR)
    if sampling.top_k is not None:
        last_T = -np.sort(-logits_TV, axis=1)[:, sampling.top_k - 1]
        reach_T = np.minimum(reach_T, last_T - evidence.floor_T)
    tolerance = 1e-9
    if sampling.top_p is not None and sampling.top_k is None:
        tolerance = 1e-5
        unlisted = evidence.logits_N[claimed_index(evidence, trace.output_token_ids)] < evidence.floor_T
        gaps = np.array([token.gap for token in want])
        far = unlisted | (gaps < -NEAR)
        assert (got.gap_T[far] >= gaps[far] - 0.05).all()
        assert (got.gap_T[far] < -0.9 * NEAR).all()
        want = [
            replace(token, gap=float(gap) if skip else token.gap)
            for token, gap, skip in zip(want, got.gap_T, far, strict=True)
        ]
    agree(got, want, reach_T, tolerance)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("contract_id", CONTRACT_IDS)
def test_scores_equal_brute_force(contract_id: str, name: str) -> None:
    rng = np.random.default_rng(len(name) * 100 + len(contract_id))
    contract, sampling = CONTRACTS[contract_id], Sampling(seed=1234, **SETTINGS[name])
    logits_TV = rows_of_logits(rng)
    trace = claims(contract, sampling, logits_TV, rng)
    want = brute_force(contract, trace, logits_TV)
    assert 5 < sum(token.match for token in want) < TOKENS, "the case decides nothing"
    agree(scored(trace, whole_rows(trace, logits_TV), contract), want, np.full(TOKENS, NEAR), 1e-9)
    evidence = listed(trace, logits_TV)
    agree_where_listed(trace, logits_TV, scored(trace, evidence, contract), want, evidence)


def test_greedy_equals_brute_force() -> None:
    rng = np.random.default_rng(3)
    contract, sampling = CONTRACTS["greedy"], Sampling(temperature=0.0)
    logits_TV = rows_of_logits(rng)
    trace = claims(contract, sampling, logits_TV, rng)
    want = brute_force(contract, trace, logits_TV)
    agree(scored(trace, listed(trace, logits_TV), contract), want, np.full(TOKENS, NEAR), 1e-9)


@pytest.mark.parametrize("name", ["plain", "paper", "min-p"])
def test_blocks_and_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    contract, sampling = CONTRACTS["vllm-v2-e"], Sampling(seed=5, **SETTINGS[name])
    logits_TV = rows_of_logits(rng)
    trace = claims(contract, sampling, logits_TV, rng)
    evidence = listed(trace, logits_TV)
    whole = scored(trace, evidence, contract)
    for block, threads in ((300, 1), (300, 3), (1, 2)):
        monkeypatch.setattr(scoring, "_BLOCK", block)
        monkeypatch.setattr(scoring, "_BLOCK_ALONE", block)
        monkeypatch.setattr(scoring, "_THREADS", threads)
        parts = scored(trace, evidence, contract)
        assert len(scoring._blocks(evidence.offsets_T1, block)) > 5
        for field in ("status_T", "gap_T", "match_T", "best_T", "rank_T", "logprob_T"):
            np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field), err_msg=field)
        for field in ("rows_M", "scores_M", "edges_M", "claimed_M"):
            np.testing.assert_array_equal(getattr(parts.contenders, field), getattr(whole.contenders, field), field)
        assert parts.hashes == whole.hashes


def test_a_hypothesis_hotter_than_the_listing_is_a_bound() -> None:
    rng = np.random.default_rng(5)
    contract = CONTRACTS["vllm-v2-e"]
    logits_TV = rows_of_logits(rng) * 4
    trace = claims(contract, Sampling(seed=5, temperature=0.5), logits_TV, rng)
    evidence = listed(trace, logits_TV)
    hotter = Hypothesis(contract=contract, sampling=Sampling(seed=5, temperature=3.0), seed=5)
    got = score(trace, evidence, hotter)
    short = np.diff(evidence.offsets_T1) < VOCAB
    assert short.any()
    assert (got.status_T[short] == Status.BOUND).all()
