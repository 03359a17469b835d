"""Wording shared by the text and the HTML report: numbers, odds, names of causes, and text made safe to show.

Everything that comes from a trace is hostile until shown: a decoded token may hold terminal escapes, characters that
reverse the reading direction, or characters that cannot be seen. `visible` turns each into a mark.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime

from veridifr.finding import (
    DistributionSummary,
    Finding,
    FingerprintSummary,
    Interval,
    Provenance,
    SequenceResult,
    TestSummary,
    Verdict,
)

UNKNOWN = "not known"

TITLES = {
    Verdict.CONSISTENT: "Consistent",
    Verdict.DIVERGENT: "Divergent",
    Verdict.UNDECIDED: "Undecided",
    Verdict.NO_EVIDENCE: "No evidence",
    Verdict.UNSUPPORTED: "Unsupported",
}

CAUSES = {
    "none": "none sought",
    "sampler_contract": "another sampler",
    "temperature": "another temperature",
    "top_p": "another top-p",
    "top_k": "another top-k",
    "seed": "other seeds",
    "forward_pass": "another forward pass",
    "unexplained": "unexplained",
}

PARAMETERS = {"sigma": "effective logit noise"}

STATUSES = {
    "scored": "compared exactly with the reference",
    "bound": "scored by a lower bound, which can only favour the provider",
    "missing": "asked for but not there, or not replayed",
    "forced": "fixed by the verifier's own request, so no evidence",
}

_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_SUFFIX = re.compile(r"(?<=.)\.(jsonl|parquet)(\.gz)?$")
_UNSEEN = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols that draw nothing
_STACK = 4  # combining marks allowed on one base character; more would draw over other lines


def visible(text: str, limit: int | None = None) -> str:
    """`text` with every control, format, private and invisible character shown as a mark such as ``⟨U+202E⟩``.

    Line breaks and tabs become ``↵`` and ``⇥``. With `limit`, at most that many characters are kept, then ``…``.
    """
    return "".join(shown for shown, _ in pieces(text, limit))


def pieces(text: str, limit: int | None = None) -> list[tuple[str, bool]]:
    """What `visible` shows, as pairs: text, and whether it is our mark rather than the text itself."""
    cut = text if limit is None else text[:limit]
    parts: list[tuple[str, bool]] = []
    stacked = 0
    for char in cut:
        stacked = stacked + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        unseen = stacked > _STACK or _is_unseen(char)
        parts.append((_mark(char) if unseen else char, unseen))
    return parts if len(cut) == len(text) else [*parts, ("…", True)]


def _is_unseen(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] == "C" or category in ("Zl", "Zp") or (category == "Zs" and char != " ") or char in _UNSEEN


def _mark(char: str) -> str:
    return _MARKS.get(char) or f"⟨U+{ord(char):04X}⟩"


def number(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits, with a typographic minus; ``not known`` for None."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e7):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def chance(p_value: float | None) -> str:
    """A p-value; None means that no test was run."""
    return "not tested" if p_value is None else number(p_value)


def percent(share: float | None) -> str:
    """A share as a percentage; only an exact 1 reads 100 %, only an exact 0 reads 0 %."""
    if share is None:
        return UNKNOWN
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    for digits in (1, 2, 3, 4):
        text = f"{100 * share:.{digits}f}"
        if 0 < float(text) < 100 and (digits > 1 or 0.1 <= share < 0.9):
            return f"{text} %"
    return "under 0.0001 %" if share < 0.5 else "over 99.9999 %"


def span(interval: Interval | None) -> str:
    """An interval as ``low to high``."""
    return UNKNOWN if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def plural(count: int, noun: str) -> str:
    """``1 sequence``, ``12,000 tokens``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def rarity(p_value: float) -> str:
    """How often an honest provider looks at least this different: ``at most 1 of 1,200 audits``.

    The denominator is rounded down to two digits, so the odds stated are never smaller than `p_value`.
    """
    if p_value >= 0.1:
        return f"about {round(100 * p_value)} of 100 audits"
    if p_value < 1e-6:
        return "fewer than 1 of 1,000,000 audits"
    whole = math.floor(1 / p_value * (1 + 1e-9))
    unit = 10 ** max(len(str(whole)) - 2, 0)
    return f"at most 1 of {whole // unit * unit:,} audits"


def odds(finding: Finding) -> str:
    """The p-value and the error rate as one sentence."""
    if finding.p_value is None:
        return f"No p-value: no test was run (error rate asked for: α = {number(finding.alpha)})."
    how = "this different" if finding.verdict is Verdict.DIVERGENT else "at least this different"
    side = "above" if finding.p_value > finding.alpha else "below" if finding.p_value < finding.alpha else "equal to"
    return (
        f"An honest provider would look {how} in {rarity(finding.p_value)} "
        f"(p = {number(finding.p_value)}, {side} the error rate asked for, α = {number(finding.alpha)})."
    )


