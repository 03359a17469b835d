"""Make tests/data/golden_v2.json: Gumbel noise of vLLM's own V2 kernels, run by Triton's interpreter on a CPU.

    TRITON_INTERPRET=1 python tools/make_golden_v2.py vllm-v2-e=0.24.0:PATH/gumbel.py ... --out golden_v2.json

Each argument names a contract, the vLLM version and that version's vllm/v1/worker/gpu/sample/gumbel.py (taken from its
wheel with `pip download --no-deps`; the files are not part of this repository). The noise is read off by sampling from
rows where one token has logit 0 and all others minus infinity: the kernel's block maximum is then that token's noise.
Logits are cast to float32 before the noise is added, so the values carry the engine's own rounding.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import torch
import triton
import triton.language as tl

SEEDS = (42, -1, 2**40 + 3, 2**63 - 1)
POSITIONS = (0, 7, 4095, 2**20 + 1)
IDS = (0, 1, 1023, 1024, 4099, 32000, 128255)
BLOCK = 1024
"""Tokens per block of the kernel."""


def stub_vllm() -> None:
    """A stand-in for the one import of gumbel.py, so that a file of any version runs without its vLLM."""
    module = types.ModuleType("vllm.triton_utils")
    libdevice = types.SimpleNamespace(log1p=log1p)
    module.__dict__.update(tl=tl, triton=triton, tldevice=libdevice, HAS_TRITON=True)
    sys.modules["vllm"] = types.ModuleType("vllm")
    sys.modules["vllm.triton_utils"] = module


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """CUDA's libdevice log1p, which the interpreter lacks: in float64 (series near 0), rounded to float32."""
    wide = x.to(tl.float64)
    series = wide * (1 - wide * (0.5 - wide * (1 / 3.0 - wide * (0.25 - wide * (0.2 - wide / 6.0)))))
    return tl.where(tl.abs(wide) < 1e-3, series, tl.log(1 + wide)).to(tl.float32)


def load(path: Path) -> types.ModuleType:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location(f"gumbel_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path}: cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(module: types.ModuleType, seed: int, position: int, tokens: Sequence[int]) -> dict[int, float]:
    """The kernel's Gumbel values of tokens that lie in different blocks."""
    logits = torch.full((1, max(tokens) + 1), -math.inf, dtype=torch.float32)
    logits[0, list(tokens)] = 0.0
    maxima: list[torch.Tensor] = []
    real = torch.Tensor.argmax

    def spy(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        maxima.append(self.clone())
        return real(self, *args, **kwargs)

    torch.Tensor.argmax = spy  # the kernel's block maxima are seen only here
    try:
        keywords = {"is_drafting": False} if "is_drafting" in module.gumbel_sample.__code__.co_varnames else {}
        module.gumbel_sample(
            logits,
            torch.zeros(1, dtype=torch.int32),
            torch.ones(1),
            torch.tensor([seed], dtype=torch.int64),
            torch.tensor([position], dtype=torch.int64),
            apply_temperature=False,
            **keywords,
        )
    finally:
        torch.Tensor.argmax = real
    return {token: float(maxima[0][0, token // BLOCK]) for token in tokens}


def row(module: types.ModuleType, seed: int, position: int) -> list[float]:
    """The values of `IDS`, in as few runs as blocks allow."""
    left, values = list(IDS), {}
    while left:
        group = list({token // BLOCK: token for token in reversed(left)}.values())
        values.update(noise(module, seed, position, group))
        left = [token for token in left if token not in group]
    return [values[token] for token in IDS]


def main() -> int:
    """Run every kernel named and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="+", metavar="CONTRACT=VERSION:FILE")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("set TRITON_INTERPRET=1")
    stub_vllm()
    vectors = []
    for kernel in arguments.kernels:
        contract, _, rest = kernel.partition("=")
        version, _, path = rest.partition(":")
        module = load(Path(path))
        for seed in SEEDS:
            for position in POSITIONS:
                head = {"contract": contract, "vllm": version, "seed": seed, "position": position}
                vectors.append({**head, "ids": list(IDS), "values": row(module, seed, position)})
        print(f"{contract}: {len(SEEDS) * len(POSITIONS) * len(IDS)} values of vLLM {version}")
    lines = ",\n".join(json.dumps(vector) for vector in vectors)
    about = json.dumps({"triton": triton.__version__, "interpreter": True})[:-1]
    arguments.out.write_text(f'{about}, "vectors": [\n{lines}\n]}}\n', encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
