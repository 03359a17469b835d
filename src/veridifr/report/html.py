"""Findings as one self-contained HTML file: no script, nothing from outside, everything from a trace escaped.

The content security policy of the file forbids what we do not use, so that even a mistake in escaping could load and
run nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files

from veridifr.finding import Finding
from veridifr.report import words
from veridifr.report.jsonout import write_atomically
from veridifr.report.markup import Child, Html, document, element, join, style
from veridifr.report.plain import to_plain
from veridifr.report.sections import badge, section
from veridifr.report.words import number, percent

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(findings: Sequence[Finding], *, title: str = "Inference audit", overview: Html | None = None) -> str:
    """The report about one or more findings as a whole HTML document, under an overview of them (default: our own).

    Raises ValueError if there is no finding, or naming the field if a number is not finite.
    """
    if not findings:
        raise ValueError("to_html: got no finding, expected at least one")
    for finding in findings:
        to_plain(finding, "finding")  # a number that is not finite has no place on a page or an axis
    if overview is None and len(findings) > 1:
        overview = _overview(findings)
    sections = [section(finding, index) for index, finding in enumerate(findings, 1)]
    body = element("body", element("main", _masthead(findings, title), overview, *sections, _guide()))
    return document("en", _head(title), body)


def write_html(path: str | os.PathLike[str], findings: Sequence[Finding], *, title: str = "Inference audit") -> None:
    """Write the report to `path` in one step; see `to_html`."""
    write_atomically(path, to_html(findings, title=title))


def _head(title: str) -> Html:
    sheet = (files("veridifr.report") / "style.css").read_text("utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("meta", name_="referrer", content="no-referrer"),
        element("title", title),
        style(sheet),
    )


def _masthead(findings: Sequence[Finding], title: str) -> Html:
    last = max(findings, key=lambda f: f.provenance.created).provenance
    return element(
        "header",
        element("p", "Inference verification report", class_="kicker"),
        element("h1", title),
        element("p", f"{words.moment(last.created)}, veridifr {last.veridifr}", class_="made"),
        class_="masthead",
    )


def _overview(findings: Sequence[Finding]) -> Html:
    heads = ("Audit", "Verdict", "p", "Tokens matching", "Logit noise", "Cause")
    rows = [_overview_row(finding, index, heads) for index, finding in enumerate(findings, 1)]
    top = element("tr", *(element("th", head, scope="col") for head in heads))
    caption = f"{len(findings)} audits; each is explained below"
    table = element(
        "table", element("caption", caption), element("thead", top), element("tbody", *rows), class_="overview"
    )
    return element("section", element("h2", "All audits at a glance", id="overview"), table, aria_labelledby="overview")


def _overview_row(finding: Finding, index: int, heads: Sequence[str]) -> Html:
    noise, diagnosis = finding.effective_logit_noise, finding.diagnosis
    explained = "" if diagnosis.code == "none" else words.CAUSES.get(diagnosis.code, diagnosis.code)
    cells: list[Child] = [
        badge(finding.verdict),
        _num(words.chance(finding.p_value)),
        join([_num(percent(finding.exact_match)), _honest(percent(finding.honest_exact_match))]),
        join([_num(number(noise.estimate)), _honest(number(noise.honest))]),
        explained or "—",
    ]
    link = element("th", element("a", words.name_of(finding), href=f"#audit-{index}"), scope="row")
    rest = [element("td", cell, data_label=head) for head, cell in zip(heads[1:], cells, strict=True)]
    return element("tr", link, *rest, class_=f"v-{finding.verdict.value}")


def _num(text: str) -> Html:
    return element("span", text, class_="num")


def _honest(text: str) -> Html | None:
    return None if text == words.UNKNOWN else element("span", f"honest {text}", class_="small")


_GUIDE = (
    (
        "What was done",
        "The provider returned text, token by token, and stated the model, the sampling settings and the random seed."
        " A trusted copy of the model was shown the same text, and the sampler's random numbers were computed again"
        " from the seed. So for every token it is known which one an honest run draws.",
    ),
    (
        "Why honest runs differ at all",
        "Hardware and software round differently, so now and then two tokens that are nearly tied change places."
        " The calibration measures how often that happens between honest runs; the provider is compared with those.",
    ),
    (
        "What “divergent” means",
        "The outputs do not fit the stated model, weights, precision, sampler and settings. It does not say why, nor"
        " that anyone meant it: a faulty update looks the same. The error rate α is the share of honest providers that"
        " an audit like this calls divergent.",
    ),
    (
        "What “consistent” means",
        "Nothing was found, and a deviation of the stated size would have been, with the stated chance. It is a"
        " statement about the sequences audited, not about others.",
    ),
    (
        "Effective logit noise",
        "One number for “how different”: the standard deviation of the error that, added to the model's logits (its"
        " scores for the next token), would explain the tokens seen.",
    ),
)


def _guide() -> Html:
    entries: list[Child] = []
    for term, text in _GUIDE:
        entries.append(element("div", element("dt", term), element("dd", text)))
    return element(
        "footer",
        element("h2", "How to read this report", id="guide"),
        element("dl", *entries),
        element("p", "This file loads nothing, runs no script and sends nothing anywhere.", class_="small"),
        class_="guide",
        aria_labelledby="guide",
    )
