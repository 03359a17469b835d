"""Providers judged together: who is rejected, at which level, in which order, and at which cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from recorded import Recorded
from veridifr import comparing, stats
from veridifr.comparing import compare, cost_of
from veridifr.comparison import Comparison, Cost
from veridifr.errors import CalibrationError, TraceError
from veridifr.finding import Finding, Verdict
from veridifr.trace import Trace


def together(recorded: Recorded, *names: str, alpha: float = 0.03, **more: Any) -> Comparison:
    return compare({name: recorded[name] for name in names}, recorded.reference, recorded.calibration, alpha, **more)


@pytest.fixture(scope="module")
def three(recorded: Recorded) -> Comparison:
    return together(recorded, "v1", "int4", "temp1.1")


def test_deviating_providers_stand_first_and_the_honest_one_is_cleared(three: Comparison) -> None:
    verdicts = {one.name: one.finding.verdict for one in three.providers}
    assert verdicts == {"int4": Verdict.DIVERGENT, "temp1.1": Verdict.DIVERGENT, "v1": Verdict.CONSISTENT}
    assert three.providers[-1].name == "v1"
    assert three.verdict is Verdict.DIVERGENT
    causes = {one.name: one.finding.diagnosis.code for one in three.providers}
    assert causes == {"int4": "forward_pass", "temp1.1": "temperature", "v1": "none"}


def test_every_number_follows_from_the_findings(three: Comparison, recorded: Recorded) -> None:
    found = {one.name: one for one in three.providers}
    p_values = [one.finding.p_value for one in three.providers]
    adjusted = [one.adjusted_p_value for one in three.providers]
    assert None not in p_values
    np.testing.assert_allclose(stats.holm_adjusted(p_values), adjusted)  # type: ignore[arg-type]
    for name, one in found.items():
        assert one.finding.alpha == pytest.approx(0.01)
        assert any("One of 3 providers compared at 0.03" in text for text in one.finding.assumptions)
        assert one.output_tokens == sum(len(t.output_token_ids) for t in recorded[name])
        assert one.prompt_tokens == sum(len(t.prompt_token_ids) for t in recorded[name])
        assert one.cost is None
        low, high = one.exact_match_interval or (1.0, 0.0)
        assert one.finding.exact_match is not None and low < one.finding.exact_match < high
    assert found["int4"].score is not None and found["int4"].score > (found["v1"].score or 0.0)


def test_one_provider_is_an_audit(recorded: Recorded) -> None:
    found = together(recorded, "v1", alpha=0.01)
    assert found.verdict is Verdict.CONSISTENT
    assert found.providers[0].adjusted_p_value == found.providers[0].finding.p_value
    assert not any("providers compared" in text for text in found.providers[0].finding.assumptions)


def test_evidence_is_kept_and_gone_on_from(recorded: Recorded, tmp_path: Path) -> None:
    first = together(recorded, "v1", evidence=tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"v1.evidence"}
    again = together(recorded, "v1", evidence=tmp_path)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == sizes
    assert again.providers[0].finding.p_value == first.providers[0].finding.p_value


def test_what_cannot_be_compared_is_named(recorded: Recorded) -> None:
    with pytest.raises(TraceError, match="got no provider"):
        compare({}, recorded.reference, recorded.calibration)
    with pytest.raises(TraceError, match="got an empty string"):
        compare({"": recorded["v1"]}, recorded.reference, recorded.calibration)
    with pytest.raises(TraceError, match="requests: expected those of each provider"):
        compare({"v1": recorded["v1"]}, recorded.reference, recorded.calibration, requests={"v2": recorded["v2"]})
    cold = [replace(t, sampling=replace(t.sampling, temperature=0.5)) for t in recorded["v1"]]
    with pytest.raises(CalibrationError, match=r"^cold: calibration: sampling\.temperature"):
        compare({"v1": recorded["v1"], "cold": cold}, recorded.reference, recorded.calibration)


def test_an_unsupported_provider_counts_and_stands_last(recorded: Recorded) -> None:
    strange = [replace(t, engine=replace(t.engine, fp64_noise=True)) for t in recorded["v1"]]
    found = compare({"strange": strange, "v1": recorded["v1"]}, recorded.reference, recorded.calibration, 0.02)
    assert [one.name for one in found.providers] == ["v1", "strange"]
    assert found.providers[1].adjusted_p_value is None and found.providers[1].score is None
    assert found.providers[0].finding.alpha == pytest.approx(0.01)
    assert found.verdict is Verdict.UNDECIDED


class Judged:
    """Stands in for `audit`: each provider's p-value is given, and the level decides as the real one does."""

    def __init__(self, like: Finding, p_values: dict[str, float]) -> None:
        self.like, self.p_values = like, p_values
        self.levels: list[tuple[str, float]] = []

    def __call__(self, traces: Sequence[Trace], reference: Any, calibration: Any, alpha: float, **_: Any) -> Finding:
        name = traces[0].model
        self.levels.append((name, alpha))
        p_value = self.p_values[name]
        verdict = Verdict.DIVERGENT if p_value <= alpha else Verdict.CONSISTENT
        return replace(self.like, verdict=verdict, p_value=p_value, alpha=alpha)


