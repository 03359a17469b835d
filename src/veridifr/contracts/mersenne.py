"""PyTorch's CPU generator: ``exponential_`` over mt19937, two words per number, in order.

Source: PyTorch ATen/core/TransformationHelper.h and the serial kernel of ATen/native/cpu (torch 2.7 and later).
"""

from __future__ import annotations

import math

import numpy as np

from veridifr.contracts.base import FloatArray, IndexArray
from veridifr.rng import mt19937_words

_LEAST = 2.0**-54
CPU_BOUND = -math.log(_LEAST)


def pairs_of_words(seed: int, draws_N: IndexArray, setting: str) -> tuple[FloatArray, FloatArray]:
    """Words 2n and 2n + 1 of mt19937 for each draw n, as two float64[N] that hold them exactly."""
    unique, inverse = np.unique(draws_N, return_inverse=True)
    words = mt19937_words(seed, (unique[:, None] * 2 + np.arange(2)).ravel(), setting).astype(np.float64)
    return words[0::2][inverse], words[1::2][inverse]


def exponential(seed: int, draws_N: IndexArray, setting: str) -> FloatArray:
    """The exponential number `draws_N` (0-based) since the generator was seeded, as float64[N] of float32 values.

    `setting` is named if the draw lies too far ahead. The engine's u of exactly 0 (one draw in 2^53) becomes 2^-54.
    """
    first, second = pairs_of_words(seed, draws_N, setting)
    low_21 = first - np.floor(first * 2.0**-21) * 2.0**21  # 64 bits modulo 2^53: 21 bits of the first word
    uniform = (low_21 * 2.0**32 + second) * 2.0**-53
    q = -np.log1p(-np.maximum(uniform, _LEAST))
    return q.astype(np.float32).astype(np.float64)
