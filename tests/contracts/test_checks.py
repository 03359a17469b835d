"""What contracts refuse: each refusal names the setting or the field of the record."""

from __future__ import annotations

from typing import Any

import pytest

from veridifr.contracts import CONTRACTS
from veridifr.contracts.common import HARMLESS_EXTRA
from veridifr.contracts.cuda import SMALLEST_GRID
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

FULL: dict[str, Any] = {
    "device": "cpu",
    "multiprocessors": 132,
    "threads_per_multiprocessor": 2048,
    "filtered_batch": False,
    "batch_row": 0,
    "batch_size": 1,
}
NAMES = {"vllm": "vllm", "sglang": "sglang", "hf": "hf", "llama": "llama.cpp"}
NOISY = sorted(set(CONTRACTS) - {"greedy"})
VLLM = [name for name in NOISY if name.startswith("vllm")]
SGLANG = [name for name in NOISY if name.startswith("sglang")]


def check(name: str, *, vocab_size: int = 8192, engine: dict[str, Any] | None = None, **sampling: Any) -> None:
    needed: dict[str, Any] = {"seed": 1}
    if name == "llama-cpp-dist":
        needed["top_k"] = 40
    record = EngineRecord(**{"name": NAMES[name.split("-")[0]], **FULL, **(engine or {})})
    CONTRACTS[name].check(Sampling(**{**needed, **sampling}), record, vocab_size)


@pytest.mark.parametrize("name", NOISY)
def test_a_plain_request_passes(name: str) -> None:
    check(name)
    check(name, temperature=0.7, logit_bias={3: 1.0})
    check(name, extra=dict.fromkeys(HARMLESS_EXTRA - {"n"}, 1) | {"n": 1, "truncated": None})


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"seed": None}, r"^sampling.seed: is needed"),
        ({"seed": 2**64 - 1}, r"^sampling.seed: got 18446744073709551615, and the engine takes"),
        ({"temperature": 0.0}, r"^sampling.temperature: 0 is greedy"),
        ({"temperature": 5e-6}, r"^sampling.temperature: 5e-06 is greedy"),
        ({"extra": {"typical_p": 0.5}}, r"^sampling.typical_p: is not a setting this version knows"),
        ({"extra": {"structured_outputs": {}}}, r"^sampling.structured_outputs: "),
        ({"extra": {"n": 2}}, r"^engine.child: is needed"),
        ({"logit_bias": {8192: 1.0}}, r"^sampling.logit_bias: token id 8192 is outside the vocabulary of 8192"),
        ({"engine": {"speculative_decoding": True}}, r"^engine.speculative_decoding: "),
        ({"engine": {"fp64_noise": True}}, r"^engine.fp64_noise: "),
    ],
)
def test_refused_by_all(name: str, fields: dict[str, Any], match: str) -> None:
    if fields.get("seed") == 2**64 - 1 and CONTRACTS[name].seeds[1] == 2**64 - 1:  # type: ignore[attr-defined]
        check(name, **fields)
        return
    with pytest.raises(UnsupportedError, match=match):
        check(name, **fields)


@pytest.mark.parametrize("name", VLLM)
def test_vllm_takes_minus_one_for_no_seed(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"^sampling.seed: -1 means 'no seed'"):
        check(name, seed=-1)
    check(name, seed=-2)


@pytest.mark.parametrize("name", VLLM)
def test_vllm_honours_filters_and_penalties(name: str) -> None:
    check(name, top_k=50, top_p=0.9, min_p=0.1, repetition_penalty=1.2, frequency_penalty=0.1, presence_penalty=0.1)
    check(name, allowed_token_ids=(1, 2), engine={"child": 1}, extra={"n": 2})


@pytest.mark.parametrize("name", ["vllm-v2-a", "vllm-v2-b", "vllm-v2-c", "vllm-v2-d"])
def test_early_v2_runners_mask_one_token_too_many(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"^sampling.min_tokens: vLLM's V2 runner before 0.24"):
        check(name, min_tokens=3)
    check("vllm-v2-e", min_tokens=3)


def test_the_first_v2_runner_has_no_bad_words() -> None:
    with pytest.raises(UnsupportedError, match=r"^sampling.bad_words_token_ids: "):
        check("vllm-v2-a", bad_words_token_ids=((1, 2),))
    check("vllm-v2-b", bad_words_token_ids=((1, 2),))


NO_GRID = {"multiprocessors": None, "threads_per_multiprocessor": None}


