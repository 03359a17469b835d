from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import divergent, provenance

from veridifr.report import words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not known"),
        (0.0, "0"),
        (0.0001, "0.0001"),
        (0.012345, "0.0123"),
        (1.1004, "1.1"),
        (99.94, "99.9"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (-4.31, "−4.31"),
        (3.2e-29, "3.20 × 10⁻²⁹"),
        (2.5e9, "2.50 × 10⁹"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "not known"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.5, "50.0 %"),
        (0.93125, "93.12 %"),
        (0.99996, "99.996 %"),
        (0.9999999999, "over 99.9999 %"),
        (0.003, "0.30 %"),
        (1e-9, "under 0.0001 %"),
    ],
)
def test_percent_says_100_only_of_all_and_0_only_of_none(share: float | None, shown: str) -> None:
    assert words.percent(share) == shown


@pytest.mark.parametrize(
    ("p_value", "shown"),
    [
        (1.0, "about 100 of 100 audits"),
        (0.4631, "about 46 of 100 audits"),
        (0.04, "at most 1 of 25 audits"),
        (0.001, "at most 1 of 1,000 audits"),
        (0.0008, "at most 1 of 1,200 audits"),  # 1/0.0008 = 1250, rounded down
        (1e-9, "fewer than 1 of 1,000,000 audits"),
        (0.0, "fewer than 1 of 1,000,000 audits"),
    ],
)
def test_rarity(p_value: float, shown: str) -> None:
    assert words.rarity(p_value) == shown


@given(st.floats(1e-6, 0.0999))
def test_rarity_never_makes_the_case_stronger_than_it_is(p_value: float) -> None:
    denominator = int(words.rarity(p_value).split()[4].replace(",", ""))
    assert 1 / denominator >= p_value * (1 - 1e-6)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï 中文 😀", "plain ünï 中文 😀"),
        ("a\nb\tc\r", "a↵b⇥c␍"),
        ("\x1b[31mred", "⟨U+001B⟩[31mred"),
        ("abc\u202etxt.exe", "abc⟨U+202E⟩txt.exe"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("a\u00a0b\u3164", "a⟨U+00A0⟩b⟨U+3164⟩"),
        ("\ud800\ue000\U000e0041", "⟨U+D800⟩⟨U+E000⟩⟨U+E0041⟩"),
        ("e\u0301", "e\u0301"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + "⟨U+0301⟩⟨U+0301⟩"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert words.visible(text) == shown


@given(st.text(st.characters()))
def test_nothing_unseen_gets_through_and_twice_is_once(text: str) -> None:
    shown = words.visible(text)
    assert words.visible(shown) == shown
    assert not [c for c in shown if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp")]


def test_visible_cuts() -> None:
    assert words.visible("abcdef", 3) == "abc…"
    assert words.visible("abc", 3) == "abc"


def test_odds_states_p_and_alpha() -> None:
    assert words.odds(divergent()) == (
        "An honest provider would look this different in at most 1 of 10,000 audits "
        "(p = 0.0001, below the error rate asked for, α = 0.01)."
    )
    assert "equal to the error rate" in words.odds(divergent(p_value=0.01))
    assert words.odds(divergent(p_value=None)).startswith("No p-value: no test was run")


def test_cause_in_words() -> None:
    assert words.cause("temperature", None, "temperature", 1.1004) == "another temperature: 1.1"
    assert words.cause("sampler_contract", "vllm-v2-e", None, None) == "another sampler: vllm-v2-e"
    assert words.cause("forward_pass", None, "sigma", 0.204) == "another forward pass: effective logit noise 0.204"
    assert words.cause("seed", None, "seed", None) == "other seeds"


def test_names_and_times() -> None:
    assert words.name_of(divergent()) == "int4"
    three = tuple((f"C:\\traces\\{n}.jsonl.gz", "00") for n in "abc")
    assert words.name_of(divergent(provenance=replace(provenance("x"), traces=three))) == "a, b and 1 more"
    assert words.name_of(divergent(provenance=replace(provenance("x"), traces=()))) == "tb7m"
    assert words.moment("2026-11-23T23:59:30+01:00") == "23 November 2026, 22:59 UTC"
    assert words.moment("yesterday") == "yesterday"
    assert words.moment("2026-11-23T21:14:09") == "2026-11-23T21:14:09"


def test_times_honest_says_nothing_where_it_cannot() -> None:
    assert words.times_honest(0.2, 0.01) == "20 times the honest value"
    assert words.times_honest(0.011, 0.01) == "about the honest value"
    assert words.times_honest(0.2, 0.0) is None
    assert words.times_honest(None, 0.1) is None
