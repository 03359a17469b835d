"""Noise that engines really made: rows of an H200, vLLM's Triton kernels, and values of engines.md as known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from veridifr.contracts import CONTRACTS, Stream
from veridifr.contracts.cuda import exponential, exponential_of
from veridifr.contracts.vllm_v2 import triton_uniform
from veridifr.rng import philox4x32
from veridifr.trace import EngineRecord

from . import oracles

DATA = Path(__file__).parents[1] / "data"
H200 = EngineRecord(name="vllm", device="NVIDIA H200", multiprocessors=132, threads_per_multiprocessor=2048)
V2 = json.loads((DATA / "golden_v2.json").read_text(encoding="utf-8"))["vectors"]


def cuda_rows() -> list[str]:
    with np.load(DATA / "cuda_exponential_h200.npz", allow_pickle=False) as file:
        return sorted(key.removesuffix("/val") for key in file if key.endswith("/val"))


@pytest.mark.parametrize("row", cuda_rows())
def test_rows_of_an_h200(row: str) -> None:
    vocab, seed, draw = (int(part) for part in row.split("/"))
    with np.load(DATA / "cuda_exponential_h200.npz", allow_pickle=False) as file:
        ids, expected = file[f"{vocab}/idx"], file[f"{row}/val"].astype(np.float64)
    stream = Stream(seed=seed, prompt_length=3, vocab_size=vocab, engine=H200)
    rows = np.zeros(len(ids), dtype=np.int64)
    got = CONTRACTS["vllm-v1-cuda-exp32"].noise(stream, np.array([draw]), rows, ids)
    large = expected >= 0.01005
    np.testing.assert_allclose(got[large], expected[large], rtol=1e-5, atol=0)
    np.testing.assert_allclose(got[~large], expected[~large], rtol=0, atol=6e-8)
    small = expected < 2.0**-10
    np.testing.assert_allclose(got[small], expected[small], rtol=1e-6, atol=0)


def test_the_h200_file_holds_exponentials_near_zero() -> None:
    """Where the card's logarithm falls short of the exact one by 6e-4 of it."""
    with np.load(DATA / "cuda_exponential_h200.npz", allow_pickle=False) as file:
        values = np.concatenate([file[f"{row}/val"] for row in cuda_rows()])
    assert (values < 2.0**-10).sum() == 2
    assert values.min() < 1e-4


def test_the_smallest_exponentials_keep_their_order() -> None:
    """Words near 2^32, whose uniforms are 1 - k 2^-24: each step of k is larger, and the cap is below all."""
    words = ((2**32 - np.arange(1, 200) * 256) % 2**32).astype(np.uint32)
    q = exponential_of(words)
    assert (np.diff(q) > 0).all()
    assert q[0] == 2.0**-24
    np.testing.assert_allclose(q[1:], (np.arange(2, 200) - 0.795) * 2.0**-24, rtol=1e-4)


def test_the_h200_file_reaches_beyond_the_grid() -> None:
    assert {int(row.split("/")[0]) for row in cuda_rows()} >= {128256, 300000, 1081345}


