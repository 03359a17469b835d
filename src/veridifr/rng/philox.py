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
_WEYL_0 = np.uint64(0x9E3779B9 << 32)
_WEYL_1 = np.uint64(0xBB67AE85 << 32)
_SHIFT = np.uint64(32)
_ROUNDS = 10
_BLOCK = 24_576
"""Lanes per block at most: the few uint64 arrays in use stay in a 2 MiB cache, and calls cost less than their work."""
_BUFFERS = 6


def philox4x32(counter: Sequence[Word], key: Sequence[Word], words: Sequence[int] = (0,)) -> list[UInt32]:
    """Output words of Philox4x32-10 for N counters, as one uint32[N] per entry of `words` (each 0 to 3).

    `counter` has four words and `key` two; each word is an integer or an array of N integers, taken modulo 2^32. About
    20 ns per counter.
    """
    lanes = [_as_uint32(word) for word in (*counter, *key)]
    (count,) = np.broadcast_shapes((1,), *(lane.shape for lane in lanes))
    out = [np.empty(count, dtype=np.uint32) for _ in words]
    block = -(-count // max(1, -(-count // _BLOCK)))
    room = np.empty((_BUFFERS, block), dtype=np.uint64)  # for all blocks: new memory would cost as much as the rounds
    for start in range(0, count, block or 1):
        part = slice(start, min(count, start + block))
        buffers = list(room[:, : part.stop - start])
        state = _rounds([lane if len(lane) == 1 else lane[part] for lane in lanes], buffers, max(words) > 1)
        for target, index in zip(out, words, strict=True):
            pair = state[index // 2]
            word = pair if index % 2 else np.right_shift(pair, _SHIFT, out=buffers[2])
            np.copyto(target[part], word, casting="unsafe")  # keeps the low 32 bits
    return out


def _rounds(lanes: list[UInt32], buffers: list[UInt64], whole: bool) -> tuple[UInt64, UInt64]:
    """The output words 0 and 1 in one array, and 2 and 3 in another, the even ones above; the latter only if `whole`.

    `lanes` are four counter and two key words, each of one lane or of as many as the buffers. In this form a round is
    (0, 1) = word 2 * m_1 ^ word 1 << 32 ^ key_0 << 32 for the first pair and likewise for the other one, so that a
    product never has to be taken apart and no word to be masked. The keys stand in the upper halves too.
    """
    x, y, p, q, *spare = buffers
    c0, c1, c2, c3 = lanes[:4]
    key_0, key_1 = (_upper(lane, buffer) for lane, buffer in zip(lanes[4:], spare, strict=True))
    _first_round(c2, _MULTIPLIER_1, (_upper(c1, p), key_0), x)  # words that all lanes share cost little here
    _first_round(c0, _MULTIPLIER_0, (_upper(c3, p), key_1), y)
    for _ in range(_ROUNDS - 1 if whole else _ROUNDS - 3):
        key_0 += _WEYL_0
        key_1 += _WEYL_1
        _product(x, _MULTIPLIER_0, p)
        _product(y, _MULTIPLIER_1, q)
        _next_pair(x, key_0, q)
        _next_pair(y, key_1, p)
    if not whole:  # half of the last two rounds, which is what the first two words depend on
        _product(x, _MULTIPLIER_0, p)
        _product(y, _MULTIPLIER_1, x)
        key_1 += _WEYL_1
        _next_pair(y, key_1, p)
        _product(y, _MULTIPLIER_1, q)
        key_0 += _WEYL_0
        key_0 += _WEYL_0
        _next_pair(x, key_0, q)
    return x, y


def _upper(lane: UInt32, buffer: UInt64) -> UInt64:
    """A word in the upper half of 64 bits: in the buffer, or by itself where all lanes share it."""
    if len(lane) == 1:
        return lane.astype(np.uint64) << _SHIFT
    np.copyto(buffer, lane)
    return np.left_shift(buffer, _SHIFT, out=buffer)


def _first_round(word: UInt32, multiplier: np.uint64, others: tuple[UInt64, ...], out: UInt64) -> None:
    np.copyto(out, word.astype(np.uint64) * multiplier if len(word) == 1 else word)
    if len(word) > 1:
        np.multiply(out, multiplier, out=out)
    for other in others:
        if len(other) > 1 or other[0]:
            np.bitwise_xor(out, other, out=out)


def _product(pair: UInt64, multiplier: np.uint64, out: UInt64) -> None:
    np.right_shift(pair, _SHIFT, out=out)
    np.multiply(out, multiplier, out=out)


def _next_pair(pair: UInt64, key: UInt64, product: UInt64) -> None:
    np.left_shift(pair, _SHIFT, out=pair)
    np.bitwise_xor(pair, key, out=pair)
    np.bitwise_xor(pair, product, out=pair)


def _as_uint32(word: Word) -> UInt32:
    if isinstance(word, int | np.integer):
        return np.array([int(word) & 0xFFFFFFFF], dtype=np.uint32)
    return word.astype(np.uint32, copy=False)
