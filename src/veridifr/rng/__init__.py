"""The generators that inference engines draw sampling noise from, on the CPU, in numpy.

All of them are integer generators, so their output is the same on every machine; the float transforms live with the
contracts that use them.
"""

from veridifr.rng.hashes import lcg24, murmur3, splitmix64, splitmix64_draw
from veridifr.rng.mersenne import MAX_WORDS, mt19937_words
from veridifr.rng.philox import philox4x32

__all__ = ["MAX_WORDS", "lcg24", "mt19937_words", "murmur3", "philox4x32", "splitmix64", "splitmix64_draw"]
