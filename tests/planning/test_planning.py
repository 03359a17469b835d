"""What to buy: known answers on synthetic calibrations, the order of deviations, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri

from veridifr.calibration import Calibration, HonestSequence, Stack
from veridifr.calibration_io import write_calibration
from veridifr.deviations import MULTIPLES
from veridifr.errors import CalibrationError
from veridifr.fingerprint_null import FingerprintNull, NullSequence, NullStack
from veridifr.fingerprint_planning import of_fingerprints
from veridifr.fingerprints import ErrorScale, FingerprintSpec
from veridifr.fitting import EFFECTS
from veridifr.interpolated import holding
from veridifr.planning import Aim, Plan, plan
from veridifr.statistic import LikelihoodRatio

EDGES = (16, 64)
SHIFT = {2.0: (0.3, 0.6), 4.0: (0.6, 1.2), 10.0: (2.0, 4.0)}
"""Synthetic effects: how many honest standard deviations higher the scores lie, at both edges."""


def normal_scores(count: int, rng: np.random.Generator) -> list[float]:
    """Quantiles of the normal distribution in a random order: mean and spread are exact, so answers are known."""
    return rng.permutation(ndtri((np.arange(count) + 0.5) / count)).tolist()


def sequences(count: int, first: int, rng: np.random.Generator) -> list[HonestSequence]:
    columns = [[normal_scores(count, rng) for _ in EDGES] for _ in range(1 + len(SHIFT))]
    rows = np.array(columns).transpose(2, 0, 1)
    rows[:, 1:] += np.array(list(SHIFT.values()))
    return [
        HonestSequence(
            id=str(first + i),
            prompt=f"{first + i:016x}",
            tokens=64,
            exact_match=0.99,
            surprise=(1.0, 1.0),
            scores=tuple(row[0].tolist()),
            simulated=tuple(tuple(entry) for entry in row[1:].tolist()),
        )
        for i, row in enumerate(rows)
    ]


def synthetic(null: int = 300, fit: int = 200) -> Calibration:
    """One stack of normal scores of deviation 1."""
    rng = np.random.default_rng(1)
    stack = Stack(
        name="s",
        contract="vllm-v2-e",
        engine={"name": "vllm"},
        traces_digest=None,
        fit_sequences=fit,
        fit=tuple(sequences(fit, 0, rng)),
        sequences=tuple(sequences(null, fit, rng)),
    )
    return Calibration(
        model="m",
        weights="ab" * 32,
        reference_settings={},
        sampling={"temperature": 1.0},
        statistic=LikelihoodRatio(sigma=0.03),
        detect_sigma=0.06,
        effects=tuple(SHIFT),
        edges=EDGES,
        stacks=(stack,),
        created="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def normal() -> Calibration:
    return synthetic()


@pytest.fixture(scope="module")
def smallest(normal: Calibration) -> Plan:
    return plan(normal, "sigma=0.06", Aim(tokens=64))


def test_the_fixed_number_is_that_of_a_normal_shift(smallest: Plan) -> None:
    """13.0 / d^2 sequences for level 0.01 and power 0.9 (docs/statistics.md), a little more for m = 300."""
    found = smallest
    assert found.best is not None and found.best.fixed is not None
    assert found.best.fixed == pytest.approx(13.0 / 0.6**2 * (1 + 13.0 / 0.6**2 / 300), rel=0.25)
    assert found.planned_multiple == found.multiple == pytest.approx(2.0)
    assert (found.source, found.touched) == (None, 1.0)


def test_the_sequential_audit_takes_fewer_on_average(smallest: Plan) -> None:
    best = smallest.best
    assert best is not None and best.fixed is not None and best.sequential is not None
    assert best.sequential.mean < 0.9 * best.fixed
    assert best.sequential.mean <= best.sequential.percentile_90 <= best.sequential.ordered
    assert best.sequential.power >= 0.9
    assert best.sequential.give_up and best.sequential.honest_mean < best.sequential.ordered


def test_a_larger_deviation_takes_no_more(normal: Calibration, smallest: Plan) -> None:
    plans = [smallest, *(plan(normal, f"sigma={sigma}", Aim(tokens=64)) for sigma in (0.12, 0.3))]
    numbers = [p.best.fixed for p in plans if p.best is not None and p.best.fixed is not None]
    means = [p.best.sequential.mean for p in plans if p.best is not None and p.best.sequential is not None]
    assert len(numbers) == len(means) == 3
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > numbers[-1]
    assert means == sorted(means, reverse=True)


def test_between_two_sizes_scores_are_interpolated(normal: Calibration) -> None:
    """Halfway in the logarithm of the size the shift lies halfway: 0.9, for which 13.0 / 0.9^2 sequences are enough."""
    found = plan(normal, f"sigma={0.03 * math.sqrt(8.0)}", Aim(tokens=64))
    assert found.planned_multiple == found.multiple == pytest.approx(math.sqrt(8.0))
    assert not any("Planned with" in warning for warning in found.warnings)
    assert found.best is not None and found.best.fixed is not None and found.best.sequential is not None
    assert found.best.fixed == pytest.approx(13.0 / 0.9**2 * (1 + 13.0 / 0.9**2 / 300), rel=0.25)


def test_beyond_the_largest_size_that_one_is_taken(normal: Calibration) -> None:
    found = plan(normal, "sigma=0.9", Aim(tokens=64))
    assert (found.multiple, found.planned_multiple) == (pytest.approx(30.0), 10.0)
    assert found.warnings[0] == "Planned with the largest size that the calibration holds, 10 times the honest one."
    assert found.options == plan(normal, "sigma=0.3", Aim(tokens=64)).options


def test_a_stored_size_is_taken_as_it_is(normal: Calibration) -> None:
    assert holding(normal, 4.0) == holding(normal, 4.02) == (normal, 1)
    more, place = holding(normal, 5.0)
    assert (place, more.effects) == (2, (2.0, 4.0, 5.0, 10.0))
    assert more.detect_place == normal.detect_place
    for own, known in zip(more.stacks[0].sequences, normal.stacks[0].sequences, strict=True):
        assert (*own.simulated[:2], own.simulated[3]) == known.simulated
        low, between, high = (np.array(own.simulated[k]) for k in (1, 2, 3))
        assert between == pytest.approx(low + math.log(1.25) / math.log(2.5) * (high - low))


def test_the_length_of_fewest_tokens_is_chosen(normal: Calibration) -> None:
    """At twice the shift for four times the tokens both lengths cost the same by 13/d^2; short ones never win here."""
    found = plan(normal, "sigma=0.3")
    assert [option.tokens for option in found.options] == list(EDGES)
    totals = [option.fixed_tokens for option in found.options if option.fixed_tokens is not None]
    assert found.best is not None and found.best.fixed_tokens == min(totals)


def test_a_part_of_the_requests_takes_more(normal: Calibration) -> None:
    whole, part = (plan(normal, "sigma=0.3", Aim(share=share, tokens=64)) for share in (1.0, 0.2))
    assert whole.best is not None and part.best is not None and whole.best.fixed and part.best.fixed
    assert part.best.fixed > whole.best.fixed
    assert part.touched == pytest.approx(1 - 0.8**part.best.fixed)
    assert part.best.sequential is not None and not part.best.sequential.give_up
    assert any("--never-give-up" in warning for warning in part.warnings)


def test_a_power_of_what_cannot_be_seen_is_said() -> None:
    """12 honest sequences: no number of audited ones is enough for the smallest shift."""
    found = plan(synthetic(null=12, fit=4), "sigma=0.06", Aim(tokens=16))
    assert found.best is None and found.touched is None
    assert any("No number of sequences up to" in warning for warning in found.warnings)
    assert any("A stack has only 12 honest sequences" in warning for warning in found.warnings)


def test_the_floor_is_said() -> None:
    """One sequence beside 60 has 61 arrangements: p is 1/61 at least. Two have 1891."""
    found = plan(synthetic(null=60, fit=4), "sigma=0.3", Aim(tokens=64))
    assert found.best is not None and found.best.fixed == 2
    assert "Fewer than 2 sequences give no p-value below 0.01, whatever their scores." in found.warnings


def test_without_fit_scores_only_the_fixed_test_is_planned() -> None:
    found = plan(synthetic(null=100, fit=4), "sigma=0.3", Aim(tokens=64))
    assert found.best is not None and found.best.sequential is None
    assert any("fit part has too few sequences" in warning for warning in found.warnings)


@pytest.mark.parametrize("name", MULTIPLES)
def test_named_deviations_say_where_they_are_from(normal: Calibration, name: str) -> None:
    if MULTIPLES[name] < 2.0:
        with pytest.raises(CalibrationError, match="simulated scores from 2 times"):
            plan(normal, name, Aim(tokens=64))
        return
    found = plan(synthetic(null=60, fit=4), name, Aim(tokens=64))
    assert found.sigma == pytest.approx(MULTIPLES[name] * 0.03)
    assert found.source is not None and "other models and engines differ" in found.source


def test_every_named_deviation_is_within_the_stored_sizes() -> None:
    assert min(MULTIPLES.values()) >= min(EFFECTS)
    assert max(MULTIPLES.values()) <= max(EFFECTS)


@pytest.mark.parametrize(
    ("deviation", "message"),
    [
        ("int3", "deviation: got 'int3', expected sigma=X or one of temperature=1.02, int8"),
        ("sigma=0", "deviation: got 'sigma=0', expected sigma=X with X in logits above 0"),
        ("sigma=nan", "deviation: got 'sigma=nan'"),
        ("sigma=x", "deviation: got 'sigma=x'"),
        ("sigma=0.05", r"1\.67 times the honest size; the calibration holds simulated scores from 2 times"),
    ],
)
def test_deviations_that_cannot_be_planned(normal: Calibration, deviation: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        plan(normal, deviation)


@pytest.fixture(scope="module")
def printed() -> Calibration:
    """`synthetic` with fingerprints whose scores at 16 tokens lie 0.7 and 3 deviations higher for errors 2 and 4 times
    as large; its tokens tell nothing of them."""
    calibration = synthetic()
    rng, (stack,) = np.random.default_rng(2), calibration.stacks
    columns = np.array([normal_scores(len(stack.sequences), rng) for _ in range(3)]) + np.array([[0.0], [0.7], [3.0]])
    sequences = tuple(
        NullSequence(id=one.id, scores=((score, 9.0),), simulated=((twice, 9.0), (four, 9.0)))
        for one, score, twice, four in zip(stack.sequences, *columns.tolist(), strict=True)
    )
    null = FingerprintNull(
        spec=FingerprintSpec(seed=1, hidden_size=64, k=4, encoding="sign"),
        scales=(ErrorScale(sigma=0.01),),
        stacks=(NullStack(name="s", sequences=sequences),),
        effects=(2.0, 4.0),
    )
    return replace(calibration, fingerprints=null)


def test_fingerprints_are_planned_at_half_of_alpha(printed: Calibration) -> None:
    """(2.576 + 1.282)^2 = 14.9 over d^2, where tokens at all of alpha take 13.0; exactly what tokens of such scores
    take at half of it."""
    found = plan(printed, "errors=2", Aim(tokens=16), fingerprints=True)
    assert found.best is not None and found.best.fixed is not None
    assert found.best.fixed == pytest.approx(14.9 / 0.7**2 * (1 + 14.9 / 0.7**2 / 300), rel=0.2)
    assert (found.evidence, found.sigma, found.multiple, found.source) == ("fingerprints", None, 2.0, None)
    halved, whole = (
        plan(of_fingerprints(printed), "sigma=0.06", Aim(tokens=16, alpha=alpha)).best for alpha in (0.005, 0.01)
    )
    assert halved is not None and whole is not None and whole.fixed is not None
    assert found.best.fixed == halved.fixed > whole.fixed
    assert found.best.sequential is None
    assert found.warnings == (
        "A sequential audit looks at fingerprints too, after each sequence; what it takes is not planned.",
    )


def test_a_named_deviation_of_hidden_states(printed: Calibration) -> None:
    found = plan(printed, "fp8-kv", Aim(tokens=16, share=0.5), fingerprints=True)
    assert 2.0 < found.multiple == found.planned_multiple < 4.0
    assert found.source is not None and found.best is not None and found.touched is not None
    assert plan(printed, "int4", fingerprints=True).planned_multiple == 4.0


def test_fingerprints_that_cannot_be_planned(normal: Calibration, printed: Calibration) -> None:
    with pytest.raises(CalibrationError, match="plan: fingerprints: the calibration knows nothing of them"):
        plan(normal, "int8", fingerprints=True)
    assert printed.fingerprints is not None
    older = replace(printed, fingerprints=replace(printed.fingerprints, effects=()))
    with pytest.raises(CalibrationError, match="plan: fingerprints: the calibration holds no simulated scores of them"):
        plan(older, "int8", fingerprints=True)
    with pytest.raises(CalibrationError, match=r"1\.5 times the honest size; .* simulated scores from 2 times on"):
        plan(printed, "errors=1.5", fingerprints=True)


def test_lengths_and_aims_that_are_refused(normal: Calibration) -> None:
    with pytest.raises(CalibrationError, match="tokens: got 65, the calibration reaches 64"):
        plan(normal, "sigma=0.3", Aim(tokens=65))
    with pytest.raises(CalibrationError, match=r"tokens: got 15, .* shortest length is 16"):
        plan(normal, "sigma=0.3", Aim(tokens=15))
    with pytest.raises(CalibrationError, match="fewer than 10 null sequences"):
        plan(synthetic(null=9, fit=4), "sigma=0.3")
    for change in ({"share": 0.0}, {"share": 1.5}, {"alpha": 0.0}, {"power": 1.0}, {"tokens": 0}, {"share": math.nan}):
        with pytest.raises(CalibrationError, match=f"plan: {next(iter(change))}: got"):
            Aim(**change)  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, normal: Calibration) -> None:
    file = tmp_path / "c.json"
    write_calibration(file, replace(normal))
    command = [sys.executable, "-m", "veridifr", "plan", "--calibration", str(file), "--tokens", "64"]
    text = subprocess.run([*command, "--deviation", "int4"], capture_output=True, text=True, check=True)
    assert text.stdout.startswith(
        "int4: logit noise 0.36, 12 times the honest one; false-positive rate 0.01, power 0.9"
    )
    assert "sequences of 64 tokens" in text.stdout and "other models and engines differ" in text.stdout
    assert "Contiguous prefixes" in text.stdout and text.stderr == ""
    value = subprocess.run(
        [*command, "--deviation", "int4", "--share", "0.5", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(value.stdout)
    assert found["schema"] == "veridifr-plan/1"
    assert found["aim"] == {"share": 0.5, "alpha": 0.01, "power": 0.9, "tokens": 64}
    assert found["best"]["tokens"] == 64 and found["best"]["fixed"] >= 1
    assert found["evidence"] == "tokens"
    for options, status, message in (
        (["--deviation", "int8", "--fingerprints"], 2, "plan: fingerprints: the calibration knows nothing of them"),
        (["--deviation", "int3"], 2, "veridifr: deviation: got 'int3'"),
        (["--deviation", "int4", "--tokens", "9999"], 2, "tokens: got 9999"),
        (["--deviation", "int4", "--share", "0"], 2, "argument --share: got '0'"),
    ):
        bad = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        assert bad.returncode == status and message in bad.stderr and "Traceback" not in bad.stderr


def test_the_command_for_fingerprints(tmp_path: Path, printed: Calibration) -> None:
    write_calibration(tmp_path / "c", printed)
    command = [sys.executable, "-m", "veridifr", "plan", "--calibration", str(tmp_path / "c"), "--fingerprints"]
    text = subprocess.run([*command, "--deviation", "errors=2"], capture_output=True, text=True, check=True).stdout
    assert text.startswith(
        "errors=2: errors of hidden states 2 times the honest ones; false-positive rate 0.01, power 0.9"
    )
    assert "Buy " in text and "sequences of 16 tokens" in text
