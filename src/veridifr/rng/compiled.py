"""Kernels compiled by numba, where that is installed (the extra `fast`): the same results, several times as fast.

Nothing here is needed: numpy and torch compute the same. The commands of veridifr use it; other programs
switch it on with `enable`. It is not on by itself, because vLLM 0.32 looks through every loaded module when an engine
starts, and fails on llvmlite's (vllm/triton_utils/dispatcher.py): a process that starts one later must not load numba.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_FEWEST, _FEWEST_LOADED = 20_000, 500
"""Lanes below which numpy is fast enough: importing numba and loading a kernel takes about a second, once."""


_enabled = False
_loaded: set[Callable[..., None]] = set()


def enable() -> None:
    """Use numba from now on in this process, if it is installed; it is loaded when the first kernel needs it.

    If torch is not loaded yet, its threads will sleep soon when they have nothing to do: by default they spin for
    milliseconds, on the cores that the kernels' threads need.
    """
    global _enabled
    _enabled = True
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when libgomp is loaded, with torch


def worth(lanes: int, plain: Callable[..., None]) -> bool:
    """Whether so many lanes are worth a call of `plain` compiled, which may have to be loaded first."""
    return lanes >= (_FEWEST_LOADED if plain in _loaded else _FEWEST)


def kernel(lanes: int) -> Callable[..., None] | None:
    """`_word` compiled, or None where it is not enabled, numba is not installed, or so few lanes are not worth it."""
    return function(_word) if worth(lanes, _word) else None


def function(plain: Callable[..., None], *, reassociate: bool = False) -> Callable[..., None] | None:
    """`plain` compiled, or None where that is not enabled or numba is not installed. It holds no lock of Python's, so
    threads run side by side. `reassociate` lets sums of floats be taken in any order, as vector instructions need."""
    return _compiled(plain, reassociate) if _enabled else None


@cache
def _compiled(plain: Callable[..., None], reassociate: bool) -> Callable[..., None] | None:
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError:
        return None
    loose = {"reassoc", "nsz", "nnan", "contract"} if reassociate else False
    compiled: Callable[..., None] = numba.njit(nogil=True, cache=True, fastmath=loose)(plain)
    _loaded.add(plain)
    return compiled


def _word(c: Any, k: Any, index: int, out: Any) -> None:
    """Word `index` of Philox4x32-10 for N lanes, into `out` uint32[N], from counters `c` and keys `k`: four and two
    arrays uint32[N]. Contiguous arrays and a single target let the compiler use vector instructions."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    multiplier_0, multiplier_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    weyl_0, weyl_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    for i in range(len(out)):
        c0, c1, c2, c3 = np.uint64(c[0][i]), np.uint64(c[1][i]), np.uint64(c[2][i]), np.uint64(c[3][i])
        k0, k1 = np.uint64(k[0][i]), np.uint64(k[1][i])
        for _ in range(10):
            product_0, product_1 = multiplier_0 * c0, multiplier_1 * c2
            c0 = (product_1 >> shift) ^ c1 ^ k0
            c1 = product_1 & low
            c2 = (product_0 >> shift) ^ c3 ^ k1
            c3 = product_0 & low
            k0 = (k0 + weyl_0) & low
            k1 = (k1 + weyl_1) & low
        out[i] = c0 if index == 0 else c1 if index == 1 else c2 if index == 2 else c3
