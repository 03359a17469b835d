"""The two pictures of the report as inline SVG: scores per sequence, and effective logit noise on a number line.

Each is drawn twice by the caller, wide and narrow, and the style sheet shows the one that fits: text in a scaled SVG
would become too small to read on a phone. Colours come from the style sheet by class; position and shape carry the
same information.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veridifr.finding import LogitNoise
from veridifr.report.axis import Axis, score_axis, size_axis
from veridifr.report.markup import Html, element
from veridifr.report.words import number, plural, span, visible

WIDE, NARROW = 760, 360
_PAD = 0.0
_CHAR = 6.6
"""Pixels that a character of the labels takes at most on average."""
_DOTS = 300
"""Rows with more sequences than this are drawn as columns of a histogram."""


@dataclass(frozen=True)
class Row:
    """One group of per-sequence scores."""

    name: str
    scores: Sequence[float]
    audited: bool


def score_picture(audited: Sequence[float], honest: Mapping[str, Sequence[float]], statistic: str, width: int) -> Html:
    """Per-sequence scores of the provider over those of each honest stack, on one axis. No row may be empty."""
    rows = [Row("This provider", audited, True)]
    rows += [Row(f"Honest: {name}", scores, False) for name, scores in honest.items()]
    pool = [s for row in rows[1:] for s in row.scores]
    everything = [*audited, *pool]
    axis = score_axis(everything, statistics.median(pool or everything), _PAD, width - _PAD)
    height = 74 if width == WIDE else 68
    bottom = 14 + height * len(rows)
    parts: list[Html | None] = [_band(axis, pool, bottom)]
    for index, row in enumerate(rows):
        parts += _score_row(axis, row, 14 + height * index, height)
    note = "" if axis.kind == "linear" else f", logarithmic above {number(axis.unit)}"
    caption = f"{statistic}, one mark per sequence{note}"
    parts += _axis_marks(axis, bottom, caption, 10 if width == WIDE else 5)
    label = "Scores per sequence. " + " ".join(
        f"{row.name}: {plural(len(row.scores), 'sequence')}, median {number(statistics.median(row.scores))}."
        for row in rows
    )
    return _svg(parts, width, bottom + 28 + 16 * len(_wrapped(caption, axis.right - axis.left)), label)


def honest_range(pool: Sequence[float]) -> tuple[float, float]:
    """The range of the middle 98 % of honest scores."""
    ordered = sorted(pool)
    cut = int(0.01 * len(ordered))
    return ordered[cut], ordered[len(ordered) - 1 - cut]


def _band(axis: Axis, pool: Sequence[float], bottom: float) -> Html | None:
    if not pool:
        return None
    left, right = (axis.at(v) for v in honest_range(pool))
    return element("rect", class_="band", x=left, y=4.0, width=max(right - left, 2.0), height=bottom - 4.0)


def _score_row(axis: Axis, row: Row, top: float, height: float) -> list[Html | None]:
    middle = top + 20 + (height - 26) / 2
    group = "audited" if row.audited else "honest"
    median = axis.at(statistics.median(row.scores))
    kind = _dots if len(row.scores) <= _DOTS else _columns
    count = plural(len(row.scores), "sequence")
    value = f"{count} · median {number(statistics.median(row.scores))}"
    if axis.right - axis.left < WIDE / 2 and len(row.name) > 22:
        value = f"median {number(statistics.median(row.scores), 2)}"
    room = axis.right - axis.left - _CHAR * (len(value) + 1)
    return [
        _clipped(row.name, f"row by-{group}", axis.left, top + 11, room),
        element("text", value, class_="value", x=axis.right, y=top + 11, text_anchor="end"),
        element("line", class_="base", x1=axis.left, x2=axis.right, y1=middle, y2=middle),
        *kind(axis, row, middle, height - 30),
        element("line", class_=f"median {group}", x1=median, x2=median, y1=middle - 19, y2=middle + 19),
    ]


def _bins(axis: Axis, scores: Sequence[float], step: float) -> dict[int, int]:
    bins: dict[int, int] = {}
    for score in scores:
        place = round((axis.at(score) - axis.left) / step)
        bins[place] = bins.get(place, 0) + 1
    return bins


def _dots(axis: Axis, row: Row, middle: float, room: float) -> list[Html]:
    """Marks stacked symmetrically where they would overlap; circles for honest runs, diamonds for the provider."""
    radius = 3.4 if len(row.scores) <= 80 else 2.6
    step = 2 * radius + 0.6
    marks: list[Html] = []
    for place, count in sorted(_bins(axis, row.scores, step).items()):
        pitch = min(step, room / count)
        for level in range(count):
            x, y = axis.left + place * step, middle + (level - (count - 1) / 2) * pitch
            marks.append(_mark(x, min(y, middle + room / 2), radius, row.audited))
    return marks


def _mark(x: float, y: float, radius: float, audited: bool) -> Html:
    if not audited:
        return element("circle", class_="dot honest", cx=x, cy=y, r=radius - 0.4)
    r = radius + 0.5
    return element("path", class_="dot audited", d=f"M{x:.1f} {y - r:.1f}l{r:g} {r:g}l{-r:g} {r:g}l{-r:g} {-r:g}z")


def _columns(axis: Axis, row: Row, middle: float, room: float) -> list[Html]:
    bins = _bins(axis, row.scores, 4.0)
    most = max(bins.values())
    group = "audited" if row.audited else "honest"
    return [
        element(
            "rect",
            class_=f"dot {group}",
            x=axis.left + place * 4.0 - 1.6,
            y=middle - room * count / most / 2,
            width=3.2,
            height=max(room * count / most, 1.0),
        )
        for place, count in sorted(bins.items())
    ]


def _axis_marks(axis: Axis, y: float, label: str, most: int) -> list[Html]:
    marks = [element("line", class_="axis", x1=axis.left, x2=axis.right, y1=y, y2=y)]
    free = axis.left - 100
    for tick in axis.ticks(most):
        x, text = axis.at(tick), number(tick)
        half = 3.6 * len(text)
        marks.append(element("line", class_="axis", x1=x, x2=x, y1=y, y2=y + 4))
        if x - half > free:  # a label that would touch the one before it is left out
            middle = min(max(x, half), axis.right + _PAD - half)
            marks.append(element("text", text, class_="tick", x=middle, y=y + 17, text_anchor="middle"))
            free = x + half + 4
    lines = _wrapped(label, axis.right - axis.left)
    room = axis.right - axis.left
    return marks + [_clipped(t, "label", axis.left, y + 38 + 16 * i, room) for i, t in enumerate(lines)]


def _clipped(text: str, class_: str, x: float, y: float, room: float) -> Html:
    """A line of text of unknown length, cut off at `room` pixels by a frame of its own."""
    line = element("text", visible(text, 120), class_=class_, x=0.0, y=15.0)
    return element("svg", line, x=x, y=y - 15, width=room, height=21.0, aria_hidden="true")


def _wrapped(label: str, width: float) -> list[str]:
    """SVG text does not wrap by itself."""
    return textwrap.wrap(visible(label), int(width / _CHAR), max_lines=3, placeholder=" …")


def noise_picture(noise: LogitNoise, detect: float | None, width: int) -> Html | None:
    """Effective logit noise of the provider and of honest runs, and the deviation tested for; None if not known."""
    lanes = [
        ("This provider", "audited", noise.estimate, noise.interval),
        ("Honest runs", "honest", noise.honest, None),
        ("Smallest deviation tested for", "detect", detect, None),
    ]
    known = [lane for lane in lanes if lane[2] is not None]
    values = [v for v in (noise.estimate, noise.honest, detect, *(noise.interval or ())) if v is not None and v >= 0]
    if not any(values):
        return None
    axis = size_axis(values, _PAD, width - _PAD)
    parts: list[Html | None] = []
    for index, (name, group, value, interval) in enumerate(known):
        if value is not None:
            parts += _lane(axis, name, group, value, interval, 14.0 + 48 * index)
    bottom = 18.0 + 48 * len(known)
    parts += _axis_marks(axis, bottom, "effective logit noise, logits (logarithmic)", 8 if width == WIDE else 5)
    label = "Effective logit noise. " + " ".join(f"{name}: {number(value)} logits." for name, _, value, _ in known)
    return _svg(parts, width, bottom + 44, label)


def _lane(
    axis: Axis, name: str, group: str, value: float, interval: tuple[float, float] | None, top: float
) -> list[Html | None]:
    x, y = axis.at(value), top + 26
    text = f"{number(value)}" + (f" ({span(interval)})" if interval is not None else "")
    parts: list[Html | None] = [
        element("text", name, class_=f"row by-{group}", x=axis.left, y=top + 8),
        element("text", text, class_="value", x=axis.right, y=top + 8, text_anchor="end"),
        element("line", class_="base", x1=axis.left, x2=axis.right, y1=y, y2=y),
    ]
    if interval is not None:
        ends = [axis.at(v) for v in interval]
        parts.append(element("line", class_=f"interval {group}", x1=ends[0], x2=ends[1], y1=y, y2=y))
        parts += [element("line", class_=f"whisker {group}", x1=e, x2=e, y1=y - 5, y2=y + 5) for e in ends]
    if group == "detect":
        parts.append(element("line", class_="detect", x1=x, x2=x, y1=y - 9, y2=y + 9))
    else:
        parts.append(_mark(x, y, 5.4, group == "audited"))
    return parts


def _svg(parts: Sequence[Html | None], width: int, height: float, label: str) -> Html:
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height:g}",
        role="img",
        aria_label=label,
        class_="wide" if width == WIDE else "narrow",
    )
