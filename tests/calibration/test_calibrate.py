"""Calibrations from honest traces: how they are split, what they declare, and which traces they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recorded import DETECT, Recorded
from veridifr.calibration import (
    FEWEST_FIT,
    FEWEST_NULL,
    FIT_SHARE,
    Calibration,
    HonestTraces,
    calibrate,
    prompt_digest,
    scores_at,
)
from veridifr.errors import CalibrationError
from veridifr.fitting import EFFECTS
from veridifr.statistic import CAP, edges_up_to
from veridifr.trace import Trace

CONTRACTS = ("vllm-v1-cuda-exp32", "vllm-v2-e")


def stack(traces: Sequence[Trace], name: str = "honest") -> HonestTraces:
    return HonestTraces(name=name, traces=list(traces))


def change(traces: Sequence[Trace], place: int, **fields: Any) -> list[Trace]:
    changed = list(traces)
    changed[place] = replace(changed[place], **fields)
    return changed


def digests(calibration: Calibration, name: str) -> set[str]:
    (found,) = [s for s in calibration.stacks if s.name == name]
    return {sequence.prompt for sequence in found.sequences}


def test_what_a_calibration_holds(recorded: Recorded) -> None:
    found = recorded.calibration
    assert (found.model, found.contracts) == ("tb7m", CONTRACTS)
    assert found.weights == recorded.reference.weights_digest
    assert found.sampling == {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
    assert 0.01 < found.statistic.sigma < 0.06
    assert found.exact_match > 0.99
    assert found.edges == edges_up_to(80) == (1, 2, 4, 8, 16, 32, 48, 64, 80)
    for one in found.stacks:
        assert len(one.fit) == one.fit_sequences
        assert one.fit_sequences + len(one.sequences) == 32
        for sequence in (*one.fit, *one.sequences):
            assert {len(row) for row in (sequence.scores, sequence.surprise, *sequence.simulated)} == {len(found.edges)}
            assert len(sequence.simulated) == len(found.effects)
            assert max(sequence.scores) <= CAP
            assert 0.0 < sequence.surprise[-1] < 10.0
    assert found.effects[found.detect_place] * found.statistic.sigma == pytest.approx(DETECT)
    assert set(EFFECTS) < set(found.effects) and len(found.effects) == len(EFFECTS) + 1
    for part in ("fit", "sequences"):  # the larger the error, the higher the score
        entries = [q for s in found.stacks for q in getattr(s, part)]
        means = [scores_at(entries, -1, k).mean() for k in range(len(found.effects))]
        assert means == sorted(means)
        assert scores_at(entries, -1).mean() < means[2]


def test_parts_are_split_by_prompt(recorded: Recorded) -> None:
    """One prompt is in the same part everywhere: nothing is judged on what it was fitted to."""
    v1, v2 = recorded["calibration.v1"], recorded["calibration.v2"]
    for name, traces in (("calibration.v1", v1), ("calibration.v2", v2)):
        kept = digests(recorded.calibration, name)
        assert kept == {d for d in map(prompt_digest, traces) if int(d, 16) % FIT_SHARE}
    shared = [replace(t, engine=v2[0].engine, id=f"again {t.id}") for t in v1]
    found = calibrate([stack(v1, "one"), stack(shared, "two")], recorded.reference)
    assert digests(found, "one") == digests(found, "two")
    assert {q.prompt for s in found.stacks for q in s.fit}.isdisjoint(digests(found, "one"))
    assert [s.fit_sequences for s in found.stacks] == [found.stacks[0].fit_sequences] * 2


def test_few_sequences_still_have_a_fit_part(recorded: Recorded) -> None:
    """Seven with no prompt of the fit part by digest: two are taken, decided by their prompts."""
    plain = [t for t in recorded["calibration.v1"] if int(prompt_digest(t), 16) % FIT_SHARE]
    few = plain[: FEWEST_FIT + FEWEST_NULL]
    (found,) = calibrate([stack(few)], recorded.reference).stacks
    assert (found.fit_sequences, len(found.sequences)) == (FEWEST_FIT, FEWEST_NULL)
    assert digests_of(few)[:FEWEST_FIT] == sorted(set(digests_of(few)) - {s.prompt for s in found.sequences})


def digests_of(traces: Sequence[Trace]) -> list[str]:
    return sorted(prompt_digest(trace) for trace in traces)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_too_few_sequences_are_refused(recorded: Recorded, count: int) -> None:
    with pytest.raises(
        CalibrationError, match=rf"calibration: honest: {count} usable sequences, expected at least 2 to fit"
    ):
        calibrate([stack(recorded["calibration.v1"][:count])], recorded.reference)


@pytest.mark.parametrize("stacks", [[], [stack([])]])
def test_no_traces_are_refused(recorded: Recorded, stacks: list[HonestTraces]) -> None:
    with pytest.raises(CalibrationError, match="calibration: got no honest traces"):
        calibrate(stacks, recorded.reference)


def test_mixtures_are_refused(recorded: Recorded) -> None:
    traces = recorded["calibration.v1"][:10]
    hotter = replace(traces[3].sampling, temperature=1.1)
    other = replace(traces[3].engine, version="0.23.0")
    for fields, message in (
        ({"sampling": hotter}, "sampling: differs from .*; one calibration, one setting"),
        ({"engine": other}, "engine: differs within the file; one file, one engine"),
        ({"model": "tb24m"}, "model: got 'tb24m', expected 'tb7m'"),
    ):
        with pytest.raises(CalibrationError, match=f"calibration: honest: sequence '{traces[3].id}': {message}"):
            calibrate([stack(change(traces, 3, **fields))], recorded.reference)
    with pytest.raises(CalibrationError, match=r"calibration: two: sequence .*: sampling: differs"):
        calibrate([stack(traces), stack([replace(t, sampling=hotter) for t in traces], "two")], recorded.reference)


def test_ids_that_name_two_sequences_are_refused(recorded: Recorded) -> None:
    traces = recorded["calibration.v1"][:10]
    with pytest.raises(CalibrationError, match=f"honest: id: '{traces[0].id}' names more than one sequence"):
        calibrate([stack([*traces, traces[0]])], recorded.reference)


def test_what_cannot_be_scored_is_refused(recorded: Recorded) -> None:
    traces = recorded["calibration.v1"][:10]
    unknown = [replace(t, engine=replace(t.engine, name="nobody's")) for t in traces]
    with pytest.raises(CalibrationError, match=r"calibration: honest: engine\.name"):
        calibrate([stack(unknown)], recorded.reference)
    ids = traces[3].output_token_ids[::-1]
    with pytest.raises(CalibrationError, match=f"honest: sequence '{traces[3].id}': the evidence file does not cover"):
        calibrate([stack(change(traces, 3, output_token_ids=ids))], recorded.reference)
    unseeded = replace(traces[3].sampling, seed=None)
    with pytest.raises(CalibrationError, match=f"honest: sequence '{traces[3].id}': .*seed"):
        calibrate([stack(change(traces, 3, sampling=unseeded))], recorded.reference)


def test_the_declared_deviation(recorded: Recorded) -> None:
    """Twice the honest noise unless asked otherwise; it moves the simulated scores and nothing of the null."""
    stacks = [stack(recorded["calibration.v1"])]
    assert recorded.calibration.detect_sigma == DETECT
    plain, wide = (calibrate(stacks, recorded.reference, detect_sigma=d) for d in (None, 0.5))
    assert plain.detect_sigma == pytest.approx(2 * plain.statistic.sigma)
    assert wide.detect_sigma == 0.5
    assert wide.statistic == plain.statistic
    pairs = list(zip(plain.stacks[0].sequences, wide.stacks[0].sequences, strict=True))
    assert [a.scores for a, _ in pairs] == [b.scores for _, b in pairs]
    shown = [(b.simulated[wide.detect_place][-1], a.simulated[plain.detect_place][-1]) for a, b in pairs]
    assert np.mean([high - low for high, low in shown]) > 5


def test_the_same_seed_gives_the_same_calibration(recorded: Recorded) -> None:
    first, again, other = (
        replace(calibrate([stack(recorded["calibration.v1"][:10])], recorded.reference, seed=seed), created="")
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert [s.scores for s in first.stacks[0].sequences] == [s.scores for s in other.stacks[0].sequences]
