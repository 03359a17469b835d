"""What every function of this package asks of its arguments. Refusals are `ValueError`s that say what was wrong."""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]


def check_scores(name: str, values: npt.ArrayLike, *, ndim: int = 1) -> FloatArray:
    """`values` as float64 with `ndim` axes, not empty and finite; else `ValueError`."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != ndim:
        raise ValueError(f"{name}: got an array with {scores.ndim} axes, expected {ndim}.")
    if scores.size == 0:
        raise ValueError(f"{name}: got no scores, expected at least one.")
    finite = np.isfinite(scores)
    if not finite.all():
        count = int(scores.size - finite.sum())
        raise ValueError(f"{name}: {count} of {scores.size} scores are not finite; leave unknown scores out.")
    return scores


def check_labels(name: str, labels: npt.ArrayLike, expected: int) -> IndexArray:
    """Stratum labels as int64[expected]; else `ValueError`."""
    array = np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: got labels of type {array.dtype}, expected integers (for example lengths).")
    if array.shape != (expected,):
        raise ValueError(f"{name}: got labels of shape {array.shape}, expected one for each of {expected} scores.")
    return array.astype(np.int64)


def check_probability(name: str, value: float) -> float:
    """`value` if it lies strictly between 0 and 1; else `ValueError`."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name}: got {value}, expected a number above 0 and below 1.")
    return float(value)


def check_count(name: str, value: int, *, least: int = 1) -> int:
    """`value` as an int if it is an integer of at least `least`; else `ValueError`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: got {value!r}, expected an integer.") from None
    if isinstance(value, bool) or count < least:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}.")
    return count
