from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import consistent, divergent, one_of_each, undecided, unsupported

from veridifr.finding import Diagnosis, Finding, LogitNoise
from veridifr.report import to_html, to_text
from veridifr.report.text import WIDTH

EACH = [pytest.param(finding, id=finding.verdict.value) for finding in one_of_each()]


@pytest.mark.parametrize("finding", EACH)
def test_every_verdict_is_said_first_and_fits_the_width(finding: Finding) -> None:
    text = to_text(finding)
    assert text.startswith(finding.verdict.value.replace("_", " ").upper())
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "None" not in text and "nan" not in text


def test_a_divergent_audit_line_by_line() -> None:
    lines = to_text(divergent()).splitlines()
    assert lines[0] == "DIVERGENT    The outputs differ from the reference more than honest runs do."
    assert (
        lines[1].strip().startswith("An honest provider would look this different in at most 1 of 10,000 audits (p =")
    )
    for line in (
        "Audited      tb7m, claimed to run on vllm 0.24.0, runner v1, NVIDIA H200, bfloat16",
        "             against vllm-v1 on H200: p = 0.0001, 60 honest sequences",
        "Match        93.12 % of tokens; honest 99.64 %",
        "Logit noise  0.204 (0.191 to 0.218); honest 0.0121; 17 times the honest value",
        "Diagnosis    another forward pass: effective logit noise 0.204, 95 % interval 0.191 to 0.218",
        "Traces       int4.jsonl  sha256 19f12f3f0c0b",
    ):
        assert line in lines


def test_unknown_values_are_called_so() -> None:
    text = to_text(unsupported())
    for line in ("Match        not known; honest not known", "Sampler      not known", "Mean margin  not known"):
        assert line in text.splitlines()
    assert "No p-value" in text


def test_unsupported_sequences_are_grouped_by_reason() -> None:
    text = to_text(undecided())
    assert "Unsupported  2 sequences: sampling.min_p: not in this contract (few-008, few-009)" in text
    assert "2 sequences: sampling.seed: missing, temperature above 0 (few-006, few-007)" in text
    assert "Next step    Ask for 14 more sequences, each with a seed." in text
    assert "(spec-000, spec-001, spec-002 and 37" in to_text(unsupported())


def test_a_consistent_audit_has_no_diagnosis_unless_there_is_something_to_say() -> None:
    assert "Diagnosis" not in to_text(consistent())
    assert "Diagnosis    none sought" in to_text(consistent(diagnosis=Diagnosis(sentence="Nothing to explain.")))


def test_numbers_that_are_not_finite_are_refused() -> None:
    noise = LogitNoise(estimate=float("inf"), honest=None, interval=None)
    with pytest.raises(ValueError, match=r"effective_logit_noise\.estimate"):
        to_text(consistent(effective_logit_noise=noise))


@given(st.text(st.characters(), max_size=300))
def test_no_terminal_escape_and_no_false_line_comes_through(text: str) -> None:
    hostile = divergent(model=text, engine=text, reason=text, assumptions=(text,), contract=text or None)
    shown = to_text(hostile)
    assert all(char == "\n" or char.isprintable() for char in shown)
    assert sum(line.startswith("DIVERGENT") for line in shown.splitlines()) == 1
    assert max(map(len, shown.splitlines())) <= WIDTH


def test_a_reference_that_only_its_server_knows_is_called_so() -> None:
    source = consistent().provenance
    served = replace(source, reference="https://host/v1", settings={**source.settings, "served_model": "tb7m"})
    for finding, known in ((consistent(), True), (consistent(provenance=served), False)):
        assert ("weights not checked; what the server names: sha256" in to_text(finding)) is not known
        assert ("Reference, as its server names it" in to_html([finding])) is not known
