"""The command `veridifr plan`: what to buy, as text or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veridifr.planning import Option, Plan

SCHEMA = "veridifr-plan/1"


def run(given: argparse.Namespace) -> int:
    """Plan and print; status 0, also where no number is enough: the answer then says so."""
    from veridifr.calibration_io import read_calibration
    from veridifr.planning import Aim, plan

    calibration, _ = read_calibration(given.calibration)
    aim = Aim(share=given.share, alpha=given.alpha, power=given.power, tokens=given.tokens)
    found = plan(calibration, given.deviation, aim, fingerprints=given.fingerprints)
    if given.json_output:
        print(json.dumps({"schema": SCHEMA, **dataclasses.asdict(found)}, indent=1, allow_nan=False))
    else:
        print("\n".join(lines(found)))
    return 0


def lines(found: Plan) -> list[str]:
    """The plan for a terminal."""
    aim, share = found.aim, "" if found.aim.share == 1.0 else f" on {found.aim.share:.0%} of the requests"
    times = f"{found.multiple:.2g} times the honest one"
    said = f"errors of hidden states {times}s" if found.sigma is None else f"logit noise {found.sigma:.3g}, {times}"
    text = [f"{found.deviation}{share}: {said}; false-positive rate {aim.alpha:g}, power {aim.power:g}"]
    if found.source is not None:
        text.append(f"  its size was {found.source}")
    text.append("  tokens of each   sequences   tokens in all   (fixed test)")
    text += [_row(option, option is found.best or option == found.best) for option in found.options]
    if found.best is not None:
        text += _best(found, found.best)
        text.append(
            "Contiguous prefixes from the start: scattered positions need the same text before them replayed too."
        )
    return text + [f"Note: {warning}" for warning in found.warnings]


def _row(option: Option, best: bool) -> str:
    sequences = "not enough" if option.fixed is None else f"{option.fixed:,}"
    total = "" if option.fixed_tokens is None else f"{option.fixed_tokens:,}"
    return f"  {option.tokens:>14,}   {sequences:>9}   {total:>13}{'   <- fewest tokens' if best else ''}"


def _best(found: Plan, best: Option) -> list[str]:
    text = [f"Buy {best.fixed:,} sequences of {best.tokens:,} tokens, each of a prompt of its own, for the fixed test."]
    if found.touched is not None and found.aim.share < 1.0:
        text.append(f"  The chance that one of them is a deviating request is {found.touched:.2f}.")
    plan = best.sequential
    if plan is not None:
        text.append(
            f"Or up to {plan.ordered:,} for --sequential: {plan.mean:.1f} used on average if the provider deviates "
            f"(90 % of audits: {plan.percentile_90:,} at most), {plan.honest_mean:.1f} if it is honest."
        )
    return text
