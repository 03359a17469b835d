"""vLLM's V2 runner: stateless Gumbel noise of (seed, position, token id), in six successive formulas.

Source: vllm/v1/worker/gpu/sample/gumbel.py of the versions named, and Triton's language/random.py. The integers and the
uniform u are exact; the logarithms are taken in float64, where the engine's float32 differs by about 1e-6.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import FloatArray, IndexArray, PhiloxRows, Stage, Stream
from veridifr.contracts.common import VllmContract, by_row, child_seed, gumbel_of, least_uniform
from veridifr.rng import murmur3, philox4x32

UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]

V2_ORDER: tuple[Stage, ...] = (
    "allowed_token_ids",
    "logit_bias",
    "min_tokens",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "bad_words",
    "temperature",
    "min_p",
    "top_k",
    "top_p",
)
"""vllm/v1/worker/gpu/sample/sampler.py."""
MIN_TOKENS_LATE = "vLLM's V2 runner before 0.24 masks the stop tokens for one token too many; it is not replayed"
_NO_BAD_WORDS = "vLLM's V2 runner has no bad words up to 0.16"

_LARGEST_BELOW_ONE = 1.0 - 2.0**-53
_TRITON_SCALE = np.float32(4.6566127342e-10)
_TRITON_MAX = float(np.float32(2**31 - 1) * _TRITON_SCALE)
_ROUNDING = 512
"""More than float32 rounding moves u, in units of 2^-31."""
_FLOAT32_TINY = 2.0**-126
_FLOAT64_TINY = 2.0**-1022


def _row_keys(stream: Stream, steps_R: IndexArray) -> UInt32:
    """Triton's ``randint(seed, position)``, the key of one output token, uint32[R]."""
    seed = child_seed(stream)
    positions = stream.prompt_length - 1 + steps_R
    return philox4x32((positions, positions >> 32, 0, 0), (seed, seed >> 32))[0]


def _words(stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray, count: int) -> list[UInt32]:
    keys = by_row(_row_keys(stream, steps_R), rows_N)
    return philox4x32((ids_N, 0, 0, 0), (keys, 0), range(count))


def triton_uniform(bits: UInt32) -> Float32:
    """Triton's ``rand`` of 32 random bits: 31 bits, rounded to float32, in [0, 1)."""
    signed = bits.view(np.int32)
    return (signed ^ (signed >> 31)).astype(np.float32) * _TRITON_SCALE


class _V2(VllmContract):
    """What the six formulas share."""

    family = "perturbed"
    kind = "gumbel"
    order = V2_ORDER
    needs = "position"
    seeds = (-(2**63), 2**63 - 1)  # the engine keeps seeds as int64

    @abstractmethod
    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        """Gumbel noise, float64[N]."""


class _V2Philox32(_V2):
    """Formulas over one float32 uniform of Triton's Philox."""

    flipped: ClassVar[bool] = False
    """Whether small u win (formulas of log(1 - u))."""

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        return self.transform(triton_uniform(_words(stream, steps_R, rows_N, ids_N, 1)[0]))

    def gumbel_above(
        self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray, least_R: FloatArray
    ) -> tuple[IndexArray, FloatArray]:
        bits = _words(stream, steps_R, rows_N, ids_N, 1)[0]
        signed = bits.view(np.int32)
        drawn = signed >> 31
        drawn ^= signed  # u in units of 2^-31, before it is rounded to float32
        edge_R = least_uniform(least_R)
        if self.flipped:
            most_R = np.ceil((1.0 - edge_R) * 2.0**31) + _ROUNDING
            near = drawn <= by_row(np.minimum(most_R, 2.0**31 - 1).astype(np.int32), rows_N)
        else:
            least_R = np.maximum(np.floor(edge_R * 2.0**31) - _ROUNDING, 0.0)
            near = drawn >= by_row(least_R.astype(np.int32), rows_N)
        index = np.flatnonzero(near)
        return index, self.transform(triton_uniform(bits[index]))

    @staticmethod
    @abstractmethod
    def transform(uniform: Float32) -> FloatArray:
        """Gumbel noise of the uniform, float64[N]."""


class VllmV2A(_V2Philox32):
    """g = float32(-log(-log(u + 1e-20) + 1e-20)) in float64."""

    id = "vllm-v2-a"
    bound = -math.log(-math.log(_TRITON_MAX))
    refused: ClassVar[Mapping[str, str]] = {"min_tokens": MIN_TOKENS_LATE, "bad_words_token_ids": _NO_BAD_WORDS}
    summary = (
        "vLLM up to 0.16, V2 runner: g = -log(-log(u + 1e-20) + 1e-20), u from Philox(randint(seed, position), id)"
    )

    @staticmethod
    def transform(uniform: Float32) -> FloatArray:
        inner = -np.log(uniform.astype(np.float64) + 1e-20) + 1e-20
        return (-np.log(inner)).astype(np.float32).astype(np.float64)


