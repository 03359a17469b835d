"""Tokens that transformers drew on an H200, re-derived on a CPU: the CUDA layout of a whole batch's fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from veridifr.contracts.registry import infer
from veridifr.demo import model_path
from veridifr.references import load
from veridifr.scores import Hypothesis
from veridifr.scoring import score
from veridifr.trace import Trace
from veridifr.traces import read_traces

TRACES = Path(__file__).parents[1] / "data" / "hf_cuda_tokens.jsonl"


@pytest.fixture(scope="module")
def matches() -> dict[str, float]:
    reference = load(f"hf:{model_path()}")
    traces = {trace.id: trace for trace in read_traces(TRACES)}
    found = {}
    for evidence in reference.evidence(list(traces.values())):
        found[evidence.trace_id] = _match(traces[evidence.trace_id], evidence, reference.vocab_size)
    return found


def _match(trace: Trace, evidence, vocab_size: int) -> float:
    contract = infer(trace.engine, trace.sampling, vocab_size).contract
    assert contract.id == "hf-multinomial"
    claim = Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed)
    return float(np.mean(score(trace, evidence, claim).match_T))


def test_tokens_of_every_batch_size_are_those_of_the_contract(matches: dict[str, float]) -> None:
    assert len(matches) == 6
    assert min(matches.values()) >= 0.95, matches


def test_rows_beyond_one_pass_of_the_grid_are_among_them(matches: dict[str, float]) -> None:
    beyond = [trace for trace in read_traces(TRACES) if trace.engine.batch_row == 39]
    assert beyond, "row 39 of 40 at a vocabulary of 8192 starts at element 319488, beyond 270336"
    assert min(matches[trace.id] for trace in beyond) >= 0.95
