"""Named deviations and how large they are, as multiples of the honest logit noise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from veridifr.errors import CalibrationError

Shown = Literal["noise", "edge", "near ties"]
"""What shows the size of errors: known noise (or no better), the edge of a filter, or near ties at temperature 0."""
SOURCE = "measured on tb24m (24 M parameters) with vLLM 0.24 on an H200; other models and engines differ"
"""Where `MULTIPLES` comes from. The honest noise there is 0.029 logits."""
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
    }
)
"""The same where errors are seen otherwise: the size of independent errors that take about as many tokens to find
(docs/modes.md). Real ones are larger at some tokens, so how large they look depends on which tokens show them: at the
edge of a filter the largest ones throw tokens across. Those at temperature 0 are of the same model on a CPU, with every
layer rounded to bfloat16, where the honest noise is 0.035 logits."""


def size_of(deviation: str, honest_sigma: float, shown: Shown = "noise") -> tuple[float, str | None]:
    """Size of a deviation as a multiple of the honest noise, and where it is from (None for ``sigma=X`` in logits).

    Raises `CalibrationError` for a name that is not known, or not where errors are `shown` that way.
    """
    name, _, number = deviation.partition("=")
    if name == "sigma":
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not 0.0 < value < 1e6:
            raise CalibrationError(f"deviation: got {deviation[:60]!r}, expected sigma=X with X in logits above 0")
        return value / honest_sigma, None
    known = SHOWN_AS[shown]
    if deviation not in known:
        where = " at temperature 0" if shown == "near ties" else ""
        raise CalibrationError(
            f"deviation: got {deviation[:60]!r}, expected sigma=X or one of {', '.join(known)}{where}"
        )
    return known[deviation], SOURCE
