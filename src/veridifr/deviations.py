"""Named deviations and how large they are, as multiples of the honest errors: of logits, or of hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from veridifr.errors import CalibrationError

Shown = Literal["noise", "edge", "near ties", "fingerprints"]
"""What shows the size of errors: known noise (or no better), the edge of a filter, near ties at temperature 0, or
fingerprints of hidden states."""
SOURCE = "measured on tb24m (24 M parameters) on an H200; other models and engines differ"
"""Where sizes come from. Those of `MULTIPLES` are of vLLM 0.24, and the honest noise there is 0.029 logits."""
MULTIPLES = MappingProxyType(
    {
        "temperature=1.02": 1.6,
        "int8": 2.6,
        "fp8-kv": 3.9,
        "fp8": 5.1,
        "temperature=1.1": 6.5,
        "int4": 12.0,
    }
)
SHOWN_AS: Mapping[Shown, Mapping[str, float]] = MappingProxyType(
    {
        "noise": MULTIPLES,
        "edge": MappingProxyType({**MULTIPLES, "fp8-kv": 3.2, "fp8": 4.8, "int4": 16.0}),
        "near ties": MappingProxyType({"fp8": 2.4, "fp8-kv": 2.5, "int4": 11.0}),
        "fingerprints": MappingProxyType({"int8": 1.7, "fp8-kv": 3.3, "fp8": 4.6, "int4": 21.0}),
    }
)
"""The same where errors are seen otherwise: the size of independent errors that take about as many tokens to find
(docs/modes.md). Real ones are larger at some tokens, so how large they look depends on which tokens show them: at the
edge of a filter the largest ones throw tokens across. Those at temperature 0 are of the same model on a CPU, with every
layer rounded to bfloat16, where the honest noise is 0.035 logits."""


def size_of(deviation: str, honest_sigma: float, shown: Shown = "noise") -> tuple[float, str | None]:
    """Size of a deviation as a multiple of the honest errors, and where it is from: None for ``sigma=X`` in logits, and
    for ``errors=X``, in multiples of the honest errors, which is what fingerprints are asked about.

    Raises `CalibrationError` for a name that is not known, or not where errors are `shown` that way.
    """
    unit = "errors" if shown == "fingerprints" else "sigma"
    name, _, number = deviation.partition("=")
    if name == unit:
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0.0 < value < 1e6:
            meant = "in logits above 0" if unit == "sigma" else "above 0, in multiples of the honest errors"
            raise CalibrationError(f"deviation: got {deviation[:60]!r}, expected {unit}=X with X {meant}")
        return (value / honest_sigma if unit == "sigma" else value), None
    known = SHOWN_AS[shown]
    if deviation not in known:
        where = {"near ties": " at temperature 0", "fingerprints": " for fingerprints"}.get(shown, "")
        raise CalibrationError(
            f"deviation: got {deviation[:60]!r}, expected {unit}=X or one of {', '.join(known)}{where}"
        )
    return known[deviation], SOURCE
