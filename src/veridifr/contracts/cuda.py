"""PyTorch's CUDA generator: how one ``exponential_`` fill of n numbers is laid out over Philox4x32-10.

Source: PyTorch ATen/native/cuda/DistributionTemplates.h and ATen/core/TransformationHelper.h. Reproduces rows of an
H200 to 1e-5 (tests/data/cuda_exponential_h200.npz), and to 1e-6 below 1e-3, where the noise of improbable tokens lies.
"""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from veridifr.contracts.base import FloatArray, IndexArray
from veridifr.errors import UnsupportedError
from veridifr.rng import philox4x32
from veridifr.trace import EngineRecord

BLOCK = 256
"""Threads per block of the fill."""
SMALLEST_GRID = 40_960
"""Elements one pass covers on a Tesla T4 (40 multiprocessors x 1024 threads), the smallest whole server card that vLLM
runs on: up to here the layout is the same on all of them. A MIG slice must state its multiprocessors."""
FEWEST_THREADS = 1024
"""Fewest threads per multiprocessor of any NVIDIA card since Volta (Turing)."""
CAP = 2.0**-24
"""Smallest exponential that PyTorch's transform yields in float32."""
NEAR_ONE, SHORT = 1.0 - 2.0**-10, 0.795 * 2.0**-24
"""From this uniform on, the card's fast logarithm (lg2.approx times ln 2) is so much short of the exact one, as rows of
an H200 show. Most tokens don't feel it. At a Gumbel noise of 14 to 16, where a token of probability 1e-6 wins, it makes
0.06 to 0.5: without it such tokens of honest providers, which a temperature above 1 brings, look like another model's.
"""
CUDA_BOUND = -math.log(CAP)
_NVIDIA = re.compile(
    r"nvidia|cuda|geforce|rtx|tesla|quadro|"
    r"\b(a2|a10g?|a16|a30|a40|a100|a800|b200|b300|gb200|gb300|gh200|h20|h100|h200|h800|l4|l20|l40s?|t4|v100)\b",
    re.IGNORECASE,
)


def is_nvidia(device: str) -> bool:
    """Whether a device name is that of an NVIDIA card."""
    return _NVIDIA.search(device) is not None


def stride_of(count: int, engine: EngineRecord) -> int:
    """Numbers S that one pass over the grid yields per Philox word, for a fill of `count` numbers.

    `UnsupportedError` naming the missing field where the grid matters and is not stated.
    """
    blocks = -(-count // BLOCK)
    if engine.multiprocessors is None:
        if blocks * BLOCK > SMALLEST_GRID:
            reason = f"is needed for {count} numbers per draw: above {SMALLEST_GRID} the card's grid decides the noise"
            raise UnsupportedError("engine.multiprocessors", reason)
        return blocks * BLOCK
    if engine.threads_per_multiprocessor is None:
        if blocks > engine.multiprocessors * (FEWEST_THREADS // BLOCK):
            reason = f"is needed for {count} numbers per draw on {engine.multiprocessors} multiprocessors"
            raise UnsupportedError("engine.threads_per_multiprocessor", reason)
        return blocks * BLOCK
    per_multiprocessor = engine.threads_per_multiprocessor // BLOCK
    if per_multiprocessor == 0:
        raise UnsupportedError("engine.threads_per_multiprocessor", f"is below {BLOCK}, which no CUDA card has")
    return min(engine.multiprocessors * per_multiprocessor, blocks) * BLOCK


def exponential(seed: int, fills_N: IndexArray, elements_N: IndexArray, count: int, stride: int) -> FloatArray:
    """The exponential q of element `elements_N` of fill number `fills_N` (0-based) of `count` numbers, float64[N].

    `fills_N` counts the fills since the generator was seeded with `seed`.
    """
    return exponential_of(words(seed, fills_N, elements_N, count, stride))


def words(seed: int, fills_N: IndexArray, elements_N: IndexArray, count: int, stride: int) -> npt.NDArray[np.uint32]:
    """The random word behind each element of a fill; arguments as for `exponential`."""
    per_fill = (count - 1) // (4 * stride) + 1  # the generator's offset advances by 4 of these
    if per_fill == 1 and count <= stride:
        return _philox(seed, fills_N, elements_N, (0,))[0]
    chunk, rest = np.divmod(elements_N, 4 * stride)
    component, thread = np.divmod(rest, stride)
    found: npt.NDArray[np.uint32] = np.choose(
        component, _philox(seed, fills_N * per_fill + chunk, thread, (0, 1, 2, 3))
    )
    return found


def exponential_of(bits: npt.NDArray[np.uint32]) -> FloatArray:
    """PyTorch's float32 exponential of a random word, float64[N]."""
    uniform = bits.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    # float32 matters up to here; elsewhere the card's logarithm is only good to about 1e-6, as right as any.
    capped = uniform >= np.float32(1.0 - 2.0**-24)
    q = -np.log(np.where(capped, np.float32(0.5), uniform).astype(np.float64))
    q -= SHORT * (uniform > np.float32(NEAR_ONE))
    return np.where(capped, CAP, q)


def _philox(
    seed: int, counter: IndexArray, thread: IndexArray, wanted: tuple[int, ...]
) -> list[npt.NDArray[np.uint32]]:
    return philox4x32((counter, _high(counter), thread, _high(thread)), (seed, seed >> 32), wanted)


def _high(values: IndexArray) -> int | IndexArray:
    """The upper 32 bits; one integer where they are all zero, as they nearly always are, because that is cheaper."""
    return 0 if not len(values) or int(values.max()) < 2**32 else values >> 32
