"""Philox4x32-10, the counter-based generator of CUDA, Triton and PyTorch.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Word = int | np.integer | npt.NDArray[np.integer]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_SHIFT = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_BLOCK = 20_480
"""Lanes per block at most: the few uint64 arrays in use at a time stay in a 1 MiB second-level cache."""


def philox4x32(counter: Sequence[Word], key: Sequence[Word], words: Sequence[int] = (0,)) -> list[UInt32]:
    """Output words of Philox4x32-10 for N counters, as one uint32[N] per entry of `words` (each 0 to 3).

    `counter` has four words and `key` two; each word is an integer or an array of N integers, taken modulo 2^32. About
    20 ns per counter.
    """
    lanes = [_as_uint32(word) for word in (*counter, *key)]
    (count,) = np.broadcast_shapes((1,), *(lane.shape for lane in lanes))
    out = [np.empty(count, dtype=np.uint32) for _ in words]
    block = -(-count // max(1, -(-count // _BLOCK)))
    for start in range(0, count, block or 1):
        part = slice(start, start + block)
        state = _rounds([(lane if len(lane) == 1 else lane[part]).astype(np.uint64) for lane in lanes], max(words) > 1)
        for target, index in zip(out, words, strict=True):
            np.copyto(target[part], state[index], casting="unsafe")  # keeps the low 32 bits
    return out


def _rounds(lanes: list[UInt64], whole: bool) -> tuple[UInt64, ...]:
    """The output words, rubbish above bit 31; only the first two unless `whole`.

    A word that is the same for all lanes stays an array of one for as long as it can: that halves the first rounds. In
    between, the odd words and the keys carry rubbish above bit 31: they only enter exclusive-ors, whose result is
    masked once.
    """
    c0, c1, c2, c3, key_0, key_1 = lanes
    for _ in range(_ROUNDS if whole else _ROUNDS - 2):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c2 = _masked(_mixed(p1, c1, key_0)), _masked(_mixed(p0, c3, key_1))
        c1, c3 = p1, p0
        key_0 = key_0 + _WEYL_0  # at most 10 additions to 32 bits: no overflow of the 64
        key_1 = key_1 + _WEYL_1
    if whole:
        return c0, c1, c2, c3
    c1, c2 = c2 * _MULTIPLIER_1, _masked(_mixed(c0 * _MULTIPLIER_0, c3, key_1))
    product = c2 * _MULTIPLIER_1
    return _mixed(product, c1, key_0 + _WEYL_0), product


def _mixed(product: UInt64, word: UInt64, key: UInt64) -> UInt64:
    """Upper half of `product`, exclusive-or `word`, exclusive-or `key`."""
    mixed = product >> _SHIFT
    for other in (word, key):
        if len(other) == 1 and not other[0]:
            continue
        mixed = np.bitwise_xor(mixed, other, out=mixed if len(mixed) >= len(other) else None)
    return mixed


def _masked(word: UInt64) -> UInt64:
    return np.bitwise_and(word, _LOW, out=word)


def _as_uint32(word: Word) -> UInt32:
    if isinstance(word, int | np.integer):
        return np.array([int(word) & 0xFFFFFFFF], dtype=np.uint32)
    return word.astype(np.uint32, copy=False)
