"""The tables of docs/fingerprints.md, from the figures of fingerprints.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _fingerprint_figures import TARGET
from _fingerprint_scores import TOKENS

START = "<!-- tables: written by benchmarks/fingerprints.py --write-docs -->\n"
END = "<!-- end of tables -->"
MACHINES = {"h200": "tb24m on an H200", "cpu": "tb24m on a CPU", "cpu_tb7m": "tb7m on a CPU"}
NAMES = {
    "int4": "int4 weights",
    "int8": "int8 weights",
    "fp8": "fp8 weights",
    "kv_fp8": "fp8 KV cache",
    "low_rank": "low-rank change of 1 %",
    "tb7m": "smaller model",
}
STACKS = {
    "pooled": "pooled, stacks in turn",
    "honest": "bfloat16, SDPA, padded batches",
    "honest_eager": "bfloat16, eager, batches of 7",
    "honest_one": "bfloat16, SDPA, one by one",
    "honest_decode": "bfloat16, SDPA, token by token with a cache, batches of 64",
    "honest_true": "bfloat16 by the CPU's own kernels, batches of 16",
    "honest_vllm": "vLLM, bfloat16, its own tokens",
    "honest_h200": "an H200, bfloat16, SDPA, padded batches",
    "honest_h200_eager": "an H200, bfloat16, eager, batches of 7",
    "honest_h200_one": "an H200, bfloat16, SDPA, one by one",
    "honest_h200_half": "an H200, float16, SDPA, padded batches",
    "honest_h200_vllm": "vLLM on an H200, bfloat16, its own tokens",
    "honest_h200_decode": "an H200, bfloat16, SDPA, token by token with a cache, batches of 64",
    "honest_half": "float16, SDPA, padded batches",
}
HEADER = "|  | " + " | ".join(f"{t} token{'s' if t > 1 else ''}" for t in TOKENS) + " |"
RULE = "|---|" + "---|" * len(TOKENS)


def block(figures: Mapping[str, Any]) -> str:
    """The Markdown between the markers."""
    lines: list[str] = []
    for name, found in figures.items():
        small = " (too small for more than a comparison)" if found["too_small"] else ""
        lines += [f"### {MACHINES[name]}: {found['batches']} batches a cell, each of another prompt{small}", ""]
        lines += _machine(found)
    return "\n" + "\n".join(lines)


def _machine(found: Mapping[str, Any]) -> list[str]:
    spec = f"`{found['spec']}`, {found['bytes_per_token']:g} bytes per token"
    lines = [f"AUC (95 % interval over prompts) by tokens used, {spec}:", "", HEADER, RULE]
    for name, rows in found["curve"].items():
        cells = [f"{_area(rows[str(t)]['auc'])} ({_span(rows[str(t)]['auc_95'])})" for t in TOKENS]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    if found["too_small"]:
        return [
            *lines,
            "",
            "An earlier emulation, whose honest errors are smaller than a real run's: too favourable.",
            "",
        ]
    lines += ["", "Standardised partial AUC, false-positive rate up to 1 %, of the same:", "", HEADER, RULE]
    for name, rows in found["curve"].items():
        cells = [f"{rows[str(t)]['pauc']:.3f} ({rows[str(t)]['pauc_95'][0]:.3f})" for t in TOKENS]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    lines += ["", "In brackets: lower end of the 95 % interval.", ""]
    lines += ["AUC of the same with one pass of the verifier, without sensitivities:", "", HEADER, RULE]
    for name, rows in found["curve_of_one_pass"].items():
        lines.append(f"| {NAMES[name]} | {' | '.join(_area(rows[str(t)]['auc']) for t in TOKENS)} |")
    lines.append("")
    lines += ["AUC of TOPLOC's best configuration and statistic, top-k 4 to 512, and its bytes per token:", ""]
    lines += [HEADER, RULE]
    for name, rows in found["toploc_best"].items():
        cells = [f"{_area(rows[str(t)]['auc'])} [{_bytes(rows[str(t)]['bytes_per_token'])}]" for t in TOKENS]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    lines += ["", *_cheapest(found), "", *_errors(found), "", *_false(found), ""]
    return [*lines, *_encodings(found), ""] if found["encodings"] else lines


def _errors(found: Mapping[str, Any]) -> list[str]:
    """The size of a coordinate's error, before any encoding."""
    sizes = found["error_per_coordinate"]
    told = [f"{STACKS.get(name, NAMES.get(name))} {size:.4f}" for name, size in sizes.items()]
    return ["Standard deviation of a coordinate's error: " + "; ".join(told) + "."]


