"""Honest stacks of another machine beside those of this one, for benchmarks/fingerprints.py.

Both machines replay the same tokens, each beside its own verifier in float32. A provider on the other machine would be
judged by this machine's verifier: its error is the one beside its own verifier, and the difference of the two. Only an
engine that wrote tokens of its own stays beside the other machine's verifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MACHINES = ("h200",)


def merged(arrays: Mapping[str, Any], other: Mapping[str, Any], machine: str, levels: int) -> dict[str, Any]:
    """`arrays` with the honest stacks of `other`, called ``honest_MACHINE`` or ``honest_MACHINE_REST``. `ValueError` if
    the two are not of one model and the same sequences."""
    found = dict(arrays)
    for name in [key.removeprefix("error/") for key in other if key.startswith("error/honest")]:
        rest = name.removeprefix("honest").lstrip("_")
        called = "_".join(filter(None, ("honest", machine, rest)))
        if f"own/{name}" in other:  # it wrote tokens of its own: beside the verifier that ran over them
            for part in ("error", "wide/error", "step", "own", "sensitivity"):
                found[f"{part}/{called}"] = other[f"{part}/{name}"]
            continue
        step = None
        for wide in ("", "wide/"):
            mine, theirs = (values[f"{wide}own"].astype(np.float32) for values in (arrays, other))
            if mine.shape != theirs.shape or np.abs(mine - theirs).mean() > 0.01 * mine.std():
                raise ValueError(f"{machine}: of another model or other sequences")
            error = other[f"{wide}error/{name}"].astype(np.float32) * float(other[f"step/{name}"]) + theirs - mine
            step = error.std() / levels if step is None else step
            found[f"{wide}error/{called}"] = np.clip(np.round(error / step), -127, 127).astype(np.int8)
        found[f"step/{called}"] = step
    found["made"] = f"{arrays['made']}; honest stacks of {machine} from: {other['made']}"
    return found
