"""Named deviations and how large they are, as multiples of the honest logit noise."""

from __future__ import annotations

from types import MappingProxyType

from veridifr.errors import CalibrationError

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


def size_of(deviation: str, honest_sigma: float) -> tuple[float, str | None]:
    """Size of a deviation as a multiple of the honest noise, and where it is from (None for ``sigma=X`` in logits).

    Raises `CalibrationError` for a name that is not known.
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
    if deviation not in MULTIPLES:
        raise CalibrationError(f"deviation: got {deviation[:60]!r}, expected sigma=X or one of {', '.join(MULTIPLES)}")
    return MULTIPLES[deviation], SOURCE
