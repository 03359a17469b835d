"""The sections of the HTML report about one finding, in the order in which readers need them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from veridifr.finding import Alternative, Finding, TestSummary, TokenNote, Verdict
from veridifr.report import svg, words
from veridifr.report.markup import Child, Html, element, escape, join, token
from veridifr.report.words import number, percent, plural, span

_GLYPHS = {
    Verdict.CONSISTENT: "M5 12.5l4.5 4.5L19 7.5",
    Verdict.DIVERGENT: "M6.5 6.5l11 11M17.5 6.5l-11 11",
    Verdict.UNDECIDED: "M8.6 9.2a3.5 3.5 0 1 1 5 3.1c-1 .6-1.6 1.2-1.6 2.4M12 17.9v.2",
    Verdict.NO_EVIDENCE: "M6.5 12h11",
    Verdict.UNSUPPORTED: "M6.5 17.5l11-11",
}
MAX_TOKENS_SHOWN = 12
MAX_ALTERNATIVES_SHOWN = 12


def badge(verdict: Verdict) -> Html:
    """The verdict as a word with a glyph of its own, so that colour is never the only sign."""
    glyph = element("path", d=_GLYPHS[verdict])
    icon = element("svg", glyph, viewBox="0 0 24 24", class_="glyph", aria_hidden="true")
    return element("span", icon, words.TITLES[verdict], class_="badge")


def section(finding: Finding, number_: int) -> Html:
    """Everything about one finding. `number_` makes the ids of its headings unique."""
    name = f"audit-{number_}"
    parts = [
        _opening(finding, name),
        _figures(finding),
        _scores(finding),
        _noise(finding),
        _diagnosis(finding),
        _tokens(finding),
        _coverage(finding),
        _test(finding),
        _assumptions(finding),
        _provenance(finding),
    ]
    return element(
        "article", *parts, id=name, aria_labelledby=f"{name}-title", class_=f"audit v-{finding.verdict.value}"
    )


def _opening(finding: Finding, name: str) -> Html:
    """What was audited, the verdict in one sentence, the odds, the reason, and what to do."""
    about = element(
        "p",
        element("span", words.name_of(finding), class_="subject"),
        f" {finding.model}, said to run on {finding.engine}",
        class_="about",
    )
    call = None
    if finding.next_step is not None:
        call = element("p", element("strong", "What to do now "), finding.next_step, class_="next")
    return element(
        "header",
        about,
        badge(finding.verdict),
        element("h2", finding.verdict.sentence, id=f"{name}-title"),
        element("p", *_unbroken(words.odds(finding)), class_="odds"),
        element("p", finding.reason, class_="reason"),
        None if (mode := words.mode(finding)) is None else element("p", mode, class_="mode"),
        call,
        class_="opening",
    )


def _unbroken(sentence: str) -> list[Html]:
    """The sentence, with ``p = 0.01`` and ``α = 0.01`` kept on one line each."""
    parts = re.split(r"([pα] = [\d.]+(?: × \S+)?\d)", sentence)
    return [element("span", part, class_="keep") if i % 2 else escape(part) for i, part in enumerate(parts)]


def _figures(finding: Finding) -> Html:
    noise = finding.effective_logit_noise
    honest_noise = f"honest {number(noise.honest)}"
    scored = finding.sequences - finding.sequences_unsupported
    covered = f"of tokens asked for; {scored:,} of {finding.sequences:,} sequences"
    tiles = [
        _tile("p-value", words.chance(finding.p_value), f"error rate α {number(finding.alpha)}"),
        _tile("Tokens matching", percent(finding.exact_match), f"honest {percent(finding.honest_exact_match)}"),
        _tile("Effective logit noise", number(noise.estimate), honest_noise),
        _tile("Coverage", percent(finding.coverage), covered),
    ]
    return element("dl", *tiles, class_="tiles")


def _tile(label: str, value: str, note: str) -> Html:
    quiet = " unknown" if value in (words.UNKNOWN, words.chance(None)) else ""
    return element(
        "div", element("dt", label), element("dd", value, class_=f"big{quiet}"), element("dd", note, class_="note")
    )


def _scores(finding: Finding) -> Html | None:
    audited = [r.score for r in finding.results if r.score is not None]
    honest = {name: scores for name, scores in finding.honest_scores.items() if scores}
    if not audited:
        return None
    statistic = finding.test.statistic if finding.test else "score"
    pictures = [svg.score_picture(audited, honest, statistic, width) for width in (svg.WIDE, svg.NARROW)]
    caption = "Each mark is one sequence; further right is further from the reference. "
    if honest:
        low, high = svg.honest_range([s for scores in honest.values() for s in scores])
        beyond = sum(s > high for s in audited)
        caption += (
            f"The shaded band holds the middle 98 % of honest sequences ({number(low)} to {number(high)}); "
            f"{beyond:,} of the provider's {len(audited):,} lie beyond it. Vertical lines are medians."
        )
    return _part("Scores against honest runs", element("figure", *pictures, element("figcaption", caption)))


def _noise(finding: Finding) -> Html | None:
    noise = finding.effective_logit_noise
    detect = finding.test.detect_sigma if finding.test else None
    pictures = [svg.noise_picture(noise, detect, width) for width in (svg.WIDE, svg.NARROW)]
    if pictures[0] is None:
        return None
    ratio = words.times_honest(noise.estimate, noise.honest)
    caption = (
        "How much random error in the model's logits would explain the differences: the standard deviation, in logits "
        "before temperature. Honest runs have some, because hardware and software round differently."
    )
    caption += f" This provider's is {ratio}." if ratio else ""
    caption += " The bar is the 95 % interval." if noise.interval else ""
    return _part("Effective logit noise", element("figure", *pictures, element("figcaption", caption)))


def _diagnosis(finding: Finding) -> Html | None:
    diagnosis = finding.diagnosis
    if diagnosis.code == "none" and not diagnosis.sentence and not diagnosis.alternatives:
        return None
    named = words.cause(diagnosis.code, diagnosis.contract, diagnosis.parameter, diagnosis.estimate)
    interval = None if diagnosis.interval is None else f", 95 % interval {span(diagnosis.interval)}"
    lead = element("p", element("strong", named[:1].upper() + named[1:]), interval, ".", class_="lead")
    sentence = element("p", diagnosis.sentence) if diagnosis.sentence else None
    return _part("What explains it", lead, sentence, _alternatives(diagnosis.alternatives))


def _alternatives(alternatives: tuple[Alternative, ...]) -> Html | None:
    if not alternatives:
        return None
    best_first = sorted(alternatives, key=lambda a: -a.gain)[:MAX_ALTERNATIVES_SHOWN]
    most = max((a.gain for a in best_first), default=0.0)
    rows = [
        (
            words.cause(a.code, a.contract, a.parameter, a.estimate),
            _bar(a.gain / most if most > 0 else 0.0),
            element("span", number(a.gain), class_="num"),
        )
        for a in best_first
    ]
    left_out = len(alternatives) - len(best_first)
    caption = "Causes tried, with the log-likelihood each gains over the claim, in nats per held-out token" + (
        f" (the {left_out} weakest are in the JSON)" if left_out else ""
    )
    return _table(caption, ("Cause", "", "Gain"), rows, "alternatives")


def _bar(share: float) -> Html:
    width = 100 * min(max(share, 0.0), 1.0)
    bar = element("rect", class_="gain", x=0.0, y=0.0, width=width, height=8.0)
    return element("svg", bar, viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def _tokens(finding: Finding) -> Html | None:
    if not finding.worst_tokens:
        return None
    worst = sorted(finding.worst_tokens, key=lambda t: -t.margin)[:MAX_TOKENS_SHOWN]
    lead = element(
        "p",
        "The provider sent the ",
        element("mark", "marked", class_="claimed"),
        " token where the reference, with the same seed, draws the ",
        element("span", "outlined", class_="best"),
        " one. The margin is how far, in logits, the provider's token fell short. A symbol such as ",
        element("span", "↵", class_="ctl"),
        " stands for a character that cannot be seen.",
    )
    return _part(
        "The most telling tokens", lead, element("ol", *(_token_note(note) for note in worst), class_="tokens")
    )


def _token_note(note: TokenNote) -> Html:
    before = None if note.before is None else token(note.before[-100:], None, class_="context")
    after = None if note.after is None else token(note.after, None, class_="context after", limit=60)
    text = element(
        "div",
        before,
        token(note.claimed, note.claimed_id, name="mark", class_="claimed", limit=60),
        after,
        class_="line",
    )
    where = element("bdi", words.visible(note.sequence, 60))
    return element(
        "li",
        element("p", element("span", number(note.margin), class_="num"), " logits short", class_="margin"),
        text,
        element("p", "reference: ", token(note.best, note.best_id, class_="best", limit=60), class_="instead"),
        element("p", where, f", token {note.step:,}; ids {note.claimed_id} and {note.best_id}", class_="where"),
    )


def _coverage(finding: Finding) -> Html:
    asked = finding.tokens_requested
    rows: list[tuple[Child, ...]] = [
        (name, words.STATUSES.get(name, ""), _num(f"{count:,}"), _num(percent(count / asked if asked else None)))
        for name, count in finding.tokens_by_status.items()
    ]
    lead = element(
        "p",
        f"{finding.tokens_scored:,} of {asked:,} requested tokens were scored ({percent(finding.coverage)}). ",
        _refused(finding),
    )
    table = _table("Tokens by status", ("Status", "Meaning", "Tokens", "Share"), rows, "status") if rows else None
    groups: list[tuple[Child, ...]] = [
        (reason, _num(f"{len(ids):,}"), element("bdi", words.some(ids, 5)))
        for reason, ids in words.unsupported_groups(finding.results)
    ]
    refused = _table("Sequences that could not be audited", ("Reason", "Number", "Which"), groups, "refused")
    return _part("Coverage", lead, table, refused if groups else None)


def _refused(finding: Finding) -> str:
    if not finding.sequences_unsupported:
        return "No sequence had to be left out."
    return f"{finding.sequences_unsupported:,} of {plural(finding.sequences, 'sequence')} could not be audited."


def _test(finding: Finding) -> Html | None:
    test = finding.test
    if test is None:
        return None
    rows: list[tuple[Child, ...]] = [
        (element("bdi", s.name), _num(f"{s.sequences:,}"), _num(number(s.p_value)), _num(number(s.floor)))
        for s in test.stacks
    ]
    lead = element(
        "p",
        f"Test: {test.name}. Statistic: {test.statistic}. {words.how_tested(test).capitalize()}. ",
        "The unit is the sequence, since tokens of one sequence depend on each other. ",
        "The p-value is the largest over the honest stacks. ",
        _power(test),
    )
    caption = "The provider against each honest stack of the calibration"
    table = _table(caption, ("Honest stack", "Sequences", "p", "Smallest p possible"), rows, "stacks")
    prints = finding.fingerprints
    about = None if prints is None else element("p", f"Fingerprints: {words.fingerprints(prints)}.")
    draws = None if finding.distribution is None else element("p", words.distribution(finding.distribution))
    return _part("The test", lead, table if rows else None, draws, about)


def _power(test: TestSummary) -> str:
    if test.detect_sigma is None:
        return "What the test could have seen is not known."
    chance = "with a chance that is not known" if test.power is None else f"with a chance of {percent(test.power)}"
    text = f"A deviation of {number(test.detect_sigma)} logits would have been found {chance}."
    if test.further_sequences is None:
        return text + " How many more sequences would be enough is not known."
    if test.further_sequences:
        text += f" For a chance of 90 %, {plural(test.further_sequences, 'more sequence')} would be needed."
    return text


def _assumptions(finding: Finding) -> Html | None:
    if not finding.assumptions:
        return None
    return _part("What was assumed", element("ul", *(element("li", text) for text in finding.assumptions)))


def _provenance(finding: Finding) -> Html:
    source = finding.provenance
    rows: list[tuple[Child, ...]] = [
        ("Trace file", element("bdi", words.visible(name, 200)), _digest(digest)) for name, digest in source.traces
    ]
    rows += [
        (
            "Reference weights" if words.weights_known(source) else "Reference, as its server names it",
            element("bdi", words.visible(source.reference, 200)),
            _digest(source.weights),
        ),
        ("Calibration", source.calibration_file or "not from a file", _digest(source.calibration)),
        ("Sampler contract", finding.contract or words.UNKNOWN, None),
        ("Made by", f"veridifr {source.veridifr}, {words.moment(source.created)}", None),
    ]
    rows += [(name, _setting(v), None) for name, v in source.settings.items()]
    table = _table("Every input, with its SHA-256", ("Input", "What", "SHA-256"), rows, "provenance")
    return _part("Where it all came from", table)


def _setting(value: str | int | float | bool | None) -> str:
    if value is None:
        return words.UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else str(value)


def _digest(text: str) -> Html:
    return element("code", text or words.UNKNOWN, class_="digest")


def _num(text: str) -> Html:
    return element("span", text, class_="num")


def _part(title: str, *children: Child) -> Html:
    return element("section", element("h3", title), *children)


def _table(caption: str, heads: tuple[str, ...], rows: Iterable[tuple[Child, ...]], class_: str) -> Html:
    """A table whose cells also carry their column's name, for screens too narrow for columns."""
    head = element("tr", *(element("th", h, scope="col") if h else element("td") for h in heads))
    body = []
    for row in rows:
        cells = zip(heads, row, strict=True)
        first = element("th", next(iter(row)), scope="row")
        rest = [element("td", c, data_label=h or None) for h, c in list(cells)[1:]]
        body.append(element("tr", first, *rest))
    return element(
        "table", element("caption", caption), element("thead", head), element("tbody", join(body)), class_=class_
    )
