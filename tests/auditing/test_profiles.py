"""Prompts of another kind than the calibration's: said, never a reason to clear and never one to accuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recorded import Recorded
from veridifr import profiles
from veridifr.auditing import audit
from veridifr.calibration import Calibration, HonestSequence
from veridifr.finding import Finding, Verdict


def moved(calibration: Calibration, by: float) -> Calibration:
    """A calibration whose honest text is less predictable, by so many nats; its scores are as they were."""

    def one(sequence: HonestSequence) -> HonestSequence:
        return replace(sequence, surprise=tuple(max(0.0, value + by) for value in sequence.surprise))

    stacks = [replace(stack, sequences=tuple(map(one, stack.sequences))) for stack in calibration.stacks]
    return replace(calibration, stacks=tuple(stacks))


def run(recorded: Recorded, name: str, calibration: Calibration) -> Finding:
    return audit(recorded[name], recorded.reference, calibration)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_prompts_of_the_same_kind_are_not_remarked_on(recorded: Recorded, name: str) -> None:
    finding = run(recorded, name, recorded.calibration)
    assert finding.verdict is Verdict.CONSISTENT
    assert not any("predictable" in text for text in finding.assumptions)


@pytest.mark.parametrize(("by", "side"), [(3.0, "more"), (-3.0, "less")])
def test_other_prompts_clear_nobody(recorded: Recorded, by: float, side: str) -> None:
    finding = run(recorded, "v1", moved(recorded.calibration, by))
    assert finding.verdict is Verdict.UNDECIDED
    assert f"The text is {side} predictable than the calibration's" in finding.reason
    assert any("may not hold here" in text for text in finding.assumptions)
    assert finding.next_step == "Make a calibration on prompts drawn from the same pool as the audit's."
    assert finding.p_value == run(recorded, "v1", recorded.calibration).p_value


def test_other_prompts_excuse_nobody(recorded: Recorded) -> None:
    plain = run(recorded, "int4", recorded.calibration)
    finding = run(recorded, "int4", moved(recorded.calibration, 3.0))
    assert finding.verdict is plain.verdict is Verdict.DIVERGENT
    assert finding.p_value == plain.p_value
    assert "predictable than the calibration's" in finding.reason


def test_one_stack_of_the_same_kind_is_enough(recorded: Recorded) -> None:
    other = moved(recorded.calibration, 3.0)
    mixed = replace(other, stacks=(recorded.calibration.stacks[0], other.stacks[1]))
    assert run(recorded, "v1", mixed).verdict is Verdict.CONSISTENT


def test_the_first_format_says_that_it_cannot_tell(recorded: Recorded) -> None:
    stacks = [
        replace(stack, sequences=tuple(replace(s, surprise=()) for s in stack.sequences))
        for stack in recorded.calibration.stacks
    ]
    finding = run(recorded, "v1", replace(recorded.calibration, stacks=tuple(stacks)))
    assert finding.verdict is Verdict.CONSISTENT
    assert profiles.UNKNOWN in finding.assumptions


def test_honest_prompts_are_called_different_rarely() -> None:
    """The comparison alone, on 300 pairs from one skewed distribution, at the level 0.02."""
    from veridifr.calibration import Stack
    from veridifr.profiles import LEVEL, _against

    rng, found = np.random.default_rng(5), 0
    for _ in range(300):
        sequences = tuple(
            HonestSequence(id="", prompt="", tokens=1, exact_match=1.0, surprise=(value,), scores=(0.0,), simulated=())
            for value in rng.exponential(size=30).tolist()
        )
        stack = Stack(
            name="s", contract="", engine={}, traces_digest=None, fit_sequences=0, fit=(), sequences=sequences
        )
        one = _against(stack, rng.exponential(size=10), np.zeros(10, dtype=np.int64))
        assert one is not None
        found += one.p_value <= 20 * LEVEL
    assert found <= 15  # P(more than 15 of 300 at rate 0.02) is 0.0003