class VllmV2B(_V2Philox32):
    """g = -log(-log u) with u at least 1e-7."""

    id = "vllm-v2-b"
    bound = -math.log(-math.log(_TRITON_MAX))
    refused: ClassVar[Mapping[str, str]] = {"min_tokens": MIN_TOKENS_LATE}
    summary = "vLLM 0.17-0.18, V2 runner: g = -log(-log max(u, 1e-7)), u as in vllm-v2-a"

    @staticmethod
    def transform(uniform: Float32) -> FloatArray:
        return gumbel_of(np.maximum(uniform, np.float32(1e-7)).astype(np.float64))


class VllmV2C(_V2):
    """g = -log(-log u) in float64, u of 64 bits."""

    id = "vllm-v2-c"
    bound = -math.log(-math.log(_LARGEST_BELOW_ONE))
    refused: ClassVar[Mapping[str, str]] = {"min_tokens": MIN_TOKENS_LATE}
    summary = "vLLM 0.19-0.21, V2 runner: g = -log(-log u) in float64, u of 64 bits from the same Philox"

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        low, high = _words(stream, steps_R, rows_N, ids_N, 2)
        bits = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        # The engine lets u round to 1, an infinite Gumbel, in one draw of 2^54; here it is the next value below.
        return gumbel_of(np.clip(bits.astype(np.float64) * 2.0**-64, _FLOAT64_TINY, _LARGEST_BELOW_ONE))


class VllmV2D(_V2Philox32):
    """g = -log(-log u) with u at least the smallest normal float32."""

    id = "vllm-v2-d"
    bound = -math.log(-math.log(_TRITON_MAX))
    refused: ClassVar[Mapping[str, str]] = {"min_tokens": MIN_TOKENS_LATE}
    summary = "vLLM 0.22-0.23, V2 runner: g = -log(-log max(u, 2^-126)), u as in vllm-v2-a"

    @staticmethod
    def transform(uniform: Float32) -> FloatArray:
        return gumbel_of(np.maximum(uniform, np.float32(_FLOAT32_TINY)).astype(np.float64))


class VllmV2E(_V2Philox32):
    """g = -log(-log1p(-u)) with u at least 2^-31: the same u as `VllmV2D`, the other tail."""

    id = "vllm-v2-e"
    flipped = True
    bound = -math.log(-math.log1p(-float(_TRITON_SCALE)))
    summary = "vLLM 0.24-0.30, V2 runner: g = -log(-log1p(-max(u, 2^-31))), u as in vllm-v2-a"

    @staticmethod
    def transform(uniform: Float32) -> FloatArray:
        floored = np.maximum(uniform, _TRITON_SCALE).astype(np.float64)
        return -np.log(-np.log1p(-floored))

    def philox_rows(self, stream: Stream, steps_R: IndexArray) -> PhiloxRows | None:
        keys_R = _row_keys(stream, steps_R)
        zeros_R = np.zeros_like(keys_R)
        return PhiloxRows(keys_R2=np.stack([keys_R, zeros_R], axis=1), counters_R=zeros_R, triton=True)


class VllmV2F(_V2):
    """g = -log(-L(u)) with u of a murmur3 hash and L(u) the engine's own approximation of log(1 - u)."""

    id = "vllm-v2-f"
    bound = -math.log(2.0**-33)
    summary = "vLLM 0.31-0.33, V2 runner: g = -log(-log1p(-u)), u from murmur3(seed, position, id)"

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:
        hashed = murmur3(child_seed(stream), stream.prompt_length - 1 + steps_R, rows_N, ids_N)
        uniform = ((hashed.astype(np.float64) + 0.5) * 2.0**-32).astype(np.float32)
        return -np.log(-log1p_negative(uniform))


def log1p_negative(uniform: Float32) -> FloatArray:
    """The engine's log(1 - u): the series to u^8 below 1/4 (2e-6 off at most), float32 subtraction above."""
    series = np.full(len(uniform), 1.0 / 8.0)
    small = uniform.astype(np.float64)
    for n in range(7, 0, -1):
        series *= small
        series += 1.0 / n
    series *= -small
    rest = np.maximum(np.float32(1.0) - uniform, np.float32(2.0**-24)).astype(np.float64)
    return np.where(uniform < np.float32(0.25), series, np.log(rest))
