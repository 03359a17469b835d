from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page import Page, read
from report_examples import (
    consistent,
    demo,
    divergent,
    no_evidence,
    one_of_each,
    provenance,
    results,
    scores,
    undecided,
    unsupported,
)

from veridifr.finding import Finding, LogitNoise, StackResult, TokenNote
from veridifr.report import to_html, write_html
from veridifr.report.markup import element, escape, join, style
from veridifr.report.svg import WIDE, honest_range, noise_picture, score_picture

EACH = [pytest.param(finding, id=finding.verdict.value) for finding in one_of_each()]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "article", "section", "figure"),
    *("h1", "h2", "h3", "p", "a", "span", "bdi", "strong", "mark", "code", "div", "ul", "ol", "li", "dl", "dt", "dd"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figcaption"),
    *("svg", "path", "circle", "rect", "line", "text"),
}


def check_structure(text: str) -> Page:
    """What holds for every report, whatever it is about."""
    page = read(text)
    assert text.startswith("<!doctype html>\n<html lang=")
    assert {name for name, _ in page.tags} <= ALLOWED
    attributes = [(key, value) for _, marks in page.tags for key, value in marks.items()]
    assert not [key for key, _ in attributes if key in ("src", "srcset", "style", "xlink:href") or key.startswith("on")]
    links = [value or "" for key, value in attributes if key == "href"]
    ids = [value for key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert all(value in ids for key, value in attributes if key == "aria-labelledby")
    metas = [marks for marks in page.named("meta") if marks.get("http-equiv") == "Content-Security-Policy"]
    assert [marks["content"] for marks in metas] == [POLICY]
    assert not re.search(r"url\(|@import|expression|javascript:|https?:", page.style)
    for marks in page.named("svg"):
        assert marks.get("aria-label") or marks.get("aria-hidden") == "true"
    assert len(page.named("caption")) == len(page.named("table"))
    assert len(page.named("h1")) == 1
    return page


@pytest.mark.parametrize("finding", EACH)
def test_every_verdict_renders(finding: Finding) -> None:
    page = check_structure(to_html([finding], title="One audit"))
    assert finding.verdict.sentence in page.text
    assert finding.reason in page.text
    assert not re.search(r"\b(None|nan|NaN|inf|null)\b", page.text)
    assert finding.next_step is None or finding.next_step in page.text
    assert "All audits at a glance" not in page.text


def test_several_findings_get_an_overview_that_links_to_them() -> None:
    page = check_structure(to_html(demo(), title="Demo"))
    assert [marks["href"] for marks in page.named("a")] == ["#audit-1", "#audit-2", "#audit-3", "#audit-4"]
    assert page.text.index("All audits at a glance") < page.text.index(consistent().verdict.sentence)
    assert "temp1.1" in page.text
    assert len(page.named("article")) == 4


def test_headings_never_skip_a_level() -> None:
    levels = [int(name[1]) for name, _ in check_structure(to_html(one_of_each())).tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_what_a_reader_must_find() -> None:
    page = check_structure(to_html([divergent()]))
    for text in (
        "at most 1 of 10,000 audits",
        "93.12 %",
        "honest 99.64 %",
        "17 times the honest value",
        "another top-k: 64",
        "40 of the provider's 40 lie beyond it",
        "int4-017",
        "1.91 logits short",
        "A deviation of 0.024 logits would have been found with a chance of 99.80 %.",
        divergent().provenance.weights,
        divergent().assumptions[0],
    ):
        assert text in page.text


def test_unknown_values_are_called_so() -> None:
    page = check_structure(to_html([unsupported()]))
    assert page.text.count("not known") >= 4
    assert "not tested" in page.text
    assert "engine.speculative_decoding: on" in page.text
    assert "spec-004 and 35 more" in page.text


def test_the_power_line_in_its_variants() -> None:
    assert "14 more sequences would be needed" in read(to_html([undecided()])).text
    test = undecided().test
    assert test is not None
    unknown = undecided(test=replace(test, power=None, further_sequences=None))
    assert "with a chance that is not known" in read(to_html([unknown])).text
    assert "is not known" in read(to_html([undecided(test=replace(test, detect_sigma=None))])).text


HOSTILE = (
    "</style><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "<!-- --><![CDATA[ ]]>&amp;&#x3c;",
    "\u202egnp.exe\u2066\u200b",
    "</title></svg></table>\x00\x1b[2J\ud800",
)


def hostile_everywhere(text: str) -> Finding:
    token = TokenNote(
        sequence=text, step=1, claimed_id=1, best_id=2, margin=1.0, before=text, claimed=text, after=text, best=text
    )
    base = undecided()
    assert base.test is not None
    refused = tuple(replace(r, id=text, reason=r.reason and text) for r in base.results)
    stack = StackResult(name=text, p_value=0.5, floor=0.001, sequences=3)
    source = replace(
        provenance("x"),
        traces=((text, text),),
        reference=text,
        weights=text,
        calibration=text,
        calibration_file=text,
        created=text,
        veridifr=text,
        settings={text: text},
    )
    return replace(
        base,
        reason=text,
        next_step=text,
        model=text,
        engine=text,
        contract=text,
        assumptions=(text,),
        results=refused,
        worst_tokens=(token,),
        honest_scores={text: (0.1, 0.2)},
        tokens_by_status={text: 3},
        provenance=source,
        test=replace(base.test, name=text, statistic=text, stacks=(stack,)),
        diagnosis=replace(
            divergent().diagnosis,
            contract=text,
            parameter=text,
            sentence=text,
            alternatives=tuple(replace(a, code=text, contract=text) for a in divergent().diagnosis.alternatives),
        ),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(text: str) -> None:
    plain = check_structure(to_html([hostile_everywhere("x"), consistent()], title="x"))
    page = check_structure(to_html([hostile_everywhere(text), consistent()], title=text))
    marks = ("span", "text", "svg")  # marks of unseen characters, and wrapped lines of a longer axis label
    assert [n for n, _ in page.tags if n not in marks] == [n for n, _ in plain.tags if n not in marks]
    assert page.style == plain.style
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page.shown)
    start = next(part for part in re.split("[\x00-\x1f\u200b-\u202e\u2066-\u2069\ud800]", text) if part)
    assert page.shown.count(start) >= 10


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(), min_size=1, max_size=60))
def test_any_text_is_contained(text: str) -> None:
    check_structure(to_html([hostile_everywhere(text)], title=text)).text.encode("utf-8")


