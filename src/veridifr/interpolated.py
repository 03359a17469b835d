"""A size of deviation between two that a calibration holds simulated scores of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from veridifr.calibration import Calibration, HonestSequence
from veridifr.errors import CalibrationError

_SAME = 0.01
"""Sizes nearer to each other than by this part are one."""


def holding(calibration: Calibration, multiple: float) -> tuple[Calibration, int]:
    """The calibration with scores for errors of `multiple` times the honest ones, and their place among its effects.

    Between two stored sizes each sequence's scores lie between its own at both, linear in the logarithm of the size:
    the same text is scored at every size. Beyond the largest the largest is taken, which is too small. Raises
    `CalibrationError` below the smallest.
    """
    effects = calibration.effects
    nearest = min(range(len(effects)), key=lambda k: abs(effects[k] / multiple - 1.0))
    if abs(effects[nearest] / multiple - 1.0) <= _SAME:
        return calibration, nearest
    place = int(np.searchsorted(effects, multiple))
    if place == 0:
        raise CalibrationError(
            f"deviation: {multiple:.3g} times the honest size; the calibration holds simulated scores from "
            f"{effects[0]:.3g} times on, so it cannot say"
        )
    if place == len(effects):
        return calibration, place - 1
    weight = float(np.log(multiple / effects[place - 1]) / np.log(effects[place] / effects[place - 1]))

    def more(sequence: HonestSequence) -> HonestSequence:
        rows = sequence.simulated
        below, above = np.array(rows[place - 1]), np.array(rows[place])
        between = tuple(((1.0 - weight) * below + weight * above).tolist())
        return replace(sequence, simulated=(*rows[:place], between, *rows[place:]))

    stacks = tuple(
        replace(stack, fit=tuple(map(more, stack.fit)), sequences=tuple(map(more, stack.sequences)))
        for stack in calibration.stacks
    )
    return replace(calibration, effects=(*effects[:place], multiple, *effects[place:]), stacks=stacks), place
