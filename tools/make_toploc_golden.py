"""Answers of the toploc package (0.1.6, its C++ tensor path) for activations that anyone can make again.

usage: make_toploc_golden.py OUT.json       in an environment with toploc 0.1.6, torch 2.5.1 and veridifr's sources

Activations come from Philox (`activations`), so the file holds only proofs and statistics. Chunks in which magnitudes
tie at the cut are left out: which of two equal entries is taken is torch's choice. The path for lists of tensors is no
oracle: it does not reduce indices by the proof's modulus.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

CASES = ((1, 384, 4), (2, 384, 8), (4, 384, 8), (8, 384, 16), (8, 16384, 16), (32, 4096, 4), (16, 8192, 8))


def activations(seed: int, tokens: int, size: int) -> tuple[Any, Any]:
    """bfloat16 values [tokens, size] as float32 twice: a provider's, and a verifier's a few percent off."""
    from veridifr.fingerprints.encoding import bfloat16_bits
    from veridifr.rng import philox4x32

    index = np.arange(tokens * size, dtype=np.int64)
    words = philox4x32((index, 0, 0, 0), (seed, 0), (0, 1, 2, 3))
    a, b, c, d = (word.astype(np.float64) / 2**32 - 0.5 for word in words)
    theirs = (a + b + c) * 8
    own = theirs * (1 + 0.04 * d)
    both = []
    for values in (theirs, own):
        bits = bfloat16_bits(values.astype(np.float32)) << np.uint32(16)
        both.append(bits.view(np.float32).reshape(tokens, size))
    return both[0], both[1]


def main() -> None:
    """Write the cases that have no tie."""
    import torch
    from toploc import build_proofs_bytes, verify_proofs_bytes

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    out = []
    for tokens, size, top_k in CASES:
        for seed in range(40):
            theirs, own = activations(seed, tokens, size)
            if any((cut := np.sort(np.abs(x).ravel())[::-1])[top_k - 1] == cut[top_k] for x in (theirs, own)):
                continue
            first = [torch.from_numpy(row.copy()).to(torch.bfloat16) for row in theirs]
            second = torch.from_numpy(own.copy()).to(torch.bfloat16)
            options = {"decode_batching_size": tokens, "topk": top_k, "skip_prefill": True}
            proofs = build_proofs_bytes(first, **options)
            (found,) = verify_proofs_bytes(second, proofs, **options)
            statistics = [found.exp_mismatches, found.mant_err_mean, found.mant_err_median]
            case = {"seed": seed, "tokens": tokens, "size": size, "top_k": top_k}
            out.append({**case, "proof": proofs[0].hex(), "found": statistics})
            if sum(item["size"] == size and item["top_k"] == top_k for item in out) == 3:
                break
    parser.parse_args().out.write_text("[\n " + ",\n ".join(map(json.dumps, out)) + "\n]\n")


if __name__ == "__main__":
    main()
