"""`veridifr noise` and `veridifr samplers`, below the command line."""

from __future__ import annotations

import json

import pytest

from veridifr.contracts import CONTRACTS, REFUSED, noise_values, table
from veridifr.errors import TraceError, UnsupportedError


@pytest.mark.parametrize("name", sorted(set(CONTRACTS) - {"greedy"}))
def test_every_contract_prints_noise(name: str) -> None:
    result = noise_values(name, seed=42, position=7, step=7, vocab_size=4096, ids=[3, 0, 17, 3])
    assert result["contract"] == name
    assert result["kind"] == CONTRACTS[name].kind
    if result["kind"] == "uniform":
        assert len(result["values"]) == 1
    else:
        assert len(result["values"]) == 4
        assert result["values"][0] == result["values"][3]
        alone = noise_values(name, seed=42, position=7, step=7, vocab_size=4096, ids=[17])
        assert alone["values"] == [result["values"][2]]
    assert json.loads(json.dumps(result)) == result


def test_known_answers() -> None:
    first = noise_values("vllm-v1-cuda-exp32", seed=42, step=1, vocab_size=4096, ids=[0, 1, 2, 3])
    assert first["values"] == pytest.approx([0.0123574, 2.048721, 0.5760681, 0.64988077], rel=1e-5)
    second = noise_values("vllm-v2-d", seed=42, position=7, vocab_size=4096, ids=[0])
    assert second["values"] == pytest.approx([-0.58156], abs=1e-4)  # -log(-log 0.16716078)


def test_the_grid_is_passed_on() -> None:
    few, many = (
        noise_values(
            "vllm-v1-cuda-exp32",
            seed=1,
            step=0,
            vocab_size=128256,
            ids=[128255],
            multiprocessors=count,
            threads_per_multiprocessor=1536,
        )
        for count in (58, 142)
    )
    assert few["values"] != many["values"]


@pytest.mark.parametrize(
    ("name", "fields", "error", "match"),
    [
        ("vllm-v2-e", {"step": 3}, UnsupportedError, "^position: is needed: the noise of vllm-v2-e depends on it"),
        ("vllm-v1-cuda-exp32", {"position": 3}, UnsupportedError, "^step: is needed"),
        ("sglang-murmur", {"step": 3}, UnsupportedError, "^position: is needed"),
        ("greedy", {"step": 3}, UnsupportedError, "^sampler: greedy draws no noise"),
        ("vllm-cpu-bucketed", {"step": 3}, UnsupportedError, "vllm-cpu-bucketed is refused"),
        ("nonsense", {"step": 3}, UnsupportedError, "which is no contract"),
        ("vllm-v1-cuda-exp32", {"step": 3, "vocab_size": 50000}, UnsupportedError, "^engine.multiprocessors: "),
        ("vllm-v1-cuda-exp32", {"step": -1}, TraceError, "^step: got -1"),
        ("vllm-v2-f", {"position": 2**31}, TraceError, "^position: got"),
        ("vllm-v2-f", {"position": 1, "ids": [4096]}, TraceError, "^ids: got 4096, expected below vocab_size 4096"),
        ("vllm-v2-f", {"position": 1, "ids": [-1]}, TraceError, r"^ids\[0\]: got -1"),
        ("vllm-v2-f", {"position": 1, "ids": []}, TraceError, "^ids: got none"),
        ("vllm-v2-f", {"position": 1, "seed": 2**64}, TraceError, "^sampling.seed: got"),
        ("vllm-v2-f", {"position": 1, "seed": -1}, UnsupportedError, "^sampling.seed: -1 means"),
        ("vllm-v2-f", {"position": 1, "vocab_size": 0}, TraceError, "^vocab_size: got 0"),
    ],
)
def test_refusals(name: str, fields: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        noise_values(name, **{"seed": 42, "vocab_size": 4096, "ids": [0], **fields})  # type: ignore[arg-type]


def test_the_table_has_every_contract() -> None:
    rows = {row["id"]: row for row in table()}
    assert set(rows) == set(CONTRACTS) | set(REFUSED)
    assert rows["vllm-v2-e"]["kind"] == "gumbel"
    assert rows["vllm-v1-cuda-exp32"]["needs"] == "step"
    assert rows["llama-cpp-dist"]["order"] == ["logit_bias", "top_k", "top_p", "min_p", "temperature"]
    assert rows["vllm-cpu-bucketed"]["status"] == "refused"
    assert all("\n" not in row["summary"] and row["summary"] for row in rows.values())
    assert json.loads(json.dumps(table())) == table()