def test_the_grid_is_needed_where_it_decides_the_noise() -> None:
    check("vllm-v1-cuda-exp32", vocab_size=SMALLEST_GRID, engine=NO_GRID)
    with pytest.raises(UnsupportedError, match=r"^engine.multiprocessors: is needed for 40961 numbers"):
        check("vllm-v1-cuda-exp32", vocab_size=SMALLEST_GRID + 1, engine=NO_GRID)
    few = {"multiprocessors": 40, "threads_per_multiprocessor": None}
    check("vllm-v1-cuda-exp32", vocab_size=40960, engine=few)
    with pytest.raises(UnsupportedError, match=r"^engine.threads_per_multiprocessor: is needed"):
        check("vllm-v1-cuda-exp32", vocab_size=40961, engine=few)
    with pytest.raises(UnsupportedError, match=r"^engine.threads_per_multiprocessor: is below 256"):
        check("vllm-v1-cuda-exp32", engine={"threads_per_multiprocessor": 128})
    check("vllm-v1-cuda-exp32", vocab_size=300_000)


@pytest.mark.parametrize("name", SGLANG)
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"top_k": 50}, r"^sampling.top_k: makes SGLang key the noise by rank"),
        ({"top_p": 0.9}, r"^sampling.top_p: makes SGLang"),
        ({"min_p": 0.1}, r"^sampling.min_p: makes SGLang"),
        ({"repetition_penalty": 1.1}, r"^sampling.repetition_penalty: "),
        ({"min_tokens": 2}, r"^sampling.min_tokens: "),
        ({"engine": {"filtered_batch": None}}, r"^engine.filtered_batch: must be stated as false"),
        ({"engine": {"filtered_batch": True}}, r"^engine.filtered_batch: is true"),
        ({"engine": {"deterministic": False}}, r"^engine.deterministic: is false"),
        ({"engine": {"child": 1}}, r"^engine.child: got 1"),
    ],
)
def test_sglang_refuses(name: str, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        check(name, **fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"frequency_penalty": 0.1}, r"^sampling.frequency_penalty: transformers has no"),
        ({"presence_penalty": 0.1}, r"^sampling.presence_penalty: transformers has no"),
        ({"allowed_token_ids": (1,)}, r"^sampling.allowed_token_ids: transformers has no"),
        ({"bad_words_token_ids": ((1,),)}, r"^sampling.bad_words_token_ids: "),
        ({"engine": {"batch_row": None}}, r"^engine.batch_row: is needed"),
        ({"engine": {"batch_size": None}}, r"^engine.batch_size: is needed"),
        ({"engine": {"device": None}}, r"^engine.device: is needed"),
        ({"engine": {"device": "mps"}}, r"^engine.device: got 'mps'"),
        ({"engine": {"device": "cuda", "batch_size": 9, **NO_GRID}}, r"^engine.multiprocessors: is needed for 73728"),
        ({"vocab_size": 2**20, "engine": {"device": "cuda", "batch_size": 2048}}, r"^engine.batch_size: 2147483648"),
        ({"engine": {"child": 1}}, r"^engine.child: got 1"),
    ],
)
def test_hf_refuses(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        check("hf-multinomial", **fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"top_k": None}, r"^sampling.top_k: must be on"),
        ({"seed": 2**32 - 1}, r"^sampling.seed: 4294967295 means 'a random seed'"),
        ({"seed": -1}, r"^sampling.seed: got -1, and the engine takes 0"),
        ({"repetition_penalty": 1.1}, r"^sampling.repetition_penalty: "),
        ({"min_tokens": 1}, r"^sampling.min_tokens: "),
    ],
)
def test_llama_cpp_refuses(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        check("llama-cpp-dist", **fields)


def greedy(engine: EngineRecord, **sampling: Any) -> None:
    CONTRACTS["greedy"].check(Sampling(**{"temperature": 0.0, **sampling}), engine, 8192)


def test_greedy() -> None:
    v1 = EngineRecord(name="vllm", version="0.24.0", runner="v1")
    greedy(v1, min_tokens=3, bad_words_token_ids=((1, 2),), frequency_penalty=0.5, seed=None)
    greedy(EngineRecord(name="vllm", version="0.24.0", runner="v2"), min_tokens=3)
    greedy(EngineRecord(name="hf"), repetition_penalty=1.5, min_tokens=3)
    greedy(EngineRecord(name="anything"), logit_bias={1: 2.0}, top_k=5)
    for engine, fields, match in (
        (v1, {"temperature": 0.5}, r"^sampling.temperature: got 0.5"),
        (v1, {"temperature": 1e-6}, r"^sampling.temperature: vLLM raises 1e-06 to 0.01"),
        (v1, {"extra": {"guided_json": "x"}}, r"^sampling.guided_json: "),
        (EngineRecord(name="vllm", version="0.23.0", runner="v2"), {"min_tokens": 1}, r"^sampling.min_tokens: "),
        (EngineRecord(name="hf"), {"presence_penalty": 0.5}, r"^sampling.presence_penalty: "),
        (EngineRecord(name="anything"), {"repetition_penalty": 0.5}, r"^sampling.repetition_penalty: "),
    ):
        with pytest.raises(UnsupportedError, match=match):
            greedy(engine, **fields)