def how_tested(test: TestSummary) -> str:
    """What the test did, after its name: permutations, or where a sequential one ended."""
    ended = test.sequential
    if ended is None:
        return plural(test.permutations, "permutation")
    return (
        f"{ended.status} after {ended.n:,} of {plural(ended.ordered, 'sequence')}, e-value {number(ended.e_value)}, "
        f"order from seed {ended.seed}"
    )


MODES = {
    "seeded": "Each token was compared with what the seed's noise makes of the reference's logits.",
    "greedy": "At temperature 0 nothing is drawn: each token was compared with the reference's likeliest one.",
    "distribution": "The sampler's noise is not known, so only the distribution of the tokens was tested.",
}


def mode(finding: Finding) -> str | None:
    """What the verdict rests on and, where the noise is not known, how much weaker that is; None where not known."""
    said = MODES.get(finding.mode or "")
    summary = finding.distribution
    if said is None or summary is None:
        return said
    detect = None if finding.test is None else finding.test.detect_sigma
    if summary.tokens_needed is None or summary.seeded_tokens is None:
        return f"{said} That is weaker than with known seeds; by how much is not known here."
    ratio = summary.tokens_needed / summary.seeded_tokens
    weaker = f"{number(ratio, 2)} times as many" if ratio >= 1.5 else "about as many"
    return (
        f"{said} Finding errors of {number(detect)} logits takes about {plural(summary.tokens_needed, 'token')} this "
        f"way, {weaker} as with known seeds (about {summary.seeded_tokens:,})."
    )


def distribution(summary: DistributionSummary) -> str:
    """The two classical checks in one line."""
    side = "more" if summary.excess >= 0 else "less"
    return (
        f"-log p is {number(abs(summary.excess))} nats {side} than the entropy per token (p = "
        f"{number(summary.excess_p_value)}); ranks differ from uniform by {number(summary.rank_distance)} (p = "
        f"{number(summary.rank_p_value)}). Both take the reference's logits as exact; the verdict does not use them."
    )


def fingerprints(summary: FingerprintSummary) -> str:
    """What fingerprints say beside the tokens, in one line."""
    said = {
        "tokens": "the tokens speak, the fingerprints do not",
        "fingerprints": "the fingerprints speak, the tokens do not",
        "both": "tokens and fingerprints speak",
    }
    parts = [
        said.get(summary.speaks or "", "neither tokens nor fingerprints speak"),
        f"p = {number(summary.tokens_p_value)} for tokens and {number(summary.p_value)} for fingerprints",
        f"{plural(summary.sequences, 'sequence')} compared, {summary.missing:,} missing",
    ]
    if summary.tap is not None:
        parts.append(f"first depth that does not fit: {summary.tap}")
    groups: dict[str, list[str]] = {}
    for name, reason in summary.reasons.items():
        groups.setdefault(reason, []).append(name)
    most = max(groups.items(), key=lambda item: len(item[1]), default=None)
    if most is not None:
        parts.append(f"most often: {visible(most[0], 200)} ({some(most[1], 3)})")
    return "; ".join(parts) + f"; specification sha256 {visible(summary.spec, 12)}"


def cause(code: str, contract: str | None, parameter: str | None, estimate: float | None) -> str:
    """A cause in words: ``another temperature: 1.1``."""
    words = CAUSES.get(code, code)
    about = [contract] if contract else []
    if estimate is not None and parameter in (None, code):
        about.append(number(estimate, 4))
    elif parameter and parameter != code:
        name = PARAMETERS.get(parameter, parameter)
        about.append(name if estimate is None else f"{name} {number(estimate, 4)}")
    return f"{words}: {', '.join(about)}" if about else words


def times_honest(estimate: float | None, honest: float | None) -> str | None:
    """``26 times the honest value``, or None where that cannot be said."""
    if not estimate or not honest:
        return None
    ratio = estimate / honest
    return "about the honest value" if 0.8 < ratio < 1.25 else f"{number(ratio, 2)} times the honest value"


def unsupported_groups(results: Iterable[SequenceResult]) -> list[tuple[str, list[str]]]:
    """Reasons with the ids of the sequences they hold for, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for result in results:
        if result.reason is not None:
            groups.setdefault(result.reason, []).append(result.id)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))


def some(names: list[str], limit: int) -> str:
    """The first `limit` names and how many more there are."""
    shown = ", ".join(visible(name, 60) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit:,} more"


def file_name(path: str) -> str:
    """The last part of a path, whichever system wrote it."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or path


def moment(iso: str) -> str:
    """``23 November 2026, 21:14 UTC`` for an ISO 8601 time; anything else as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    if when.tzinfo is None:
        return iso
    utc = when.astimezone(UTC)
    return f"{utc.day} {_MONTHS[utc.month - 1]} {utc.year}, {utc.hour:02}:{utc.minute:02} UTC"


def weights_known(source: Provenance) -> bool:
    """Whether the reference's digest is of weights, not only of what a server says about itself."""
    return "served_model" not in source.settings


def name_of(finding: Finding) -> str:
    """A short name for one audit: its trace files."""
    names = [_SUFFIX.sub("", file_name(path)) for path, _ in finding.provenance.traces]
    return some(names, 2) if names else visible(finding.model, 60)
