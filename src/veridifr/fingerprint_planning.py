"""A calibration as its fingerprints show it, so that they are planned as tokens are."""

from __future__ import annotations

from dataclasses import replace

from veridifr.calibration import Calibration
from veridifr.errors import CalibrationError
from veridifr.fingerprint_null import SIMULATED_TOKENS


def of_fingerprints(calibration: Calibration) -> Calibration:
    """The calibration with its fingerprints' scores, over all taps, in place of its tokens', and none to bet from.

    Raises `CalibrationError` where it holds no simulated ones.
    """
    null = calibration.fingerprints
    if null is None or not null.effects:
        lacks = "knows nothing of them" if null is None else "holds no simulated scores of them"
        raise CalibrationError(f"plan: fingerprints: the calibration {lacks}; make it again, with --fingerprints")
    edges = tuple(edge for edge in calibration.edges if edge <= SIMULATED_TOKENS)
    stacks = tuple(
        replace(
            stack,
            fit=(),
            sequences=tuple(
                replace(one, surprise=(), scores=own.scores[0][: len(edges)], simulated=own.simulated)
                for one, own in zip(stack.sequences, printed.sequences, strict=True)
            ),
        )
        for stack, printed in zip(calibration.stacks, null.stacks, strict=True)
    )
    least = null.effects[0] * calibration.statistic.sigma
    return replace(calibration, stacks=stacks, edges=edges, effects=null.effects, heats=(), detect_sigma=least)
