"""Philox4x32-10, the counter-based generator of CUDA, Triton and PyTorch.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from veridifr.rng import compiled

Word = int | np.integer | npt.NDArray[np.integer]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL_0 = np.uint64(0x9E3779B9 << 32)
_WEYL_1 = np.uint64(0xBB67AE85 << 32)
_SHIFT = np.uint64(32)
_ROUNDS = 10
_BLOCK = 24_576
"""Lanes per block at most: enough that calls cost little beside their work, and the arrays in use fit a cache."""


def philox4x32(counter: Sequence[Word], key: Sequence[Word], words: Sequence[int] = (0,)) -> list[UInt32]:
    """Output words of Philox4x32-10 for N counters, as one uint32[N] per entry of `words` (each 0 to 3).

    `counter` has four words and `key` two; each word is an integer or an array of N integers, taken modulo 2^32. About
    20 ns per counter, and a fraction of that where numba is installed (`compiled`).
    """
    lanes = [_as_uint32(word) for word in (*counter, *key)]
    (count,) = np.broadcast_shapes((1,), *(lane.shape for lane in lanes))
    if (fast := compiled.kernel(count)) is not None:
        return _compiled(fast, lanes, count, words)
    out = [np.empty(count, dtype=np.uint32) for _ in words]
    block = -(-count // max(1, -(-count // _BLOCK)))
    room = np.empty((6, block), dtype=np.uint64)  # for all blocks: new memory would cost as much as the rounds
    for start in range(0, count, block or 1):
        part = slice(start, min(count, start + block))
        buffers = room[:, : part.stop - start]
        state = _rounds([lane if len(lane) == 1 else lane[part] for lane in lanes], buffers, max(words) > 1)
        for target, index in zip(out, words, strict=True):
            pair = state[index // 2]
            word = pair if index % 2 else np.right_shift(pair, _SHIFT, out=buffers[2])
            np.copyto(target[part], word, casting="unsafe")  # keeps the low 32 bits
    return out


def _compiled(fast: Callable[..., None], lanes: list[UInt32], count: int, words: Sequence[int]) -> list[UInt32]:
    """The same by `compiled.kernel`, in blocks: a lane that all share is spread over one block only."""
    out = [np.empty(count, dtype=np.uint32) for _ in words]
    spread = [np.full(_BLOCK, lane[0]) if len(lane) == 1 else None for lane in lanes]
    for start in range(0, count, _BLOCK):
        stop = min(count, start + _BLOCK)
        part = [
            np.ascontiguousarray(lane[start:stop]) if full is None else full[: stop - start]
            for lane, full in zip(lanes, spread, strict=True)
        ]
        for index, target in zip(words, out, strict=True):
            fast(tuple(part[:4]), tuple(part[4:]), index, target[start:stop])
    return out


def _rounds(lanes: list[UInt32], buffers: UInt64, whole: bool) -> UInt64:
    """The output as pairs of words (0, 1) and (2, 3), uint64[2, lanes], the even ones above; the latter if `whole`.

    `lanes` are four counter and two key words, each of one lane or of as many as the buffers. In this form a round is

        pair (0, 1) = word 2 * multiplier 1 ^ word 1 << 32 ^ key 0 << 32

    and likewise for the other pair, so that no product has to be taken apart, no word to be masked, and both pairs
    go through most steps together.
    """
    state, product = buffers[:2], buffers[2:4]
    first, second = state
    crossed = product[::-1]
    c0, c1, c2, c3 = lanes[:4]
    key_0, key_1 = (_upper(lane, buffer) for lane, buffer in zip(lanes[4:], buffers[4:], strict=True))
    _first_round(c2, _MULTIPLIERS[1], (_upper(c1, product[0]), key_0), first)
    _first_round(c0, _MULTIPLIERS[0], (_upper(c3, product[0]), key_1), second)
    for _ in range(_ROUNDS - 1 if whole else _ROUNDS - 3):
        key_0 += _WEYL_0
        key_1 += _WEYL_1
        np.right_shift(state, _SHIFT, out=product)
        product *= _MULTIPLIERS
        state <<= _SHIFT
        state ^= crossed
        first ^= key_0
        second ^= key_1
    if not whole:
        _last_rounds(state, product, key_0, key_1)
    return state


def _last_rounds(state: UInt64, product: UInt64, key_0: UInt64, key_1: UInt64) -> None:
    """The last two rounds as far as the first two words depend on them: half of each."""
    first, second = state
    np.right_shift(state, _SHIFT, out=product)
    product *= _MULTIPLIERS
    second <<= _SHIFT
    second ^= product[0]
    key_1 += _WEYL_1
    second ^= key_1
    second >>= _SHIFT
    second *= _MULTIPLIERS[1]
    np.left_shift(product[1], _SHIFT, out=first)
    key_0 += _WEYL_0
    key_0 += _WEYL_0
    first ^= key_0
    first ^= second


def _upper(lane: UInt32, buffer: UInt64) -> UInt64:
    """A word in the upper half of 64 bits: in the buffer, or by itself where all lanes share it."""
    if len(lane) == 1:
        return lane.astype(np.uint64) << _SHIFT
    np.copyto(buffer, lane)
    return np.left_shift(buffer, _SHIFT, out=buffer)


def _first_round(word: UInt32, multiplier: UInt64, others: tuple[UInt64, ...], out: UInt64) -> None:
    """One pair after the first round: words that all lanes share, most of them 0, cost little here."""
    if len(word) == 1:
        out[:] = word.astype(np.uint64) * multiplier
    else:
        np.copyto(out, word)
        out *= multiplier
    for other in others:
        if len(other) > 1 or other[0]:
            out ^= other


def _as_uint32(word: Word) -> UInt32:
    if isinstance(word, int | np.integer):
        return np.array([int(word) & 0xFFFFFFFF], dtype=np.uint32)
    return word.astype(np.uint32, copy=False)
