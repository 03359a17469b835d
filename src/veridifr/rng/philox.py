"""Philox4x32-10, the counter-based generator of CUDA, Triton and PyTorch.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Word = int | np.integer | npt.NDArray[np.integer]

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_SHIFT = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_BLOCK = 16_384
"""Lanes per block: six uint64 buffers of this length stay in a 1 MiB second-level cache."""
_THREADS = min(4, os.cpu_count() or 1)
_SHARED = 65_536
"""Lanes per block where threads share the work: numpy lets others run during a call, so calls must be long."""


def philox4x32(
    counter: Sequence[Word], key: Sequence[Word], words: Sequence[int] = (0,)
) -> list[npt.NDArray[np.uint32]]:
    """Output words of Philox4x32-10 for N counters, as one uint32[N] per entry of `words` (each 0 to 3).

    `counter` has four words and `key` two; each word is an integer or an array of N integers, taken modulo 2^32. About
    30 ns per counter and core.
    """
    counter_words = [_as_uint64(word) for word in counter]
    key_words = [_as_uint64(word) for word in key]
    (count,) = np.broadcast_shapes((1,), *(word.shape for word in (*counter_words, *key_words)))
    out = [np.empty(count, dtype=np.uint32) for _ in words]
    shared = _THREADS > 1 and count >= 2 * _SHARED
    block = _SHARED if shared else max(1, min(count, _BLOCK))

    def fill(first: int, last: int) -> None:
        buffers = [np.empty(block, dtype=np.uint64) for _ in range(6)]
        for start in range(first, last, block):
            stop = min(start + block, last)
            lanes = [buffer[: stop - start] for buffer in buffers]
            for lane, word in zip(lanes[:4], counter_words, strict=True):
                np.copyto(lane, _part(word, start, stop))
            state = _rounds(lanes, _part(key_words[0], start, stop), _part(key_words[1], start, stop))
            for target, index in zip(out, words, strict=True):
                np.copyto(target[start:stop], state[index], casting="unsafe")  # keeps the low 32 bits

    if shared:
        edges = np.linspace(0, count, _THREADS + 1, dtype=np.int64).tolist()
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, edges[:-1], edges[1:]))
    else:
        fill(0, count)
    return out


def _rounds(
    lanes: list[npt.NDArray[np.uint64]], key_0: npt.NDArray[np.uint64], key_1: npt.NDArray[np.uint64]
) -> list[npt.NDArray[np.uint64]]:
    # The odd words and the keys carry rubbish above bit 31: they only enter exclusive-ors, whose result is masked once.
    c0, c1, c2, c3, p0, p1 = lanes
    for _ in range(_ROUNDS):
        np.multiply(c0, _MULTIPLIER_0, out=p0)
        np.multiply(c2, _MULTIPLIER_1, out=p1)
        _next_word(p1, c1, key_0, c0)
        _next_word(p0, c3, key_1, c2)
        c1, p1 = p1, c1
        c3, p0 = p0, c3
        key_0 = key_0 + _WEYL_0  # at most 10 additions to 32 bits: no overflow of the 64
        key_1 = key_1 + _WEYL_1
    return [c0, c1, c2, c3]


def _next_word(
    product: npt.NDArray[np.uint64],
    word: npt.NDArray[np.uint64],
    key: npt.NDArray[np.uint64],
    out: npt.NDArray[np.uint64],
) -> None:
    np.right_shift(product, _SHIFT, out=out)
    np.bitwise_xor(out, word, out=out)
    np.bitwise_xor(out, key, out=out)
    np.bitwise_and(out, _LOW, out=out)


def _as_uint64(word: Word) -> npt.NDArray[np.uint64]:
    if isinstance(word, int | np.integer):
        return np.array([int(word) & 0xFFFFFFFF], dtype=np.uint64)
    wide = word.astype(np.uint64)
    if word.dtype.itemsize > 4:
        wide &= _LOW
    return wide


def _part(word: npt.NDArray[np.uint64], start: int, stop: int) -> npt.NDArray[np.uint64]:
    return word if len(word) == 1 else word[start:stop]