@pytest.mark.parametrize("element", [0, 270335, 270336, 540672, 1081343, 1081344])
def test_beyond_the_grid_equals_the_oracle(element: int) -> None:
    got = exponential(42, np.array([0, 1, 5]), np.full(3, element), 1081345, 270336)
    expected = [oracles.cuda_exponential(42, fill, element, 1081345) for fill in (0, 1, 5)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_curand_uniforms_of_seed_42() -> None:
    # torch.rand(5, device="cuda") after manual_seed(42)
    words = philox4x32((0, 0, np.arange(5), 0), (42, 0))[0]
    np.testing.assert_allclose(words * 2.0**-32, [0.6130, 0.0101, 0.3984, 0.0403, 0.1563], atol=5e-5)


def test_the_cap_of_the_cuda_transform() -> None:
    # Words 4294967123 and 4294966977 of seed 0, found by search: their uniforms round to 1 - 2^-24.
    got = exponential(0, np.zeros(3, dtype=np.int64), np.array([1205178, 5580154, 5580155]), 2**24, 2**24)
    assert got[:2].tolist() == [2.0**-24, 2.0**-24]
    assert got[2] > 1e-3


def test_a_small_uniform_of_the_cuda_transform() -> None:
    # Word 94 of seed 0, found by search: u = (94 + 1/2) 2^-32, and half a step is 0.5 % of it.
    got = exponential(0, np.zeros(1, dtype=np.int64), np.array([40657998]), 2**26, 2**26)
    assert got[0] == pytest.approx(-np.log(94.5 * 2.0**-32), rel=1e-9)


@pytest.mark.parametrize("vector", V2, ids=lambda v: f"{v['contract']}/{v['seed']}/{v['position']}")
def test_vllms_own_triton_kernels(vector: dict[str, object]) -> None:
    """Absolute error below 3e-6, where the kernel computes in float32; 1e-12 for the float64 one."""
    assert isinstance(vector["seed"], int) and isinstance(vector["position"], int)
    ids = np.array(vector["ids"])
    stream = Stream(seed=vector["seed"], prompt_length=vector["position"] + 1, vocab_size=128256, engine=H200)
    rows = np.zeros(len(ids), dtype=np.int64)
    got = CONTRACTS[str(vector["contract"])].noise(stream, np.array([0]), rows, ids)
    tolerance = 1e-12 if vector["contract"] == "vllm-v2-c" else 3e-6
    np.testing.assert_allclose(got, np.array(vector["values"]), rtol=0, atol=tolerance)


def test_every_v2_contract_has_vectors() -> None:
    assert {vector["contract"] for vector in V2} == {name for name in CONTRACTS if name.startswith("vllm-v2-")}


def test_triton_words_and_uniforms() -> None:
    # Triton 3.9: randint(42, 7), then four raw words and uniforms.
    key = philox4x32((7, 0, 0, 0), (42, 0))[0]
    assert int(key[0]) == 0x5BBD83B1
    words = philox4x32((np.arange(4), 0, 0, 0), (np.repeat(key, 4), 0))[0]
    assert [int(word) for word in words] == [0x1565866D, 0xBDB441E2, 0xC7754B05, 0x40966A93]
    np.testing.assert_allclose(triton_uniform(words), [0.16716078, 0.5179364, 0.44173297, 0.5045903], rtol=1e-7)


def noise_of(name: str, step: int, ids: list[int], vocab: int = 4096) -> list[float]:
    stream = Stream(seed=42, prompt_length=1, vocab_size=vocab, engine=EngineRecord(name="vllm"))
    return CONTRACTS[name].noise(stream, np.array([step]), np.zeros(len(ids), dtype=np.int64), np.array(ids)).tolist()


def test_known_answers_of_the_cpu_samplers() -> None:
    expected = [0.05991402, 0.06497613, 0.13191678]
    np.testing.assert_allclose(noise_of("vllm-cpu-exp32", 0, [0, 1, 2]), expected, rtol=1e-6)
    bits = (0x1FFBB167F90A3F, 0x1632088EDD77D0, 0x1CE99F233D559D, 0x177F183D33A9F6)
    expected = [float(-np.log(-np.log((b + 0.5) * 2.0**-53))) for b in bits]
    np.testing.assert_allclose(noise_of("vllm-cpu-gumbel-splitmix", 0, [0, 1, 2, 3]), expected, rtol=1e-14)


def test_known_answers_of_v1_on_cuda() -> None:
    first = [0.48945582, 4.5993032, 0.9202644, 3.2111955]
    second = [0.0123574, 2.048721, 0.5760681, 0.64988077]
    np.testing.assert_allclose(noise_of("vllm-v1-cuda-exp32", 0, [0, 1, 2, 3]), first, rtol=1e-5)
    np.testing.assert_allclose(noise_of("vllm-v1-cuda-exp32", 1, [0, 1, 2, 3]), second, rtol=1e-5)