def _cheapest(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Bytes per token of the cheapest configuration that reaches AUC {TARGET}, ours / TOPLOC's, and the share "
        "saved. \\* TOPLOC never reaches it: both at TOPLOC's best AUC. \\*\\* Ours reaches neither: both at our best "
        "AUC, in square brackets, with TOPLOC's best.",
        "",
        HEADER,
        RULE,
    ]
    for name, rows in found["cheapest"].items():
        cells = []
        for tokens in TOKENS:
            row = rows[str(tokens)]
            weaker = row["best"]["ours"] < min(TARGET, row["best"]["toploc"])
            star = "**" if weaker else "" if row["toploc_reaches"] else "*"
            star = star.replace("*", "\\*")
            aucs = f" [{_area(row['best']['ours'])}, {_area(row['best']['toploc'])}]" if weaker else ""
            sizes = f"{_bytes(row['ours']['bytes_per_token'])} / {_bytes(row['toploc']['bytes_per_token'])}"
            cells.append(f"{sizes}{star} ({row['saved']:.0%}){aucs}")
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    names = list(found["cheapest"])
    lines += [
        "",
        f"One specification for all deviations: tokens to AUC {TARGET}, and bytes saved there over TOPLOC's cheapest:",
        "",
        f"| specification | bytes per token | {' | '.join(NAMES[n] for n in names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for label, row in found["specs"].items():
        pairs = [(row["tokens_to_auc_999"][n], row["bytes_saved_over_toploc"][n]) for n in names]
        cells = ["not in 32" if saved is None else f"{tokens} ({saved:.0%})" for tokens, saved in pairs]
        lines.append(f"| {label} | {row['bytes_per_token']:g} | {' | '.join(cells)} |")
    lines += [
        "",
        "AUC of the size of the error itself (root mean square of 32 exact coordinates of each token, relative "
        "to its sensitivity):",
        "",
    ]
    lines += [HEADER, RULE]
    for name, rows in found["auc_of_error_size"].items():
        lines.append(f"| {NAMES[name]} | {' | '.join(_area(rows[str(t)]) for t in TOKENS)} |")
    return lines


def _false(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "Honest batches called deviating, held out, by alpha: the largest share over 1 to 32 tokens, with the bounds "
        "that it keeps with 99.9 % each, and the smallest:",
        "",
    ]
    lines += ["| honest stack | 0.01 | 0.05 |", "|---|---|---|"]
    rows = found["false_positives"]
    for stack in rows[str(TOKENS[0])]:
        cells = []
        for alpha in ("0.01", "0.05"):
            items = [rows[str(t)][stack][alpha] for t in TOKENS]
            if items[0]["rate"] is None:
                cells.append("too few prompts")
                continue
            items.sort(key=lambda item: item["rate"])
            low, high = items[-1]["bounds_999"]
            cells.append(f"{items[-1]['rate']:.2%} ({low:.2%} to {high:.2%}), {items[0]['rate']:.2%}")
        known = stack.removeprefix("unknown ")
        told = STACKS[known] + ("" if known == stack else ", absent from the calibration")
        lines.append(f"| {told} | {' | '.join(cells)} |")
    for name, first in found["identical_stacks"].items():
        lines += ["", f"{STACKS[name]}: bit for bit the same as {STACKS[first]}, so counted once."]
    return lines


def _encodings(found: Mapping[str, Any]) -> list[str]:
    names = [name for name in NAMES if name in found["curve"]]
    lines = ["AUC of encodings at about 4 bytes per token, at 2 tokens:", ""]
    lines += [f"| encoding | bytes | {' | '.join(NAMES[n] for n in names)} |", "|---|---|" + "---|" * len(names)]
    for label, row in found["encodings"].items():
        cells = [_area(row["auc"][name]["2"]) for name in names]
        lines.append(f"| {label} | {row['bytes_per_token']:g} | {' | '.join(cells)} |")
    return lines


def _area(value: float) -> str:
    return "1" if value == 1 else f"{value:.4f}"


def _span(interval: list[float]) -> str:
    return f"{_area(interval[0])} to {_area(interval[1])}"


def _bytes(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
