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
_BLOCK = 16_384
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


def _rounds(lanes: list[UInt64], whole: bool) -> list[UInt64]:
    """The output words, rubbish above bit 31; only the first two are good unless `whole`.

    The odd words and the keys carry rubbish above bit 31: they only enter exclusive-ors, whose result is masked once.
    """
    *counter, key_0, key_1 = lanes
    c0, c1, c2, c3, p0, p1 = _first_round(counter, key_0, key_1)
    for _ in range(_ROUNDS - 1 if whole else _ROUNDS - 3):
        key_0 = key_0 + _WEYL_0  # at most 10 additions to 32 bits: no overflow of the 64
        key_1 = key_1 + _WEYL_1
        np.multiply(c0, _MULTIPLIER_0, out=p0)
        np.multiply(c2, _MULTIPLIER_1, out=p1)
        _next_word(p1, c1, key_0, c0)
        _next_word(p0, c3, key_1, c2)
        c1, p1 = p1, c1
        c3, p0 = p0, c3
    if not whole:  # half of the last two rounds, which is what the first two words depend on
        np.multiply(c0, _MULTIPLIER_0, out=p0)
        np.multiply(c2, _MULTIPLIER_1, out=c1)
        _next_word(p0, c3, key_1 + _WEYL_1, c2)
        np.multiply(c2, _MULTIPLIER_1, out=p1)
        _next_word(p1, c1, key_0 + _WEYL_0 + _WEYL_0, c0)
        c1 = p1
    return [c0, c1, c2, c3]


def _first_round(counter: list[UInt64], key_0: UInt64, key_1: UInt64) -> list[UInt64]:
    """The state after one round and two buffers, all of full length: words that all lanes share cost nothing here."""
    c0, c1, c2, c3 = counter
    (count,) = np.broadcast_shapes(*(word.shape for word in (*counter, key_0, key_1)))
    p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
    state = ((p1 >> _SHIFT) ^ (c1 ^ key_0), p1, (p0 >> _SHIFT) ^ (c3 ^ key_1), p0)
    buffers = [np.empty(count, dtype=np.uint64) for _ in range(2)]
    return [word if len(word) == count else np.full(count, word[0]) for word in state] + buffers


def _next_word(product: UInt64, word: UInt64, key: UInt64, out: UInt64) -> None:
    np.right_shift(product, _SHIFT, out=out)
    np.bitwise_xor(out, word, out=out)
    np.bitwise_xor(out, key, out=out)
    np.bitwise_and(out, _LOW, out=out)


def _as_uint32(word: Word) -> UInt32:
    if isinstance(word, int | np.integer):
        return np.array([int(word) & 0xFFFFFFFF], dtype=np.uint32)
    return word.astype(np.uint32, copy=False)
