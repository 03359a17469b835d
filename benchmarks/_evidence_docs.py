"""The tables of docs/results.md, from the raw part of results/evidence.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from veridifr.likelihood import SIGMA_GRID

START = "<!-- evidence: written by benchmarks/evidence.py -->\n"
END = "<!-- end of evidence -->"
SOURCES = {
    "h200": "vLLM 0.24 on an H200, tb24m (24 M parameters), 300 tokens a sequence",
    "gpu": "vLLM 0.24 on an H200, models of 101 M parameters and of 345 M (mixture of experts), 128 tokens a sequence",
    "cpu": "vLLM 0.32 and transformers on a CPU, tb7m (7 M parameters), 64 tokens a sequence",
    "small": "The reduced table of `make experiments-small`",
}
MACHINES = {
    "gpu": "an H200",
    "stacks_gpu": "an H200",
    "cpu": "a CPU",
    "stacks_cpu": "a CPU",
    "small": "a CPU, by `make experiments-small`",
}
SURE = 0.999
MARKS = {"ahead": "▲", "tied": "=", "behind": "▼"}
KINDS = ("tokens", "activations")
_OWN = {"mean_clipped_margin": "mean clipped margin", "match_rate": "match rate", "likelihood": "likelihood"}
"""Columns on our replay, and what they are called."""
PEERS = {
    "mean_clipped_margin": "mean clipped margin",
    "paper_likelihood": "paper's likelihood",
    "match_rate": "match rate",
    "cross_entropy": "cross-entropy",
    "rank": "rank",
}


def block(raw: Mapping[str, Any]) -> str:
    """Everything between the two marks."""
    return "\n".join(_lines(raw)) + "\n"


def _lines(raw: Mapping[str, Any]) -> Iterator[str]:
    rows = raw["rows"]
    counts = ", ".join(f"{sum(row['status'] == status for row in rows)} {status}" for status in MARKS)
    ahead = sum(row["status"] == "ahead" for row in rows)
    yield (
        f"{len(rows)} rows: {counts}; {ahead / len(rows):.1%} are ahead. Another {raw['beyond']}, of more tokens than "
        "one that is certain, are left out and none of them is behind: with them it would be at least "
        f"{ahead / (len(rows) + raw['beyond']):.1%}."
    )
    yield ""
    for source in sorted({row["source"] for row in rows}, key=list(SOURCES).index):
        yield f"### {SOURCES[source]}"
        yield ""
        models = list(dict.fromkeys(row["model"] for row in rows if row["source"] == source))
        for model, kind in product(models, KINDS):
            chosen = [row for row in rows if (row["source"], row["model"], row["kind"]) == (source, model, kind)]
            if chosen:
                title = kind if len(models) == 1 else f"{model}, {kind}"
                yield from _table(chosen, title) if kind == "tokens" else _table_by_bytes(chosen, title)
    yield from _configurations(raw["configurations"])
    yield from _together(raw["together"])
    yield from _package(raw["package"])
    yield from _stacks(raw)
    yield from _rates(raw)


def _table(rows: list[dict[str, Any]], title: str) -> Iterator[str]:
    budgets = sorted({row["budget"] for row in rows})
    yield f"| {title}: AUC, ours / closest peer | " + " | ".join(f"{budget:,}" for budget in budgets) + " |"
    yield "|---" * (len(budgets) + 1) + "|"
    for deviation in dict.fromkeys(row["deviation"] for row in rows):
        own = {row["budget"]: row for row in rows if row["deviation"] == deviation}
        certain = min((budget for budget, row in own.items() if row["certain"]), default=budgets[-1])
        missing = {budget: "too small" for budget in budgets if min(own) < budget < certain}
        cells = (_cell(own[budget]) if budget in own else missing.get(budget, "") for budget in budgets)
        yield f"| {_label(own.values())} | " + " | ".join(cells) + " |"
    yield ""


def _table_by_bytes(rows: list[dict[str, Any]], title: str) -> Iterator[str]:
    limits = sorted({row["bytes"] for row in rows})
    sizes = " | ".join(f"{limit} bytes" for limit in limits)
    yield f"| {title}: AUC, ours / closest peer, each within | {sizes} |"
    yield "|---" * (len(limits) + 1) + "|"
    for deviation, budget in dict.fromkeys((row["deviation"], row["budget"]) for row in rows):
        own = {row["bytes"]: row for row in rows if (row["deviation"], row["budget"]) == (deviation, budget)}
        tokens = f"{budget} token" + ("s" if budget > 1 else "")
        yield (
            f"| {_label(own.values())}, {tokens} | "
            + " | ".join(_cell(own[limit]) if limit in own else "" for limit in limits)
            + " |"
        )
    yield ""


def _label(rows: Iterable[Mapping[str, Any]]) -> str:
    """The deviation of these rows."""
    first = next(iter(rows))
    return str(first["deviation"]) + (" (simulated)" if first["simulated"] else "")


def _bytes(name: str) -> int:
    """Bytes a token of a fingerprint by its name: coordinates of two bits each, 16 where it names none."""
    words = name.split()
    return int(words[1]) // 4 if len(words) > 1 else 4


def _configurations(found: list[dict[str, Any]]) -> Iterator[str]:
    for model in dict.fromkeys(row["model"] for row in found):
        rows = [row for row in found if row["model"] == model]
        names = list(rows[0]["auc"])
        yield f"### Fingerprints by what they cost: {model}, AUC at 2 tokens"
        yield ""
        steps = (name.split()[-1] if " " in name else "2^-4" for name in names)
        sizes = (f"{size} byte" + ("s" if size > 1 else "") for size in map(_bytes, names))
        labels = (f"{size}, step {step}" for size, step in zip(sizes, steps, strict=True))
        yield "| deviation | " + " | ".join(labels) + " |"
        yield "|---" * (len(names) + 1) + "|"
        for row in rows:
            yield f"| {row['deviation']} | " + " | ".join(_auc(row["auc"][name]) for name in names) + " |"
        yield ""
        yield "Steps after a comma are the pattern: so many powers of two coarser, coordinate by coordinate."
        yield ""


def _together(found: list[dict[str, Any]]) -> Iterator[str]:
    """Deviations that a fingerprint alone is not certain of."""
    yield "### Tokens and a fingerprint together, AUC on the same tokens"
    yield ""
    yield "| deviation | tokens | likelihood score of the tokens | fingerprint of 4 bytes a token | both |"
    yield "|---|---|---|---|---|"
    for row in found:
        if row["auc"][1] < SURE:
            cells = " | ".join(map(_auc, row["auc"]))
            yield f"| {row['deviation']} ({row['model']}) | {row['tokens']} | {cells} |"
    yield ""
    yield "Both: their logarithms are added. Where the fingerprint alone has 0.999, nothing can be added to it."
    yield ""


def _cell(row: Mapping[str, Any]) -> str:
    ours, peer = row["auc"][row["ours"]], row["auc"][row["closest_peer"]]
    return f"{_auc(ours)} / {_auc(peer)} {MARKS[row['status']]}"


def _auc(value: float) -> str:
    return "1" if value >= 0.99995 else f"{value:.4f}".removeprefix("0") if value >= 0.99 else f"{value:.3f}"[1:]


def _package(package: Mapping[str, Any]) -> Iterator[str]:
    for model, found in package.get("found", {}).items():
        tokens = f"{package['sequences']} sequences of each provider"
        yield f"### The installed package {package['name']}, as it is, on the same sequences of {model}"
        yield ""
        yield f"| {tokens} | matching tokens, as it says | its margin | its matches | {' | '.join(_OWN.values())} |"
        yield "|---" * (4 + len(_OWN)) + "|"
        for name, auc in found["auc"].items():
            cells = [_auc(auc[column]) for column in ("package_margin", "package_match", *_OWN)]
            yield f"| {name} | {found['exact_match'][name]:.1%} | " + " | ".join(cells) + " |"
        yield ""
        honest = " and ".join(
            f"{share:.1%} of {name}" for name, share in found["exact_match"].items() if name not in found["auc"]
        )
        yield (
            f"AUC of one whole sequence against honest V1 ones, of whose tokens it matches {honest}. The last three "
            "columns are the same statistics on our replay, and our score. Honest traffic of the V2 runner should get "
            "0.5: the package has V1's noise alone."
        )
        yield ""


def _stacks(raw: Mapping[str, Any]) -> Iterator[str]:
    for source, models in raw["stacks"].items():
        for model, stacks in models.items():
            references = list(next(iter(stacks.values())))
            yield f"### Honest stacks of {model} on {MACHINES[source]}"
            yield ""
            yield "| tokens of | " + " | ".join(f"against {name}" for name in references) + " |"
            yield "|---" * (len(references) + 1) + "|"
            for name, found in stacks.items():
                yield f"| {name} | " + " | ".join(_stack(found[reference]) for reference in references) + " |"
            yield ""
            yield (
                "Each cell: matching tokens, mean margin in logits, effective logit noise in logits. References are of "
                "transformers, of the model's whole output at once, with sdpa attention if none is named."
            )
            yield ""


def _stack(found: Mapping[str, float]) -> str:
    """A cell; the smallest noise of the grid that it is fitted on is a bound."""
    least = "at most " if found["sigma"] <= SIGMA_GRID[0] * 1.001 else ""
    return f"{found['exact_match']:.2%}, {found['mean_margin']:.5f}, {least}{found['sigma']:.4f}"


def _rates(raw: Mapping[str, Any]) -> Iterator[str]:
    yield "### False positives, honest stacks pooled"
    yield ""
    yield "| sequences from | stacks | audits of 20 sequences | called divergent at 0.01 |"
    yield "|---|---|---|---|"
    for source, one in raw["honest"].items():
        rate = one["rejected"] / one["audits"]
        name, _, model = source.partition("/")
        label = f"{SOURCES[name]}: {model}" if model else SOURCES[name]
        yield f"| {label} | {one['stacks']} | {one['audits']:,} | {rate:.2%} |"
    yield ""
    found = raw["int8"]
    peers = ", ".join(f"{PEERS[name]} {found['peers'][name]:.3f}" for name in PEERS)
    yield (
        f"int8 weights and activations (real kernels, tb24m, H200) at {found['tokens']:,} tokens: partial AUC "
        f"(false-positive rate up to 1 %) **{found['pauc']:.3f}**; {peers}. Measured on {found['batches'][0]} honest "
        f"and {found['batches'][1]} deviating batches, all that there are: fewer than 1,000."
    )
    yield ""
