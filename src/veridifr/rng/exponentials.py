"""exp in float32 as kernels compute it: exp(x) = 2^n 2^r, n the integer nearest to x log2(e) and |r| <= 1/2.

The compiler makes vector instructions of it, which it does not of a call. Kernels spell the polynomial out, since they
call no plain function.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ONE, HALF = np.float32(1.0), np.float32(0.5)
LOG2E = np.float32(1.4426950408889634)
LEAST = np.float32(-126.0)
"""The least exponent n of a normal float32."""
# 2^r for |r| <= 1/2 to 2e-7 of it: the first terms of exp(r log 2).
C1, C2, C3 = np.float32(0.6931471805599453), np.float32(0.2402265069591007), np.float32(0.0555041086648216)
C4, C5, C6 = np.float32(0.0096181291076285), np.float32(0.0013333558146428), np.float32(0.0001540353039338)


def scratch(vocab: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Room for the exponentials of a row of V numbers: 2^r float32[V], and 2^n as bits int32[V] and as the float32[V]
    that they are."""
    bits_V = np.empty(vocab, dtype=np.int32)
    return np.empty(vocab, dtype=np.float32), bits_V, bits_V.view(np.float32)
