"""The short ways through long listings, against the plain ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import make_trace, whole_rows
from veridifr import scoring_table
from veridifr.contracts.common import by_row
from veridifr.contracts.registry import CONTRACTS
from veridifr.errors import EvidenceError
from veridifr.evidence import claimed_index
from veridifr.rng.exponentials import scratch
from veridifr.scores import Hypothesis
from veridifr.scoring_table import above, largest_by_row, table_of

TOKENS, VOCAB = 6, 4000


@settings(max_examples=200)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5), step=st.integers(-3, 3))
def test_float32_against_a_float64_threshold(values: list[float], step: int) -> None:
    single = np.array(values, dtype=np.float32)
    least = single.astype(np.float64)
    for _ in range(abs(step)):  # thresholds beside the values themselves, by steps that float32 cannot hold
        least = np.nextafter(least, np.sign(step) * np.inf)
    got = above(single, least, np.ones(len(least), dtype=np.int64))
    assert got.tolist() == (single.astype(np.float64) > least).tolist()


@pytest.mark.parametrize("pairs", [0, 3, 40, 4000])
def test_values_by_row_are_those_looked_up(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    values = rng.integers(0, 2**32, 9, dtype=np.uint32)
    rows = np.sort(rng.choice([0, 2, 3, 7], pairs))  # some rows have none, the first and the last as well
    got = by_row(values, rows)
    assert got.dtype == values.dtype
    assert got.tolist() == values[rows].tolist()


def test_the_largest_of_rows_some_of_which_are_empty() -> None:
    values = np.array([3.0, 5.0, -1.0, 2.0])
    assert largest_by_row(values, np.array([0, 0, 2, 3])).tolist() == [-np.inf, 5.0, -1.0, 2.0]
    assert largest_by_row(values, np.array([0, 1, 4, 4])).tolist() == [3.0, 5.0, -np.inf, -np.inf]
    assert largest_by_row(values[:0], np.array([0, 0])).tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("heat", [0.02, 0.7, 1.5])
def test_log_probabilities_equal_those_in_float64(heat: float) -> None:
    rng = np.random.default_rng(8)
    logits = (rng.normal(size=(TOKENS, VOCAB)) * [[0.1], [0.5], [1], [2], [3], [6]] + 7).astype(np.float32)
    trace = make_trace(rng.integers(0, VOCAB, TOKENS), temperature=heat)
    hypothesis = Hypothesis(contract=CONTRACTS["vllm-v2-e"], sampling=trace.sampling, seed=1)
    table = table_of(trace, whole_rows(trace, logits), hypothesis, ())
    scaled = logits.astype(np.float64) / heat
    exact = scaled[np.arange(TOKENS), trace.output_token_ids] - np.logaddexp.reduce(scaled, axis=1)
    np.testing.assert_allclose(table.logprob_T, exact, rtol=0, atol=3e-6)
    peaked = slice(3, None) if heat < 1 else slice(4, None)  # where little of the sum is in float32
    np.testing.assert_allclose(table.logprob_T[peaked], exact[peaked], rtol=0, atol=1e-7)


def test_a_claimed_token_that_only_another_row_lists_is_missing() -> None:
    rng = np.random.default_rng(9)
    trace = make_trace([1, 2], temperature=1.0)
    whole = whole_rows(trace, rng.normal(size=(2, 4)).astype(np.float32))
    keep = np.array([0, 1, 2, 4, 5, 7])  # the first row lists 0, 1 and 2, the second 0, 1 and 3
    part = replace(
        whole, ids_N=whole.ids_N[keep], logits_N=whole.logits_N[keep], offsets_T1=np.array([0, 3, 6], dtype=np.int64)
    )
    assert claimed_index(part, np.array([2, 3], dtype=np.int32)).tolist() == [2, 5]
    for claimed in ([1, 2], [3, 1], [3, 2]):
        with pytest.raises(EvidenceError, match="a claimed token is not listed"):
            claimed_index(part, np.array(claimed, dtype=np.int32))


def rows_of_logits(heat: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[Any, ...]]:
    """Rows of 1 to 900 logits, some flat, some steep, and what the kernel gets of them."""
    rng = np.random.default_rng(5)
    offsets = np.cumsum([0, 1, 7, 900, 300, 20])
    logits = (rng.normal(size=offsets[-1]) * np.repeat([1.0, 0.1, 9.0, 2.0, 40.0], np.diff(offsets))).astype(np.float32)
    top = np.maximum.reduceat(logits, offsets[:-1])
    return logits, offsets, top, (np.float32(1.0 / heat), heat)


@pytest.mark.parametrize("heat", [0.05, 0.7, 1.5])
def test_sums_over_rows(heat: float) -> None:
    """Against a sum in float64, with numpy and with the kernel's arithmetic as Python runs it."""
    logits, offsets, top, heats = rows_of_logits(heat)
    exact = [np.exp((row.astype(float) - row.max()) / heat).sum() for row in np.split(logits, offsets[1:-1])]
    np.testing.assert_allclose(scoring_table._listed(logits, offsets, top, heat), exact, rtol=1e-7)
    found = np.empty(len(top))
    scoring_table._sum(logits, offsets, top, *heats, found, scratch(900))
    np.testing.assert_allclose(found, exact, rtol=1e-7)


COMPILED = """
import numpy as np
from veridifr import scoring_table
from veridifr.rng import compiled
from veridifr.rng.exponentials import scratch

compiled.enable()
logits, offsets = np.random.default_rng(0).normal(size=2000).astype(np.float32) * 6, np.array([0, 900, 2000])
top = np.maximum.reduceat(logits, offsets[:-1])
fast, found = compiled.function(scoring_table._sum, reassociate=True), np.empty(2)
assert fast is not None, "numba is part of the tests' environment"
fast(logits, offsets, top, np.float32(1 / 0.7), 0.7, found, scratch(1100))
np.testing.assert_allclose(found, scoring_table._listed(logits, offsets, top, 0.7), rtol=1e-7)
"""


def test_sums_over_rows_compiled() -> None:
    """In a process of its own, since numba must not be loaded before vLLM."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)