def test_long_texts_are_cut() -> None:
    assert len(to_html([hostile_everywhere("a" * 3000)])) < 250_000


def test_tokens_without_text_show_their_ids() -> None:
    bare = tuple(replace(n, before=None, claimed=None, after=None, best=None) for n in divergent().worst_tokens)
    page = check_structure(to_html([divergent(worst_tokens=bare)]))
    assert "id 318" in page.text and "id 285" in page.text
    empty = tuple(replace(n, claimed="") for n in divergent().worst_tokens)
    assert "(empty)" in read(to_html([divergent(worst_tokens=empty)])).text


def test_no_finding_and_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="got no finding"):
        to_html([])
    with pytest.raises(ValueError, match=r"honest_scores\.x\[1\]"):
        to_html([divergent(honest_scores={"x": (0.1, float("nan"))})])


def test_a_report_is_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(path, [no_evidence()], title="t")
    assert path.read_text("utf-8") == to_html([no_evidence()], title="t")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("audited", "honest"),
    [
        ((0.0,), {}),
        ((0.0, 0.0), {"a": (0.0,)}),
        ((5.0,), {"a": (5.0,), "b": (5.0, 5.0)}),
        ((-1.0, 3.0), {"a": (0.001,)}),
        (scores(1, 0.1, 1.0, 1000), {"a": scores(2, 0.001, 1.0, 2000), "empty": ()}),
        ((1e-12, 1e9), {"a": (1e-6,)}),
    ],
)
def test_pictures_of_odd_scores_stay_in_their_frame(
    audited: tuple[float, ...], honest: dict[str, tuple[float, ...]]
) -> None:
    finding = divergent(results=results("x", audited, 0.9), honest_scores=honest)
    page = check_structure(to_html([finding]))
    for name, marks in page.tags:
        if name in ("circle", "rect", "line"):
            xs = [float(marks[key] or "") for key in ("cx", "x", "x1", "x2") if key in marks]
            assert all(-4 <= x <= WIDE + 4 for x in xs)
    assert len(page.named("circle")) + len(page.named("rect")) < 3000


