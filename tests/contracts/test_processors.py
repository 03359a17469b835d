"""Masks, bias and penalties: hand-computed answers, a slow oracle, and the order of each engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.contracts import CONTRACTS
from veridifr.contracts.common import V1_ORDER
from veridifr.contracts.vllm_v2 import V2_ORDER
from veridifr.errors import UnsupportedError
from veridifr.processors import needs_processing, process
from veridifr.trace import Sampling, check_ids

VOCAB = 8
INF = math.inf


def run(sampling: Sampling, prompt: list[int], output: list[int], logits: Any, order: Any = V1_ORDER) -> Any:
    """Whole rows: logits[t][i] for every output step t, processed."""
    grid = np.asarray(logits)
    steps = np.arange(len(grid))
    rows, ids = np.repeat(steps, VOCAB), np.tile(np.arange(VOCAB), len(grid))
    prompt_ids, output_ids = check_ids("p", prompt), check_ids("o", output)
    return process(order, sampling, prompt_ids, output_ids, steps, rows, ids, grid.ravel(), (7,)).reshape(grid.shape)


def oracle(sampling: Sampling, prompt: list[int], output: list[int], logits: np.ndarray, order: Any) -> np.ndarray:
    """One token at a time."""
    result = np.empty_like(logits)
    for t in range(len(logits)):
        past = output[:t]
        for i in range(VOCAB):
            value = float(logits[t, i])
            for stage in order:
                if stage == "allowed_token_ids" and sampling.allowed_token_ids is not None:
                    value = value if i in sampling.allowed_token_ids else -INF
                elif stage == "bad_words":
                    for word in sampling.bad_words_token_ids:
                        start = t - len(word) + 1
                        if word[-1] == i and start >= 0 and past[start:] == list(word[:-1]):
                            value = -INF
                elif stage == "min_tokens" and sampling.min_tokens is not None:
                    value = -INF if t < sampling.min_tokens and i in (7, *sampling.stop_token_ids) else value
                elif stage == "logit_bias":
                    value += sampling.logit_bias.get(i, 0.0)
                elif stage == "repetition_penalty" and sampling.repetition_penalty and i in prompt + past:
                    value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
                elif stage == "frequency_penalty":
                    value -= (sampling.frequency_penalty or 0.0) * past.count(i)
                elif stage == "presence_penalty":
                    value -= (sampling.presence_penalty or 0.0) * (i in past)
            result[t, i] = value
    return result


def test_nothing_on_returns_the_input_itself() -> None:
    logits = np.zeros(3, dtype=np.float32)
    empty, pair = check_ids("x", []), np.zeros(3, dtype=np.int64)
    sampling = Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, stop_token_ids=(1,))
    assert not needs_processing(sampling)
    assert process(V1_ORDER, sampling, empty, empty, np.array([0]), pair, pair, logits, ()) is logits


@pytest.mark.parametrize(
    ("fields", "expected"),
    [  # prompt 1 2, output 3 3 5, at step 3, every logit 2 but token 4's, which is -2
        ({"repetition_penalty": 2.0}, [2, 1, 1, 1, -2, 1, 2, 2]),
        ({"frequency_penalty": 0.5}, [2, 2, 2, 1, -2, 1.5, 2, 2]),
        ({"presence_penalty": 0.5}, [2, 2, 2, 1.5, -2, 1.5, 2, 2]),
        ({"logit_bias": {4: 5.0, 0: -1.0}}, [1, 2, 2, 2, 3, 2, 2, 2]),
        ({"allowed_token_ids": (0, 4)}, [2, -INF, -INF, -INF, -2, -INF, -INF, -INF]),
        ({"bad_words_token_ids": ((3, 5, 6), (3, 4), (0,))}, [-INF, 2, 2, 2, -2, 2, -INF, 2]),
        ({"min_tokens": 4, "stop_token_ids": (0,)}, [-INF, 2, 2, 2, -2, 2, 2, -INF]),
        ({"min_tokens": 3, "stop_token_ids": (0,)}, [2, 2, 2, 2, -2, 2, 2, 2]),
        ({"repetition_penalty": 2.0, "frequency_penalty": 1.0, "presence_penalty": 1.0}, [2, 1, 1, -2, -2, -1, 2, 2]),
        ({"logit_bias": {4: 4.0, 1: -4.0}, "repetition_penalty": 2.0}, [2, -4, 1, 1, 2, 1, 2, 2]),
    ],
)
def test_known_answers(fields: dict[str, Any], expected: list[float]) -> None:
    logits = np.full((4, VOCAB), 2.0)
    logits[:, 4] = -2.0
    got = run(Sampling(seed=1, **fields), [1, 2], [3, 3, 5], logits)
    assert got[3].tolist() == expected


def test_the_input_is_not_changed_and_the_dtype_is_kept() -> None:
    logits = np.ones((2, VOCAB), dtype=np.float32)
    got = run(Sampling(frequency_penalty=0.5, repetition_penalty=1.1, logit_bias={1: 1.0}), [1], [2], logits)
    assert got.dtype == np.float32
    assert (logits == 1).all()


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.3, 2.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.25, 1.0]),
        "presence_penalty": st.sampled_from([-0.5, 0.25, 1.0]),
        "logit_bias": st.dictionaries(st.integers(0, 7), st.sampled_from([-3.0, 0.5, 2.0]), max_size=3),
        "allowed_token_ids": st.lists(st.integers(0, 9), min_size=1, max_size=6),
        "bad_words_token_ids": st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3),
        "min_tokens": st.integers(0, 5),
        "stop_token_ids": st.lists(st.integers(0, 7), max_size=2),
    },
)
IDS = st.lists(st.integers(0, 3), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    fields=SETTINGS,
    prompt=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    output=IDS,
    order=st.permutations(V1_ORDER),
)
def test_the_oracle_agrees_in_any_order(
    fields: dict[str, Any], prompt: list[int], output: list[int], order: Any
) -> None:
    sampling = Sampling(**fields)
    logits = np.random.default_rng(len(output)).normal(size=(len(output) + 1, VOCAB))
    got = run(sampling, prompt, output, logits, order)
    np.testing.assert_allclose(got, oracle(sampling, prompt, output, logits, order), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(fields=SETTINGS, prompt=st.lists(st.integers(0, 7), min_size=1, max_size=4), output=IDS)
def test_the_runners_orders_agree(fields: dict[str, Any], prompt: list[int], output: list[int]) -> None:
    """Why one greedy contract serves both of vLLM's runners."""
    logits = np.random.default_rng(1).normal(size=(len(output) + 1, VOCAB))
    first, second = (run(Sampling(**fields), prompt, output, logits, order) for order in (V1_ORDER, V2_ORDER))
    np.testing.assert_array_equal(first, second)


