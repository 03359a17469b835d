"""Engines that draw one uniform number per token and invert the cumulative distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from veridifr.contracts.base import FloatArray, IndexArray, Stage, Stream
from veridifr.contracts.common import NoiseContract, refuse_child
from veridifr.contracts.mersenne import pairs_of_words
from veridifr.errors import UnsupportedError
from veridifr.trace import EngineRecord, Sampling

_RANDOM_SEED = 2**32 - 1
_NOT_REPLAYED = "llama.cpp's form of it (over a window of recent tokens) is not replayed"
_NO_SETTING = "llama.cpp has no such setting"


class LlamaCppDist(NoiseContract):
    """llama.cpp's ``dist`` sampler at the end of its default chain, with libstdc++.

    u = (w0 + 2^32 w1) 2^-64 of two words of std::mt19937(seed), one u per token even if a single candidate is left
    (older revisions then drew none). The token is the first, in descending order of logits, whose running sum of
    probabilities reaches u; that order holds after top-k, which must therefore be on. Note that the filters come before
    the temperature. Source: src/llama-sampler.cpp.
    """

    id = "llama-cpp-dist"
    family = "inverse_cdf"
    kind = "uniform"
    order: ClassVar[tuple[Stage, ...]] = ("logit_bias", "top_k", "top_p", "min_p", "temperature")
    needs = "step"
    seeds = (0, 2**32 - 1)
    refused: ClassVar[Mapping[str, str]] = {
        "repetition_penalty": _NOT_REPLAYED,
        "frequency_penalty": _NOT_REPLAYED,
        "presence_penalty": _NOT_REPLAYED,
        "allowed_token_ids": _NO_SETTING,
        "bad_words_token_ids": _NO_SETTING,
        "min_tokens": _NO_SETTING,
    }
    summary = "llama.cpp, default chain with top-k: inverse CDF of one 64-bit uniform per token from mt19937(seed)"

    def check_engine(self, sampling: Sampling, engine: EngineRecord, vocab_size: int) -> None:  # noqa: ARG002
        refuse_child(engine)
        if sampling.seed == _RANDOM_SEED:
            raise UnsupportedError("sampling.seed", f"{_RANDOM_SEED} means 'a random seed' to llama.cpp")
        if sampling.top_k is None:
            raise UnsupportedError("sampling.top_k", "must be on: without it llama.cpp does not sort its candidates")

    def noise(self, stream: Stream, steps_R: IndexArray, rows_N: IndexArray, ids_N: IndexArray) -> FloatArray:  # noqa: ARG002
        """One uniform per row in [0, 1), float64[R]; the pairs are ignored."""
        low, high = pairs_of_words(stream.seed, steps_R, "sampling.max_tokens")
        # libstdc++'s generate_canonical, rounding of the sum included, and its guard against 1.
        return np.minimum((low + high * 2.0**32) * 2.0**-64, 1.0 - 2.0**-53)
