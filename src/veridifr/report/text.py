"""A finding as plain text: aligned, without colour, the verdict first."""

from __future__ import annotations

import textwrap

from veridifr.finding import Finding
from veridifr.report import words
from veridifr.report.plain import to_plain
from veridifr.report.words import number, percent, plural, span, visible

WIDTH = 100
_LABEL = 13


def to_text(finding: Finding) -> str:
    """The finding for a terminal or a log, at most `WIDTH` columns, ending in a line feed.

    Everything from traces is shown through `visible`, so no terminal escape can come through. Raises ValueError
    naming the field if a number is not finite.
    """
    to_plain(finding, "finding")
    blocks = [
        _verdict(finding),
        _what(finding),
        _figures(finding),
        _diagnosis(finding),
        _open_ends(finding),
        _provenance(finding),
    ]
    return "\n\n".join("\n".join(_entry(label, text) for label, text in block) for block in blocks if block) + "\n"


def _entry(label: str, text: str) -> str:
    """One labelled paragraph with a hanging indent; words too long for the line are broken."""
    return textwrap.fill(
        visible(text),
        WIDTH,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
    )


Block = list[tuple[str, str]]


def _verdict(finding: Finding) -> Block:
    lines = [(words.TITLES[finding.verdict].upper(), finding.verdict.sentence), ("", words.odds(finding))]
    lines.append(("Reason", finding.reason))
    if finding.next_step is not None:
        lines.append(("Next step", finding.next_step))
    return lines


def _what(finding: Finding) -> Block:
    lines = [
        ("Audited", f"{visible(finding.model, 200)}, claimed to run on {visible(finding.engine, 300)}"),
        ("Sampler", finding.contract or words.UNKNOWN),
    ]
    mode = words.mode(finding)
    lines += [] if mode is None else [("Mode", mode)]
    test = finding.test
    if test is not None:
        lines.append(("Test", f"{test.name}; statistic: {test.statistic}; {words.how_tested(test)}"))
        lines += [
            ("", f"against {s.name}: p = {number(s.p_value)}, {plural(s.sequences, 'honest sequence')}")
            for s in test.stacks
        ]
        if test.detect_sigma is not None:
            power = "a chance that is not known" if test.power is None else f"a chance of {percent(test.power)}"
            lines.append(("", f"had {power} to see a deviation of {number(test.detect_sigma)} logits"))
    if finding.distribution is not None:
        lines.append(("Draws", words.distribution(finding.distribution)))
    if finding.fingerprints is not None:
        lines.append(("Fingerprints", words.fingerprints(finding.fingerprints)))
    return lines


def _figures(finding: Finding) -> Block:
    noise = finding.effective_logit_noise
    interval = "" if noise.interval is None else f" ({span(noise.interval)})"
    ratio = words.times_honest(noise.estimate, noise.honest)
    by_status = ", ".join(f"{count:,} {visible(name, 40)}" for name, count in finding.tokens_by_status.items())
    tokens = f"{finding.tokens_scored:,} scored of {finding.tokens_requested:,} requested"
    return [
        ("Match", f"{_match(finding.exact_match)}; honest {percent(finding.honest_exact_match)}"),
        (
            "Logit noise",
            f"{number(noise.estimate)}{interval}; honest {number(noise.honest)}" + (f"; {ratio}" if ratio else ""),
        ),
        ("Mean margin", f"{number(finding.mean_margin)}" + ("" if finding.mean_margin is None else " logits")),
        ("Sequences", f"{finding.sequences:,} audited, {finding.sequences_unsupported:,} unsupported"),
        ("Tokens", f"{tokens} ({percent(finding.coverage)})" + (f": {by_status}" if by_status else "")),
    ]


def _match(share: float | None) -> str:
    return percent(share) if share is None else f"{percent(share)} of tokens"


def _diagnosis(finding: Finding) -> Block:
    diagnosis = finding.diagnosis
    if diagnosis.code == "none" and not diagnosis.sentence:
        return []
    named = words.cause(diagnosis.code, diagnosis.contract, diagnosis.parameter, diagnosis.estimate)
    lines = [
        ("Diagnosis", named + ("" if diagnosis.interval is None else f", 95 % interval {span(diagnosis.interval)}"))
    ]
    if diagnosis.sentence:
        lines.append(("", diagnosis.sentence))
    if diagnosis.alternatives:
        lines.append(("", "tried (gain over the claim, nats per token):"))
    best_first = sorted(diagnosis.alternatives, key=lambda a: -a.gain)
    lines += [
        ("", f"{number(a.gain):>9}  {words.cause(a.code, a.contract, a.parameter, a.estimate)}") for a in best_first
    ]
    return lines


def _open_ends(finding: Finding) -> Block:
    lines = [("Assumed" if i == 0 else "", text) for i, text in enumerate(finding.assumptions)]
    groups = words.unsupported_groups(finding.results)
    lines += [
        ("Unsupported" if i == 0 else "", f"{plural(len(ids), 'sequence')}: {reason} ({words.some(ids, 3)})")
        for i, (reason, ids) in enumerate(groups)
    ]
    return lines


def _provenance(finding: Finding) -> Block:
    source = finding.provenance
    lines = [
        ("Traces" if i == 0 else "", f"{words.file_name(name)}  sha256 {digest[:12]}")
        for i, (name, digest) in enumerate(source.traces)
    ]
    about = "weights" if words.weights_known(source) else "weights not checked; what the server names:"
    where = "" if source.calibration_file is None else f"{words.file_name(source.calibration_file)}  "
    return [
        *lines,
        ("Reference", f"{source.reference}  {about} sha256 {source.weights[:12]}"),
        ("Calibration", f"{where}sha256 {source.calibration[:12]}"),
        ("Made", f"veridifr {source.veridifr}, {source.created}"),
    ]