def test_some_pairs_are_those_of_the_whole_row() -> None:
    sampling = Sampling(repetition_penalty=1.5, frequency_penalty=0.3, bad_words_token_ids=((3, 1),), min_tokens=2)
    logits = np.random.default_rng(2).normal(size=(4, VOCAB))
    whole = run(sampling, [1, 2], [3, 3, 5], logits)
    steps, rows, ids = np.array([2, 0]), np.array([0, 0, 1]), np.array([3, 1, 7])
    values = np.array([logits[2, 3], logits[2, 1], logits[0, 7]])
    got = process(
        V1_ORDER, sampling, check_ids("p", [1, 2]), check_ids("o", [3, 3, 5]), steps, rows, ids, values, iter([7])
    )
    assert got.tolist() == [whole[2, 3], whole[2, 1], whole[0, 7]]
    assert got.tolist()[1:] == [-INF, -INF]


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        (
            "hf-multinomial",
            {"frequency_penalty": 0.5},
            "^sampling.frequency_penalty: the contract's engine has no such",
        ),
        ("sglang-murmur", {"repetition_penalty": 0.5}, "^sampling.repetition_penalty: "),
        ("llama-cpp-dist", {"bad_words_token_ids": ((1,),)}, "^sampling.bad_words_token_ids: "),
    ],
)
def test_a_setting_without_a_stage_is_refused(name: str, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        run(Sampling(**fields), [1], [], np.zeros((1, VOCAB)), CONTRACTS[name].order)
