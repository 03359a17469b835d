from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from veridifr.report.axis import Axis, score_axis, size_axis


def test_linear_axis_by_hand() -> None:
    axis = Axis(kind="linear", low=0.0, high=10.0, unit=1.0, left=100.0, right=200.0)
    assert [axis.at(v) for v in (0, 5, 10, 12, -1)] == [100, 150, 200, 200, 100]
    assert axis.ticks(5) == [0, 2, 4, 6, 8, 10]


def test_log_axis_by_hand() -> None:
    axis = Axis(kind="log", low=0.01, high=100.0, unit=1.0, left=0.0, right=400.0)
    assert axis.at(1.0) == pytest.approx(200)
    assert axis.at(0.0) == 0  # sits on the end instead of failing
    assert axis.ticks(6) == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_symlog_axis_by_hand() -> None:
    axis = Axis(kind="symlog", low=0.0, high=0.99, unit=0.01, left=0.0, right=200.0)
    assert axis.at(0.0) == 0
    assert axis.at(0.09) == pytest.approx(100)  # log10(1 + 9) is half of log10(1 + 99)
    assert axis.ticks(9)[0] == 0


def test_scores_far_above_honest_ones_get_a_symlog_axis() -> None:
    assert score_axis([0.001, 0.5], 0.001, 0, 100).kind == "symlog"
    assert score_axis([0.001, 0.003], 0.001, 0, 100).kind == "linear"
    assert score_axis([-1.0, 50.0], 0.001, 0, 100).kind == "linear"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1e3))
@example([2.0], 1.1125369292536007e-308)
def test_every_score_lies_on_its_axis(scores: list[float], typical: float) -> None:
    axis = score_axis(scores, typical, 10.0, 500.0)
    places = [axis.at(s) for s in sorted(scores)]
    assert all(10.0 - 1e-6 <= x <= 500.0 + 1e-6 for x in places)
    assert places == sorted(places)
    assert len(axis.ticks(8)) <= 12


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda values: max(values) > 1e-12))
def test_every_size_lies_on_its_axis(values: list[float]) -> None:
    axis = size_axis([v for v in values if v == 0 or v > 1e-12], 0.0, 100.0)
    assert all(0 <= axis.at(v) <= 100.0 for v in values)
    assert 1 <= len(axis.ticks(6)) <= 7
