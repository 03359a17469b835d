"""Stateless integer hashes that engines use as generators: murmur3, SplitMix64 and SGLang's 24-bit hash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.integer]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = 2**64 - 1


def _rotate(value: UInt32, bits: int) -> UInt32:
    return (value << np.uint32(bits)) | (value >> np.uint32(32 - bits))


def _mix(state: UInt32, word: UInt32) -> UInt32:
    word = _rotate(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    return _rotate(state ^ word, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def murmur3(seed: int, positions_R: Integers, rows_N: Integers, columns_N: Integers, domain: int = 0) -> UInt32:
    """MurmurHash3_x86_32 of the four words (seed low, seed high, position low, column), started at `domain`, uint32[N].

    `seed` is taken as 64-bit two's complement; pair n has position `positions_R[rows_N[n]]` and column `columns_N[n]`.
    Source: Appleby, smhasher, MurmurHash3.cpp (public domain); the word layout is that of vLLM and SGLang.
    """
    start = np.full(1, domain, dtype=np.uint32)
    for word in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF):
        start = _mix(start, np.full(1, word, dtype=np.uint32))
    prefix_R = _mix(start, positions_R.astype(np.uint32))
    hashed = _mix(prefix_R[rows_N], columns_N.astype(np.uint32)) ^ np.uint32(16)  # 16: the length in bytes
    hashed = (hashed ^ (hashed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashed = (hashed ^ (hashed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashed ^ (hashed >> np.uint32(16))


def splitmix64(value: UInt64) -> UInt64:
    """The finaliser of SplitMix64. Source: Steele, Lea and Flood, OOPSLA 2014, with Stafford's variant 13 constants."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def splitmix64_draw(keys_N: UInt64, index_N: Integers) -> UInt64:
    """Draw number `index_N` (0-based) of the SplitMix64 generator whose state is `keys_N`, uint64[N]."""
    steps = (index_N.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return splitmix64(keys_N + steps)


def lcg24(seed: int, positions_R: Integers, rows_N: Integers, columns_N: Integers) -> UInt32:
    """SGLang's multiplicative hash in [0, 2^24) (sglang 0.5.4 to 0.5.8), uint32[N].

    The engine computes in wrapping int64; as nothing shifts right, the low 32 bits suffice.
    """
    first_R = np.uint32((seed * 19349663) & 0xFFFFFFFF) ^ (positions_R.astype(np.uint32) * np.uint32(73856093))
    spread_R = first_R * np.uint32(8589934591 & 0xFFFFFFFF)
    second = spread_R[rows_N] ^ (columns_N.astype(np.uint32) * np.uint32(479001599))
    return second & np.uint32(0xFFFFFF)
