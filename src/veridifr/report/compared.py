"""A comparison of providers as text, JSON and HTML: a table in the order of the evidence, then what each is about."""

from __future__ import annotations

import json
import os
import textwrap
from importlib.resources import files
from typing import Any

from veridifr.comparison import Compared, Comparison
from veridifr.finding import Interval, Verdict
from veridifr.report import jsonout, words
from veridifr.report.html import to_html
from veridifr.report.jsonout import write_atomically
from veridifr.report.markup import Child, Html, element, join
from veridifr.report.plain import to_plain
from veridifr.report.sections import badge
from veridifr.report.text import WIDTH
from veridifr.report.words import number, percent, plural, span, visible

SCHEMA = "veridifr-comparison/1"
_NAME = 24
"""Columns of a name in the text."""


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """`comparison` as JSON values; each provider's finding is what `report.to_json` makes of it.

    Raises ValueError naming the field if a number is not finite.
    """
    providers = []
    for one in comparison.providers:
        plain = to_plain(one, "provider")
        providers.append({**plain, "finding": jsonout.to_json(one.finding)})
    return {
        "schema": SCHEMA,
        "verdict": comparison.verdict.value,
        "alpha": comparison.alpha,
        "correction": comparison.correction,
        "providers": providers,
    }


def write_comparison_json(path: str | os.PathLike[str], comparison: Comparison) -> None:
    """Write `comparison` to `path` in one step."""
    write_atomically(path, json.dumps(comparison_to_json(comparison), indent=2, allow_nan=False) + "\n")


def comparison_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a comparison file, with that of a finding in it."""
    loaded: dict[str, Any] = json.loads((files("veridifr.report") / "comparison_schema.json").read_text("utf-8"))
    loaded["$defs"]["finding"] = jsonout.schema()
    return loaded


def comparison_to_text(comparison: Comparison) -> str:
    """The comparison for a terminal, at most `WIDTH` columns: a table, then a reason for each provider."""
    to_plain(comparison, "comparison")
    lines = [_headline(comparison), ""]
    lines.append(f"{'provider':<{_NAME}}{'verdict':<13}{'p, corrected':>13}{'match':>10}{'noise':>9}  {'deviates in'}")
    for one in comparison.providers:
        shown = visible(one.name, _NAME - 2)
        noise = one.finding.effective_logit_noise.estimate
        row = (
            f"{shown:<{_NAME}}{words.TITLES[one.finding.verdict]:<13}{_corrected(one):>13}"
            f"{_short(percent(one.finding.exact_match)):>10}{_short(number(noise)):>9}  {_cause(one) or '-'}"
        )
        lines.append(visible(row, WIDTH - 1))
    for one in comparison.providers:
        lines += ["", *_about(one)]
    return "\n".join(lines) + "\n"


def write_comparison_html(path: str | os.PathLike[str], comparison: Comparison, *, title: str) -> None:
    """Write the whole report to `path` in one step: the table, then every finding."""
    write_atomically(path, comparison_to_html(comparison, title=title))


def comparison_to_html(comparison: Comparison, *, title: str = "Providers compared") -> str:
    """The comparison as a whole HTML document; see `report.to_html`."""
    to_plain(comparison, "comparison")
    return to_html([one.finding for one in comparison.providers], title=title, overview=_table(comparison))


def _headline(comparison: Comparison) -> str:
    counts = [
        f"{sum(one.finding.verdict is verdict for one in comparison.providers)} {words.TITLES[verdict].lower()}"
        for verdict in Verdict
        if any(one.finding.verdict is verdict for one in comparison.providers)
    ]
    return f"{plural(len(comparison.providers), 'provider')}: {', '.join(counts)}"


def _errors(comparison: Comparison) -> str:
    return (
        f"The chance that an honest provider among them is called divergent is at most α = {number(comparison.alpha)} "
        f"for all together ({comparison.correction}'s correction). The strongest evidence stands first."
    )


def _about(one: Compared) -> list[str]:
    """A provider's reason, intervals and cost, as a paragraph with its name before it."""
    finding = one.finding
    noise = finding.effective_logit_noise
    parts = [
        finding.reason,
        f"Match {percent(finding.exact_match)}{_bracket(one.exact_match_interval, share=True)}, logit noise "
        f"{number(noise.estimate)}{_bracket(noise.interval)}; honest {percent(finding.honest_exact_match)} and "
        f"{number(noise.honest)}.",
        f"Bought: {_bought(one)}.",
    ]
    if (about := _deviates(one)) is not None:
        parts.insert(1, f"It deviates in {about}.")
    if finding.next_step is not None:
        parts.append(f"Next: {finding.next_step}")
    text = visible(f"{visible(one.name, 60)}: {' '.join(parts)}")
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _bracket(interval: Interval | None, *, share: bool = False) -> str:
    if interval is None:
        return ""
    if not share:
        return f" ({span(interval)})"
    return f" ({percent(interval[0]).removesuffix(' %')} to {percent(interval[1])})"


