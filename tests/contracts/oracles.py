"""Every generator and noise formula again, one number at a time, in plain Python: slow, and easy to read."""

from __future__ import annotations

import math
import struct
import sys

MASK_32, MASK_64 = 2**32 - 1, 2**64 - 1
GRID = 132 * 2048 // 256
"""Blocks of 256 threads that an H200 runs at once."""


def f32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = (c & MASK_32 for c in counter)
    k0, k1 = (k & MASK_32 for k in key)
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK_32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK_32
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def murmur(data: bytes, start: int = 0) -> int:
    """MurmurHash3_x86_32 of whole words."""

    def rotate(x: int, n: int) -> int:
        return ((x << n) | (x >> (32 - n))) & MASK_32

    h = start
    for (word,) in struct.iter_unpack("<I", data):
        h ^= rotate(word * 0xCC9E2D51 & MASK_32, 15) * 0x1B873593 & MASK_32
        h = (rotate(h, 13) * 5 + 0xE6546B64) & MASK_32
    h ^= len(data)
    h = (h ^ (h >> 16)) * 0x85EBCA6B & MASK_32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & MASK_32
    return h ^ (h >> 16)


def murmur_key(seed: int, position: int, column: int) -> int:
    return murmur(struct.pack("<QII", seed & MASK_64, position & MASK_32, column))


def splitmix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK_64
    return z ^ (z >> 31)


class Twister:
    """mt19937 with init_genrand."""

    def __init__(self, seed: int) -> None:
        self.state = [seed & MASK_32]
        for i in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + i) & MASK_32)
        self.index = 624

    def word(self) -> int:
        if self.index == 624:
            s = self.state
            for i in range(624):
                y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7FFFFFFF)
                s[i] = s[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
            self.index = 0
        y = self.state[self.index]
        self.index += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)


def twister_words(seed: int, count: int) -> list[int]:
    twister = Twister(seed)
    return [twister.word() for _ in range(count)]


def cuda_exponential(seed: int, fill: int, element: int, count: int, grid: int = GRID) -> float:
    """Element of a fill, walked as the kernel walks: thread by thread, four numbers per Philox call."""
    blocks = min(grid, -(-count // 256))
    stride = 256 * blocks
    thread, passes = element % stride, element // stride
    calls_per_fill = (count - 1) // (stride * 4) + 1
    offset = fill * calls_per_fill + passes // 4
    word = philox((offset, offset >> 32, thread, 0), (seed, seed >> 32))[passes % 4]
    u = f32(f32(f32(word) * 2.0**-32) + 2.0**-33)
    short = 0.795 * 2.0**-24 if u > 1 - 2.0**-10 else 0.0  # of lg2.approx near one, as rows of an H200 show
    return 2.0**-24 if u >= 1 - 2.0**-24 else -math.log(u) - short


def cpu_exponential(words: list[int], draw: int) -> float:
    r = (words[2 * draw] << 32) | words[2 * draw + 1]
    return f32(-math.log1p(-((r % 2**53) / 2**53)))


def triton_words(seed: int, position: int, token: int) -> tuple[int, int, int, int]:
    key = philox((position, position >> 32, 0, 0), (seed, seed >> 32))[0]
    return philox((token, 0, 0, 0), (key, 0))


def triton_rand(word: int) -> float:
    signed = word - 2**32 if word >= 2**31 else word
    return f32(f32(-signed - 1 if signed < 0 else signed) * f32(4.6566127342e-10))


def v2(letter: str, seed: int, position: int, token: int) -> float:
    """vllm-v2-a to vllm-v2-f: Gumbel noise."""
    if letter == "f":
        h = murmur_key(seed, position, token)
        u = f32(f32((h >> 16) * 2.0**-16) + f32(((h & 0xFFFF) + 0.5) * 2.0**-32))
        if u < 0.25:
            return -math.log(u * sum(u**n / (n + 1) for n in range(8)))
        return -math.log(-math.log(max(f32(1 - u), 2.0**-24)))
    words = triton_words(seed, position, token)
    u = triton_rand(words[0])
    if letter == "a":
        return f32(-math.log(-math.log(u + 1e-20) + 1e-20))
    if letter == "b":
        return -math.log(-math.log(max(u, f32(1e-7))))
    if letter == "c":
        return -math.log(-math.log(max(float((words[1] << 32) | words[0]) * 2.0**-64, 2.0**-1022)))
    if letter == "d":
        return -math.log(-math.log(max(u, 2.0**-126)))
    return -math.log(-math.log1p(-max(u, f32(4.6566127342e-10))))


def cpu_splitmix(words: list[int], step: int, token: int) -> float:
    key = splitmix(words[2 * step + 1] & 0x7FFFFFFF)
    bits = splitmix((key + (token + 1) * 0x9E3779B97F4A7C15) & MASK_64) >> 11
    return -math.log(-math.log((bits + 0.5) * 2.0**-53))


def sglang_murmur(seed: int, position: int, token: int) -> float:
    x = murmur_key(seed, position, token) / (2**32 - 1)
    return -math.log(max(2.0**-32, min(sys.float_info.max, math.inf if x == 0 else -math.log(x))))


def sglang_lcg24(seed: int, position: int, token: int) -> float:
    """In wrapping int64, as the engine computes."""

    def wrap(value: int) -> int:
        value &= MASK_64
        return value - 2**64 if value >= 2**63 else value

    first = wrap(seed * 19349663) ^ wrap(position * 73856093)
    second = wrap(first * 8589934591) ^ wrap(token * 479001599)
    u = max((second % 2**24) / 2**24, f32(1e-10))
    return -math.log(-math.log(u))


def llama_uniform(words: list[int], step: int) -> float:
    return (words[2 * step] + words[2 * step + 1] * 2.0**32) / 2.0**64
