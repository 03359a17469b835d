"""The report about several providers: schema, text and page, with names that mean harm."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from browser import DARK, LIGHT
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from report_examples import compared, comparison, consistent, divergent
from test_chromium import shot
from test_html import HOSTILE, check_structure

from veridifr import report
from veridifr.comparison import Comparison, Cost
from veridifr.finding import Verdict
from veridifr.report.text import WIDTH


def valid(value: object) -> bool:
    return Draft202012Validator(report.comparison_schema()).is_valid(value)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(report.comparison_schema())


def test_the_example_fits_the_schema() -> None:
    value = json.loads(json.dumps(report.comparison_to_json(comparison()), allow_nan=False))
    Draft202012Validator(report.comparison_schema()).validate(value)
    assert value["schema"] == "veridifr-comparison/1" and value["verdict"] == "divergent"
    assert report.from_json(value["providers"][0]["finding"]) == comparison().providers[0].finding
    assert value["providers"][0]["cost"] == {"currency": "USD", "amount": 1.42}


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("schema",), "veridifr-comparison/2"),
        (("alpha",), 0),
        (("extra",), 1),
        (("providers",), []),
        (("providers", 0, "name"), ""),
        (("providers", 0, "adjusted_p_value"), 1.5),
        (("providers", 0, "exact_match_interval"), [0.5]),
        (("providers", 0, "cost", "amount"), -1),
        (("providers", 0, "finding", "verdict"), "guilty"),
        (("providers", 0, "finding", "p_value"), 2),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple[Any, ...], new: Any) -> None:
    value = copy.deepcopy(report.comparison_to_json(comparison()))
    assert valid(value)
    place = value
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = new
    assert not valid(value)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["consistent", "consistent"], Verdict.CONSISTENT),
        (["consistent", "undecided"], Verdict.UNDECIDED),
        (["unsupported"], Verdict.UNDECIDED),
        (["consistent", "no_evidence", "divergent"], Verdict.DIVERGENT),
    ],
)
def test_the_verdict_of_the_whole(verdicts: list[str], whole: Verdict) -> None:
    found = [compared(v, replace(consistent(), verdict=Verdict(v))) for v in verdicts]
    assert Comparison(alpha=0.01, correction="Holm", providers=tuple(found)).verdict is whole


def test_the_text_says_what_the_table_says() -> None:
    text = report.comparison_to_text(comparison())
    lines = text.splitlines()
    assert lines[0] == "4 providers: 1 consistent, 1 divergent, 1 undecided, 1 unsupported"
    assert lines[2].split() == ["provider", "verdict", "p,", "corrected", "match", "noise", "deviates", "in"]
    assert lines[3].startswith("cheap-host")
    assert lines[3].split()[1:5] == ["Divergent", "0.0004", "93.12", "%"]
    assert lines[3].endswith("another forward pass")
    assert "It deviates in another forward pass: effective logit noise 0.204." in " ".join(text.split())
    assert "1.42 USD" in text and "cost not known" in text and "not tested" in text
    assert max(map(len, lines)) <= WIDTH
    assert "None" not in text and "nan" not in text


def test_the_page_has_the_table_first_and_every_finding_after_it() -> None:
    page = check_structure(report.comparison_to_html(comparison(), title="Four hosts"))
    links = [marks["href"] for marks in page.named("a")]
    assert links[:4] == ["#audit-1", "#audit-2", "#audit-3", "#audit-4"]
    assert len(page.named("article")) == 4
    assert page.text.index("All providers at a glance") < page.text.index(divergent().verdict.sentence)
    for text in (
        "cheap-host",
        "0.191 to 0.218",
        "92.50 to 93.70 %",
        "another forward pass: effective logit noise 0.204",
        "1.42 USD",
        "α = 0.01 for all together",
    ):
        assert text in page.text, text


@given(st.text(st.characters(), min_size=1, max_size=80))
def test_hostile_names_stay_names(name: str) -> None:
    one = compared(name, divergent())
    hostile = Comparison(
        alpha=0.01, correction="Holm", providers=(replace(one, cost=Cost(currency=name[:16], amount=1.0)),)
    )
    text = report.comparison_to_text(hostile)
    assert all(char == "\n" or char.isprintable() for char in text)
    assert max(map(len, text.splitlines())) <= WIDTH
    check_structure(report.comparison_to_html(hostile, title="x"))


def test_numbers_that_are_not_finite_are_refused() -> None:
    bad = Comparison(alpha=0.01, correction="Holm", providers=(replace(compared("a", divergent()), score=math.inf),))
    for show in (report.comparison_to_json, report.comparison_to_text, report.comparison_to_html):
        with pytest.raises(ValueError, match=r"score"):
            show(bad)


def test_files(tmp_path: Any) -> None:
    report.write_comparison_json(tmp_path / "c.json", comparison())
    report.write_comparison_html(tmp_path / "c.html", comparison(), title="Hosts")
    assert valid(json.loads((tmp_path / "c.json").read_text()))
    assert {path.name for path in tmp_path.iterdir()} == {"c.json", "c.html"}


@pytest.mark.chromium
@pytest.mark.parametrize("flag", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420, 340])
def test_nothing_runs_out_of_the_page(tmp_path: Any, flag: str, width: int) -> None:
    page = tmp_path / "c.html"
    names = ["cheap-host", "W" * 80, HOSTILE[0], "a provider with a name of many words in it, as some have"]
    long = [replace(one, name=name) for one, name in zip(comparison().providers, names, strict=True)]
    page.write_text(report.comparison_to_html(replace(comparison(), providers=tuple(long))), "utf-8")
    grey = shot(page, tmp_path, width, 3000, flag)
    edge = grey[:, -12:]
    assert edge.min() == edge.max(), "something reaches into the right margin"