def _bought(one: Compared) -> str:
    return f"{one.prompt_tokens:,} prompt and {plural(one.output_tokens, 'output token')}, {_cost(one)}"


def _cost(one: Compared) -> str:
    return "cost not known" if one.cost is None else f"{number(one.cost.amount)} {visible(one.cost.currency, 16)}"


def _corrected(one: Compared) -> str:
    return words.chance(one.adjusted_p_value)


def _short(text: str) -> str:
    return "-" if text == words.UNKNOWN else text


def _cause(one: Compared) -> str | None:
    """What a divergent provider deviates in, without its size; None for one that is not divergent."""
    code = one.finding.diagnosis.code
    if one.finding.verdict is not Verdict.DIVERGENT or code == "none":
        return None
    return words.CAUSES.get(code, code)


def _deviates(one: Compared) -> str | None:
    """The same with what is known of its size."""
    diagnosis = one.finding.diagnosis
    if _cause(one) is None:
        return None
    return words.cause(diagnosis.code, diagnosis.contract, diagnosis.parameter, diagnosis.estimate)


_HEADS = ("Provider", "Verdict", "p, corrected", "Tokens matching", "Logit noise", "Bought")


def _table(comparison: Comparison) -> Html:
    rows = [_row(one, place) for place, one in enumerate(comparison.providers, 1)]
    top = element("tr", *(element("th", head, scope="col") for head in _HEADS))
    caption = f"{_headline(comparison)}; intervals hold with 95 %"
    table = element(
        "table",
        element("caption", caption),
        element("thead", top),
        element("tbody", *rows),
        class_="overview compared",
    )
    heading = element("h2", "All providers at a glance", id="overview")
    return element("section", heading, element("p", _errors(comparison)), table, aria_labelledby="overview")


def _row(one: Compared, place: int) -> Html:
    finding = one.finding
    noise, cause = finding.effective_logit_noise, _deviates(one)
    cells: list[Child] = [
        join([badge(finding.verdict), None if cause is None else element("span", cause, class_="small cause")]),
        element("span", _corrected(one), class_="num"),
        _figure(percent(finding.exact_match), one.exact_match_interval, share=True),
        _figure(number(noise.estimate), noise.interval),
        join(
            [
                element("span", f"{one.prompt_tokens + one.output_tokens:,} tokens", class_="num"),
                element("span", _cost(one), class_="small"),
            ]
        ),
    ]
    link = element("th", element("a", visible(one.name, 60), href=f"#audit-{place}"), scope="row")
    rest = [element("td", cell, data_label=head) for head, cell in zip(_HEADS[1:], cells, strict=True)]
    return element("tr", link, *rest, class_=f"v-{finding.verdict.value}")


def _figure(text: str, interval: Interval | None, *, share: bool = False) -> Html:
    shown = _bracket(interval, share=share).strip(" ()")
    return join([element("span", text, class_="num"), element("span", shown, class_="small") if shown else None])
