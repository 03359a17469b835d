"""Words of the Mersenne Twister mt19937, which is sequential: word n costs all words before it.

Source: Matsumoto and Nishimura, ACM TOMACS 8(1), 1998, with init_genrand seeding (as std::mt19937 and PyTorch).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veridifr.errors import UnsupportedError

_CHUNK = 1 << 18
MAX_WORDS = 1 << 36
"""Furthest word computed (about three minutes): a trace must not be able to keep a verifier busy for days."""


def mt19937_words(seed: int, index_M: npt.NDArray[np.int64], setting: str) -> npt.NDArray[np.uint32]:
    """Words number `index_M` (0-based, ascending) of mt19937 seeded with `seed` modulo 2^32, uint32[M].

    About 3 ns for each word up to the last, in constant memory. `UnsupportedError` naming `setting` past `MAX_WORDS`.
    """
    out = np.empty(len(index_M), dtype=np.uint32)
    if not len(index_M):
        return out
    last = int(index_M[-1])
    if last >= MAX_WORDS:
        raise UnsupportedError(setting, f"would take {last + 1} words of mt19937, more than the {MAX_WORDS} allowed")
    # The legacy class is wanted: its seeding is init_genrand, and numpy has frozen its stream.
    generator = np.random.RandomState(seed & 0xFFFFFFFF)
    done = 0
    for start in range(0, last + 1, _CHUNK):
        count = min(_CHUNK, last + 1 - start)
        words = generator.randint(0, 2**32, count, dtype=np.uint32)
        stop = done + int(np.searchsorted(index_M[done:], start + count))
        out[done:stop] = words[index_M[done:stop] - start]
        done = stop
    return out
