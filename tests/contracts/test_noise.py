"""The noise of every contract against a slow oracle, and what must hold for all of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veridifr.contracts import CONTRACTS, Stream
from veridifr.contracts.sglang import murmur_gumbel
from veridifr.contracts.vllm_v2 import VllmV2A, VllmV2B, VllmV2D, VllmV2E, log1p_negative
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord

from . import oracles

VOCAB = 300
PROMPT = 11
NOISY = sorted(set(CONTRACTS) - {"greedy"})
PERTURBED = sorted(name for name in NOISY if CONTRACTS[name].family == "perturbed")
ENGINE = EngineRecord(
    name="any", device="cpu", multiprocessors=132, threads_per_multiprocessor=2048, batch_row=1, batch_size=3
)
SEEDS = (0, 42, 2**32 + 42, 2**63 - 1, -7)


def stream(seed: int, vocab_size: int = VOCAB, engine: EngineRecord = ENGINE) -> Stream:
    return Stream(seed=seed, prompt_length=PROMPT, vocab_size=vocab_size, engine=engine)


def oracle_of(name: str, seed: int, steps: int) -> Callable[[int, int], float]:
    """The scalar formula of a contract as a function of step and token."""
    words = oracles.twister_words(seed, 2 * VOCAB * 3 * steps)
    position = PROMPT - 1
    if name.startswith("vllm-v2-"):
        return lambda t, i: oracles.v2(name[-1], seed, position + t, i)
    table: dict[str, Callable[[int, int], float]] = {
        "vllm-v1-cuda-exp32": lambda t, i: oracles.cuda_exponential(seed, t, i, VOCAB),
        "vllm-cpu-exp32": lambda t, i: oracles.cpu_exponential(words, t * VOCAB + i),
        "vllm-cpu-gumbel-splitmix": lambda t, i: oracles.cpu_splitmix(words, t, i),
        "sglang-murmur": lambda t, i: oracles.sglang_murmur(seed, position + t, i),
        "sglang-lcg24": lambda t, i: oracles.sglang_lcg24(seed, position + t, i),
        "hf-multinomial": lambda t, i: oracles.cpu_exponential(words, t * 3 * VOCAB + VOCAB + i),
        "llama-cpp-dist": lambda t, i: oracles.llama_uniform(words, t),
    }
    return table[name]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NOISY)
def test_noise_equals_the_oracle(name: str, seed: int) -> None:
    steps = np.array([0, 1, 4])
    rows = np.array([0, 0, 1, 2, 2])
    ids = np.array([0, 299, 7, 255, 256])
    got = CONTRACTS[name].noise(stream(seed), steps, rows, ids)
    formula = oracle_of(name, seed, 5)
    if CONTRACTS[name].family == "inverse_cdf":
        expected = [formula(int(t), 0) for t in steps]
    else:
        expected = [formula(int(steps[r]), int(i)) for r, i in zip(rows, ids, strict=True)]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PERTURBED)
@settings(max_examples=15)
@given(data=st.data())
def test_noise_of_some_tokens_is_that_of_the_whole_row(name: str, data: st.DataObject) -> None:
    steps = np.array(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)))  # in any order, even repeated
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    pairs = sorted(data.draw(st.sets(st.tuples(st.integers(0, len(steps) - 1), st.integers(0, VOCAB - 1)), max_size=9)))
    rows, ids = (np.array([p[axis] for p in pairs], dtype=np.int64) for axis in (0, 1))
    contract = CONTRACTS[name]
    every = np.arange(len(steps))
    whole = contract.noise(stream(seed), steps, np.repeat(every, VOCAB), np.tile(np.arange(VOCAB), len(steps)))
    some = contract.noise(stream(seed), steps, rows, ids)
    np.testing.assert_array_equal(some, whole.reshape(len(steps), VOCAB)[rows, ids])


@pytest.mark.parametrize("name", PERTURBED)
def test_an_honest_token_has_margin_zero(name: str) -> None:
    contract = CONTRACTS[name]
    rows, ids = np.repeat(np.arange(6), VOCAB), np.tile(np.arange(VOCAB), 6)
    logits = np.random.default_rng(5).normal(size=(6, VOCAB)) * 3
    noise = contract.noise(stream(9), np.arange(6), rows, ids).reshape(6, VOCAB)
    gumbel = contract.gumbel(stream(9), np.arange(6), rows, ids).reshape(6, VOCAB)
    if contract.kind == "exponential":  # the engine's own rule: an exponential race over probabilities
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        drawn = np.argmax(weights / weights.sum(axis=1, keepdims=True) / noise, axis=1)
    else:
        drawn = np.argmax(logits + noise, axis=1)
    scores = logits + gumbel
    margin = scores.max(axis=1) - scores[np.arange(6), drawn]
    assert margin.tolist() == [0.0] * 6
    assert len(set(drawn.tolist())) > 1


@pytest.mark.parametrize("name", PERTURBED)
def test_noise_is_gumbel_distributed(name: str) -> None:
    """The mean and variance of 30000 values, within six standard errors of the Gumbel distribution's."""
    count = 30_000
    steps, ids = np.arange(10), np.tile(np.arange(count // 10), 10)
    gumbel = CONTRACTS[name].gumbel(stream(1, vocab_size=count // 10), steps, np.repeat(steps, count // 10), ids)
    variance = math.pi**2 / 6
    assert abs(gumbel.mean() - np.euler_gamma) < 6 * math.sqrt(variance / count)
    assert abs(gumbel.var() - variance) < 6 * math.sqrt(variance**2 * 4.4 / count)  # Gumbel kurtosis is 5.4


@pytest.mark.parametrize("name", PERTURBED)
def test_the_bound_holds(name: str) -> None:
    contract = CONTRACTS[name]
    ids = np.arange(200_000)
    gumbel = contract.gumbel(stream(3, vocab_size=200_000), np.array([0]), np.zeros_like(ids), ids)
    assert np.isfinite(gumbel).all()
    assert contract.bound is not None
    assert gumbel.max() <= contract.bound < 40


@pytest.mark.parametrize("letter", ["a", "b", "d", "e"])
def test_extreme_uniforms_stay_finite_and_reach_the_bound(letter: str) -> None:
    contract = {"a": VllmV2A(), "b": VllmV2B(), "d": VllmV2D(), "e": VllmV2E()}[letter]
    top = oracles.triton_rand(2**31 - 1)
    assert top == 1 - 2.0**-24
    ends = contract.transform(np.array([0.0, top], dtype=np.float32))
    assert np.isfinite(ends).all()
    assert ends.max() == pytest.approx(contract.bound, rel=1e-6)


def test_extreme_hashes_of_sglang() -> None:
    got = murmur_gumbel(np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint32))
    assert got[0] == pytest.approx(-math.log(sys.float_info.max))
    assert got[1] == pytest.approx(-math.log(32 * math.log(2)))
    assert got[2] == pytest.approx(-math.log(math.log(2)))
    assert got[3] == pytest.approx(32 * math.log(2))
    assert got[4] == 32 * math.log(2) == CONTRACTS["sglang-murmur"].bound


def test_v2f_approximates_the_logarithm() -> None:
    uniform = np.linspace(2.0**-33, 0.999, 10_001).astype(np.float32)
    exact = np.log1p(-uniform.astype(np.float64))
    np.testing.assert_allclose(log1p_negative(uniform), exact, rtol=3e-5, atol=1e-6)
    assert log1p_negative(np.array([1.0], dtype=np.float32))[0] == pytest.approx(-24 * math.log(2))


@pytest.mark.parametrize("name", [n for n in PERTURBED if n.startswith("vllm")])
def test_child_j_has_seed_plus_j(name: str) -> None:
    rows, ids = np.zeros(5, dtype=np.int64), np.arange(5)
    child = stream(40, engine=EngineRecord(name="vllm", child=2))
    got = CONTRACTS[name].noise(child, np.array([3]), rows, ids)
    np.testing.assert_array_equal(got, CONTRACTS[name].noise(stream(42), np.array([3]), rows, ids))


@pytest.mark.parametrize("name", ["vllm-cpu-exp32", "vllm-cpu-gumbel-splitmix", "hf-multinomial"])
def test_cpu_seeds_agree_modulo_two_to_the_32(name: str) -> None:
    rows, ids, steps = np.zeros(5, dtype=np.int64), np.arange(5), np.array([1])
    first, second = (CONTRACTS[name].noise(stream(seed), steps, rows, ids) for seed in (42, 42 + 2**32))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["vllm-v1-cuda-exp32", "vllm-v2-e", "vllm-v2-f", "sglang-murmur"])
def test_seeds_of_64_bits_differ_in_the_high_half(name: str) -> None:
    rows, ids, steps = np.zeros(5, dtype=np.int64), np.arange(5), np.array([1])
    first, second = (CONTRACTS[name].noise(stream(seed), steps, rows, ids) for seed in (42, 42 + 2**32))
    assert (first != second).all()


def test_the_cost_of_a_claimed_batch_is_bounded() -> None:
    engine = EngineRecord(name="hf", device="cpu", batch_row=65534, batch_size=65535)
    with pytest.raises(UnsupportedError, match=r"^engine.batch_size: would take \d+ words"):
        CONTRACTS["hf-multinomial"].noise(
            stream(1, vocab_size=128256, engine=engine), np.array([300]), np.array([0]), np.array([0])
        )


def test_greedy_draws_nothing() -> None:
    greedy = CONTRACTS["greedy"]
    assert greedy.noise(stream(1), np.array([0]), np.array([0, 0]), np.array([1, 2])).tolist() == [0.0, 0.0]
    with pytest.raises(UnsupportedError, match="greedy has no Gumbel noise"):
        greedy.gumbel(stream(1), np.array([0]), np.array([0]), np.array([1]))


def test_effective_temperature() -> None:
    assert CONTRACTS["vllm-v1-cuda-exp32"].effective_temperature(0.004) == 0.01
    assert CONTRACTS["vllm-v2-f"].effective_temperature(0.7) == 0.7
    assert CONTRACTS["sglang-murmur"].effective_temperature(0.004) == 0.004