def test_one_mark_per_sequence() -> None:
    picture = read(score_picture((0.1, 0.1, 0.3), {"a": (0.1, 0.2)}, "score", WIDE))
    assert len([m for m in picture.named("path") if m["class"] == "dot audited"]) == 3
    assert len([m for m in picture.named("circle") if m["class"] == "dot honest"]) == 2
    label = picture.named("svg")[0]["aria-label"] or ""
    assert "This provider: 3 sequences, median 0.1." in label
    assert "Honest: a: 2 sequences, median 0.15." in label


def test_the_honest_range_leaves_out_one_percent_on_each_side() -> None:
    assert honest_range([float(i) for i in range(200)]) == (2.0, 197.0)
    assert honest_range([7.0]) == (7.0, 7.0)


def test_the_number_line_with_what_is_known() -> None:
    def lanes(noise: LogitNoise, detect: float | None) -> int:
        picture = noise_picture(noise, detect, WIDE)
        return 0 if picture is None else picture.count('class="base"')

    assert lanes(LogitNoise(estimate=0.2, honest=0.01, interval=(0.0, 0.3)), 0.02) == 3
    assert lanes(LogitNoise(estimate=0.0, honest=0.01, interval=(0.0, 0.0)), None) == 2
    assert lanes(LogitNoise(estimate=None, honest=0.01, interval=None), None) == 1
    assert lanes(LogitNoise(estimate=None, honest=None, interval=None), None) == 0
    assert lanes(LogitNoise(estimate=0.0, honest=0.0, interval=None), None) == 0


def test_markup_escapes_by_construction() -> None:
    assert element("p", "<b>", element("i", "&"), None) == "<p>&lt;b&gt;<i>&amp;</i></p>"
    assert element("p", class_="a", data_label='"<') == '<p class="a" data-label="&quot;&lt;"></p>'
    assert element("line", x1=1.0, x2=2.504, y1=None) == '<line x1="1" x2="2.5"/>'
    assert join(["a", escape("<")]) == "a&lt;"
    with pytest.raises(ValueError, match="would end the style element"):
        style("a{} </style><script>")


# Contrast: WCAG 2.2, relative luminance and contrast ratio; 4.5 for text, 3 for graphics.


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palettes() -> list[tuple[str, dict[str, str]]]:
    sheet = read(to_html([consistent()])).style
    assert "@media screen and (prefers-color-scheme: dark)" in sheet  # so that paper stays light
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in sheet.split(":root {")[1:])
    return [("light", light), ("dark", {**light, **dark})]


TONES = ("consistent", "divergent", "undecided", "no_evidence", "unsupported")


def test_contrast_by_hand() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("mode", "palette"), palettes(), ids=["light", "dark"])
def test_texts_and_marks_stand_out(mode: str, palette: dict[str, str]) -> None:
    texts = [(name, ground) for name in ("ink", "soft", *TONES) for ground in ("page", "wash", "band")]
    texts += [("link", "page"), ("claimed-ink", "claimed"), ("best", "page")]
    for name, ground in texts:
        assert contrast(palette[name], palette[ground]) >= 4.5, (mode, name, ground)
    for name in ("honest", *TONES):
        assert contrast(palette[name], palette["band"]) >= 3, (mode, name)
