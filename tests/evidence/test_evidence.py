"""What `Evidence.validate` refuses, field by field: an evidence file may come from a stranger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veridifr.errors import EvidenceError
from veridifr.evidence import Evidence, claimed_index
from veridifr.trace import MAX_TOKEN_ID

GOOD = Evidence(
    trace_id="s0",
    trace_digest="d",
    vocab_size=8,
    temperature=0.5,
    offsets_T1=np.array([0, 3, 4, 6]),
    ids_N=np.array([0, 2, 7, 7, 1, 3], dtype=np.int32),
    logits_N=np.array([0.5, 1.5, -1.0, 2.0, 0.0, 1.0], dtype=np.float32),
    lse_T=np.array([2.0, 2.5, 1.5]),
    rank_T=np.array([0, 0, 7], dtype=np.int32),
    floor_T=np.array([-1.0, 2.0, -np.inf], dtype=np.float32),
    tail_T=np.array([0.1, 0.0, 1.0]),
    hot_tail_T=np.array([0.2, 0.0, 1.0]),
)


def changed(**fields: Any) -> Evidence:
    return replace(GOOD, **{k: np.asarray(v) if isinstance(v, list) else v for k, v in fields.items()})


def test_good_evidence_is_itself() -> None:
    assert GOOD.validate() is GOOD
    assert GOOD.tokens == 3
    assert GOOD.rows_N.tolist() == [0, 0, 0, 1, 2, 2]


def test_evidence_of_no_tokens_is_good() -> None:
    empty = {name: np.empty(0) for name in ("lse_T", "rank_T", "floor_T", "tail_T", "hot_tail_T", "ids_N", "logits_N")}
    assert replace(GOOD, offsets_T1=np.array([0]), **empty).validate().tokens == 0


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"temperature": 0.0}, "temperature: got 0.0, expected above 0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"temperature": 1e5}, "temperature: got 100000.0"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"vocab_size": 0}, "vocab_size: sizes are out of range"),
        ({"vocab_size": MAX_TOKEN_ID + 1}, "vocab_size: sizes are out of range"),
        ({"vocab_size": 7}, "ids: an id lies outside the vocabulary of 7"),
        ({"offsets_T1": [0, 3, 6]}, "offsets: array lengths do not agree"),
        ({"logits_N": [1.0, 2.0]}, "offsets: array lengths do not agree"),
        ({"offsets_T1": [0, 3, 3, 6]}, "offsets: every token must own at least one candidate"),
        ({"offsets_T1": [0, 4, 3, 6]}, "offsets: every token must own"),
        ({"offsets_T1": [1, 3, 4, 6]}, "offsets: every token must own"),
        ({"offsets_T1": [0, 3, 4, 5]}, "offsets: every token must own"),
        ({"offsets_T1": [0, 3, 4, 7]}, "offsets: every token must own"),
        ({"ids_N": [-1, 2, 7, 7, 1, 3]}, "ids: an id lies outside"),
        ({"ids_N": [0, 2, 8, 7, 1, 3]}, "ids: an id lies outside"),
        ({"ids_N": [2, 0, 7, 7, 1, 3]}, "ids: ids of a token must ascend"),
        ({"ids_N": [0, 7, 7, 7, 1, 3]}, "ids: ids of a token must ascend"),
        ({"logits_N": [0.5, 1.5, float("nan"), 2.0, 0.0, 1.0]}, "logits: a logit is not finite"),
        ({"logits_N": [0.5, 1.5, -np.inf, 2.0, 0.0, 1.0]}, "logits: a logit is not finite"),
        ({"lse_T": [2.0, np.inf, 1.5]}, "logits: a logit is not finite"),
        ({"floor_T": [np.nan, 2.0, 0.0]}, "floor: a floor is not a number"),
        ({"floor_T": [np.inf, 2.0, 0.0]}, "floor: a floor is not a number"),
        ({"tail_T": [-0.1, 0.0, 1.0]}, "tail_T: a probability lies outside 0 to 1"),
        ({"tail_T": [np.nan, 0.0, 1.0]}, "tail_T: a probability lies outside"),
        ({"hot_tail_T": [0.0, 0.0, 1.1]}, "hot_tail_T: a probability lies outside"),
        ({"rank_T": [0, 0, 8]}, "rank: a rank lies outside the vocabulary of 8"),
        ({"rank_T": [0, -1, 0]}, "rank: a rank lies outside"),
        ({"rank_T": [0, 0]}, "rank_T: got 2 values, expected 3"),
        ({"floor_T": [0.0]}, "floor_T: got 1 values, expected 3"),
        ({"tail_T": [0.0] * 4}, "tail_T: got 4 values, expected 3"),
        ({"hot_tail_T": [0.0]}, "hot_tail_T: got 1 values, expected 3"),
    ],
)
def test_each_field_is_refused_by_name(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(EvidenceError, match=f"evidence for sequence 's0': {match}"):
        changed(**fields).validate()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.3, [0.1, 0.0, 1.0]),
        (0.5, [0.1, 0.0, 1.0]),
        (0.51, [0.2, 0.0, 1.0]),
        (0.75, [0.2, 0.0, 1.0]),
        (0.76, [1.0, 1.0, 0.0]),  # nothing is known, but for the token that lists its whole row
    ],
)
def test_tail_at(temperature: float, expected: list[float]) -> None:
    assert GOOD.tail_at(temperature).tolist() == expected


def test_claimed_index() -> None:
    assert claimed_index(GOOD, np.array([2, 7, 1], dtype=np.int32)).tolist() == [1, 3, 4]
    for claimed in ([1, 7, 1], [2, 6, 1], [2, 7, 7]):  # between, before and after what is listed
        with pytest.raises(EvidenceError, match="ids: a claimed token is not listed"):
            claimed_index(GOOD, np.array(claimed, dtype=np.int32))
