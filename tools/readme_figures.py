"""Write the README's figures from benchmarks/results, so that none is typed by hand.

usage: readme_figures.py           rewrite the block between the two markers in README.md
       readme_figures.py --check   exit 1 if the block is not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"unfiltered": "unfiltered", "hot": "temperature 1.3, unfiltered"}
START = "<!-- figures: written by tools/readme_figures.py from benchmarks/results -->\n"
END = "<!-- end of figures -->"


def block(results: Path) -> str:
    """The Markdown between the markers."""
    replay = _figures(results / "token_difr_cpu.json")
    audits = _figures(results / "audits_cpu.json")
    prints = _figures(results / "fingerprints.json")["h200"]
    matches = replay["exact_match"]
    added, memory = replay["noise_and_scores_over_forward"], replay["peak_memory_over_forward"]
    lowest = min(matches, key=lambda name: matches[name])
    rates = audits["false_positive_rate"]
    rows = [
        _beside_peers(_figures(results / "evidence.json")),
        (
            f"honest tokens of vLLM 0.24 on an H200 that a float32 CPU reference re-derives exactly ({len(matches)} "
            "trace files, V1 and V2 runner)",
            f"{min(matches.values()):.2%} ({lowest}) to {max(matches.values()):.2%}",
        ),
        (
            "time that noise, filters and scores add to the bare forward pass (24 M parameters, 2 cores)",
            f"{added['paper']:.0%} with top-k 50 and top-p 0.95, {added['unfiltered']:.0%} unfiltered",
        ),
        ("peak memory over that of the forward pass", _plain(memory)),
        (
            "noise values per token at a vocabulary of 128256, unfiltered, temperature 1 (synthetic flat rows)",
            f"{replay['hashes_per_token_128256']:.0f}",
        ),
        (
            "honest audits called divergent, by the rate asked for",
            ", ".join(f"{rate:.2%} at {float(alpha):g}" for alpha, rate in rates.items()),
        ),
        (
            f"honest audits for which a cause would be named, of {audits['honest_named_audits']}",
            "{:.1%} (95 % interval {:.1%} to {:.1%})".format(audits["honest_named"], *audits["honest_named_interval"]),
        ),
        *_fingerprints(prints),
        *_engine(_figures(results / "vllm_h200.json")),
    ]
    lines = ["| figure | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]
    verdicts, causes = audits["verdicts"], audits["diagnoses"]
    lines += ["", "| provider, 40 to 60 sequences of 300 tokens, alpha 0.01 | verdict | cause named |", "|---|---|---|"]
    lines += [f"| {name} | {verdicts[name]} | {_cause(causes[name])} |" for name in verdicts]
    return "\n".join([*lines, *_decisions(_figures(results / "decisions.json"))]) + "\n"


def _beside_peers(found: dict[str, Any]) -> tuple[str, str]:
    return (
        "AUC beside every other detector's at its best, on the same evidence of real engines (deviation x model x "
        "budget; [rows](docs/results.md))",
        f"of {found['rows']} rows {found['rows_ahead']} are ahead, {found['rows_tied']} tied (in "
        f"{found['rows_saturated']} rows both are certain, or both blind), {found['rows_behind'] or 'none'} behind",
    )


def _decisions(figures: dict[str, Any]) -> list[str]:
    """Tokens that a decision takes, and the tests' error rates and sample sizes."""
    needed = figures["tokens_at_pauc_0.9"]
    columns = {
        "likelihood": "veridifr",
        "mean_clipped_margin": "mean clipped margin",
        "paper_likelihood": "the paper's likelihood",
        "match_rate": "match rate",
    }
    lines = [
        "",
        "Contiguous tokens until the partial AUC (false-positive rate up to 1 %) is 0.9, by statistic, on the same"
        " evidence; – is not within 1,800. With fewer than *any* no detector that sees tokens can"
        " ([why](docs/statistics.md#what-tokens-can-show)):",
        "",
        "| deviation | any | " + " | ".join(columns.values()) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name in sorted(needed, key=lambda name: (name.startswith("held."), name)):
        shown = [f"{figures['fewest_tokens_at_pauc_0.9'][name]:.0f}"]
        for statistic in columns:
            value, row = needed[name][statistic], figures["pauc"][name]["30"]
            shown.append("under 30" if row[statistic] >= 0.9 else "–" if value is None else f"{value:.0f}")
        lines.append(f"| {name.removeprefix('held.')} | " + " | ".join(shown) + " |")
    lines += _settings(figures)
    rates = {
        alpha: [
            row["rate"]
            for null in ("real", "synthetic")
            for row in figures["false_positive_rate"][null][alpha].values()
        ]
        for alpha in figures["false_positive_rate"]["real"]
    }
    ratios, cheats = figures["sequential_over_fixed"].values(), figures["selective_cheat_ratio"].values()
    rows = [
        (
            "honest audits called divergent, the most of the fixed test and four ways to stop, on real scores and on "
            "a synthetic null (10,000 audits each; no 99.9 % lower bound exceeds alpha)",
            ", ".join(f"{max(values):.2%} at {float(alpha):g}" for alpha, values in rates.items()),
        ),
        (
            "sequences that the sequential test takes, over the smallest fixed number, for five subtle deviations",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        ),
        (
            "requests to find a cheat on 10 % of them with power 0.9, over the 22 that touch one at all",
            f"{max(cheats):.1f} times",
        ),
    ]
    return [*lines, "", "| figure | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)]


def _settings(figures: dict[str, Any]) -> list[str]:
    """What the sampling settings of the audited requests do to the partial AUC; nothing if one was measured."""
    if not figures["settings"]:
        return []
    columns = {"top-k 50, top-p 0.95": figures} | {SETTINGS[name]: found for name, found in figures["settings"].items()}
    lines = [
        "",
        "Partial AUC at some numbers of contiguous tokens (lower end of its 95 % interval), by the sampling settings"
        " that the audited requests ask for:",
        "",
        "| deviation | tokens | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, target in figures["targets"].items():
        cells = [found["targets"].get(name) for found in columns.values()]
        if all(cells):
            shown = [f"{cell['pauc']:.4f} ({cell['lower']:.4f})" for cell in cells]
            lines.append(f"| {name.removeprefix('held.')} | {target['tokens']} | " + " | ".join(shown) + " |")
    return lines


def _fingerprints(found: dict[str, Any]) -> list[tuple[str, str]]:
    int4, low, high = found["curve"]["int4"]["2"], *found["false_positive_interval"]
    judged = found["false_positives"].values()
    unknown = max(
        rates["0.01"]["rate"] for rows in judged for name, rates in rows.items() if name.startswith("unknown")
    )
    stacks = [name for name in found["false_positives"]["1"] if name.startswith("honest")]
    saved = {name: rows["2"] for name, rows in found["cheapest"].items()}
    return [
        (
            f"fingerprints of activations (H200), {found['bytes_per_token']:g} bytes per token: AUC for int4 weights "
            "(simulated) from 2 tokens",
            f"{int4['auc']:.4f} (95 % interval from {int4['auc_95'][0]:.4f})",
        ),
        (
            "tokens until that fingerprint's AUC is 0.999, by deviation (simulated); the verifier makes a second pass, "
            "for the sensitivity of each token to rounding",
            ", ".join(f"{name} {_tokens(tokens)}" for name, tokens in found["tokens_to_auc_999"].items()),
        ),
        (
            "bytes that the cheapest fingerprint of 2 tokens saves over the cheapest TOPLOC proof at AUC 0.999 "
            "(* at the best AUC that both reach, which is less)",
            ", ".join(f"{name} {_share(row)}" for name, row in saved.items()),
        ),
        (
            f"honest fingerprints called deviating at alpha {found['alpha']:g}, {len(stacks)} stacks pooled, worst of "
            "1 to 32 tokens",
            f"{found['false_positive_rate']:.2%} (95 % interval {low:.2%} to {high:.2%}); on a stack that the "
            f"calibration lacks up to {unknown:.1%}",
        ),
    ]


def _engine(found: dict[str, Any]) -> list[tuple[str, str]]:
    speeds, lows = found["decode_with_fingerprints"], found["decode_with_fingerprints_95"]
    powers = found["fingerprints_power_8_tokens"]
    return [
        (
            "speed of replaying and scoring in vLLM on an H200 (shape of Llama 3.1 8B), over bare prefill",
            f"{found['verify_over_prefill']['paper']:.1%} with top-k 50 and top-p 0.95, "
            f"{found['verify_over_prefill']['unfiltered']:.1%} unfiltered; token-difr {found['peer_over_prefill']:.1%}",
        ),
        (
            "speed of a vLLM provider that captures fingerprints, over one that does not, by batch",
            ", ".join(f"{name[1:]}: {value:.1%} (95 % from {lows[name][0]:.1%})" for name, value in speeds.items()),
        ),
        (
            "power of 8 tokens of one sequence with a fingerprint, vLLM on an H200, alpha 0.01 (int4 is rounded "
            "weights)",
            ", ".join(f"{name} {value:.0%}" for name, value in powers.items()),
        ),
    ]


def _tokens(value: int | None) -> str:
    return "over 32" if value is None else str(value)


def _share(row: dict[str, Any]) -> str:
    return f"{row['saved']:.0%}" + ("" if row["toploc_reaches"] and row["ours_reaches"] else "*")


def _cause(value: Any) -> str:
    if isinstance(value, dict):
        parts = [value["code"], value.get("contract"), value.get("estimate")]
        return ", ".join(f"{part:.3g}" if isinstance(part, float) else str(part) for part in parts if part is not None)
    return str(value)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number:.2f} ({name})" for name, number in value.items())
    return f"{value:.2f}"


def _figures(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return figures


def main(arguments: list[str]) -> int:
    """Rewrite or check; the exit status says whether the README was in step."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    wanted = before + START + block(ROOT / "benchmarks" / "results") + END + after
    if arguments == ["--check"]:
        if text != wanted:
            print("README.md: the figures are not those of benchmarks/results; run tools/readme_figures.py")
        return int(text != wanted)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