def judged(monkeypatch: pytest.MonkeyPatch, three: Comparison, recorded: Recorded, **p_values: float) -> Any:
    stub = Judged(replace(three.providers[0].finding, results=()), p_values)
    monkeypatch.setattr(comparing, "audit", stub)
    some = {name: [replace(recorded["v1"][0], model=name)] for name in p_values}
    return compare(some, recorded.reference, recorded.calibration, 0.04), stub.levels


def test_holm_looks_again_at_a_higher_level(
    monkeypatch: pytest.MonkeyPatch, three: Comparison, recorded: Recorded
) -> None:
    """By hand: 4 providers at 0.04 are judged at 0.01; the second smallest has until 0.04/3, the third until 0.02."""
    found, levels = judged(monkeypatch, three, recorded, a=0.5, b=0.012, c=0.001, d=0.019)
    assert [one.name for one in found.providers] == ["c", "b", "d", "a"]
    assert [one.finding.verdict for one in found.providers] == [Verdict.DIVERGENT] * 3 + [Verdict.CONSISTENT]
    assert [one.finding.alpha for one in found.providers] == pytest.approx([0.01, 0.04 / 3, 0.02, 0.01])
    assert [one.adjusted_p_value for one in found.providers] == pytest.approx([0.004, 0.036, 0.038, 0.5])
    assert levels[:4] == [(name, pytest.approx(0.01)) for name in "abcd"]
    assert levels[4:] == [("b", pytest.approx(0.04 / 3)), ("d", pytest.approx(0.02))]


def test_holm_stops_at_the_first_that_is_not_rejected(
    monkeypatch: pytest.MonkeyPatch, three: Comparison, recorded: Recorded
) -> None:
    found, levels = judged(monkeypatch, three, recorded, a=0.015, b=0.016, c=0.001)
    assert [one.finding.verdict for one in found.providers] == [Verdict.DIVERGENT, Verdict.DIVERGENT, Verdict.DIVERGENT]
    found, levels = judged(monkeypatch, three, recorded, a=0.021, b=0.022, c=0.001)
    assert [one.finding.verdict for one in found.providers] == [Verdict.DIVERGENT] + [Verdict.CONSISTENT] * 2
    assert len(levels) == 3


def test_the_error_rate_holds_for_all_together(
    monkeypatch: pytest.MonkeyPatch, three: Comparison, recorded: Recorded
) -> None:
    """Honest providers beside one that deviates: any of them is accused in at most 4 % of comparisons."""
    rng, accused, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        p_values = {f"h{i}": float(p) for i, p in enumerate(rng.random(6))}
        found, _ = judged(monkeypatch, three, recorded, bad=1e-5, **p_values)
        accused += any(o.finding.verdict is Verdict.DIVERGENT for o in found.providers if o.name != "bad")
    assert accused <= binom.ppf(0.999, runs, 0.04)
    assert accused > 0


def priced(*costs: Any) -> list[Trace]:
    from makers import make_trace

    return [replace(make_trace(name=f"s{i}"), extra={} if c is None else {"cost": c}) for i, c in enumerate(costs)]


def test_costs_are_added_up_or_not_known() -> None:
    one = {"currency": "USD", "amount": 0.1}
    assert cost_of(priced(one, one, one)) == Cost(currency="USD", amount=pytest.approx(0.3))
    assert cost_of(priced({"currency": "USD", "amount": 0})) == Cost(currency="USD", amount=0.0)
    for bad in (
        None, 5, {}, {"currency": "USD"}, {"amount": 1}, {"currency": "EUR", "amount": 1},
        {"currency": "", "amount": 1},
        {"currency": "USD", "amount": -1}, {"currency": "USD", "amount": True}, {"currency": "USD", "amount": "1"},
        {"currency": "USD", "amount": 1e12}, {"currency": "x" * 17, "amount": 1}, {"currency": 5, "amount": 1},
    ):  # fmt: skip
        assert cost_of(priced(one, bad)) is None
    assert cost_of([]) is None
