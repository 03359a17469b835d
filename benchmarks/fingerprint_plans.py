"""Whether a plan for fingerprints buys what it takes: sequences planned from simulated errors, and from real ones.

usage: fingerprint_plans.py measure [--count N]   run the models (tb7m, 16-bit types emulated; minutes); leaves results
       fingerprint_plans.py --check | --write-docs

A calibration holds scores of honest sequences and of the same ones with larger errors drawn about the verifier's own
projections. Planned is what it takes to find errors of the size that a deviation has (root mean square of a coordinate,
over the honest one); measured is the same search over the scores that the deviation's own fingerprints have. Providers
and deviations are those of fingerprints.py, whose honest runs in bfloat16 calibrate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import _results
from _fingerprint_scores import MAIN, label
from veridifr import stats
from veridifr.calibration import Calibration, HonestSequence, Stack
from veridifr.fingerprint_null import FingerprintNull, Measured, fit_null, prefix_scores
from veridifr.fingerprints.encoding import to_codes, to_intervals
from veridifr.planning import Aim, plan
from veridifr.statistic import LikelihoodRatio

RESULTS = _results.RESULTS / "fingerprint_plans.json"
DOCS = _results.RESULTS.parents[1] / "docs" / "fingerprints.md"
START, END = "<!-- plans: written by benchmarks/fingerprint_plans.py --write-docs -->\n", "<!-- /plans -->"
MODELS = Path(__file__).resolve().parents[1] / "src" / "veridifr" / "data"
HONEST = ("honest", "honest_eager")
DEVIATIONS = {"int8": "int8 weights", "low_rank": "a change of rank 8 and 1 %", "kv_fp8": "fp8 key-value cache"}
"""Larger ones take the fewest sequences that a test can do with."""
PASSES = (2, 1)
"""Forward passes of the verifier: the second is for the sensitivity of hidden states to rounding."""
TOKENS = (1, 2, 4, 8, 16, 32)
FIT = 100
"""Prompts that the honest scale is fitted to; the null and the deviating sequences are of the others."""
KEYS = ("passes", "deviation", "multiple", "tokens")
ALPHA, POWER, LIMIT = 0.01, 0.9, 2000


def main() -> int:
    """Exit status: 1 if figures or the table do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", nargs="?", choices=("measure",))
    parser.add_argument("--count", type=int, default=700, help="prompts, of which 100 calibrate")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if args.check or args.write_docs:
        wrong = _results.check(RESULTS, figures) if args.check else []
        text = table(_results.read(RESULTS)["figures"])
        wrong += _results.documented(DOCS, START, END, text, write=args.write_docs)
        print("\n".join(wrong) or "fingerprint_plans: figures and table follow from the raw results")
        return int(bool(wrong))
    if args.verb is None:
        parser.error("measure, --check or --write-docs is needed")
    print(_results.write(RESULTS, measure(args.count), figures)["planned_over_measured"])
    return 0


def measure(count: int) -> dict[str, Any]:
    """Run the models, and search for the numbers of sequences."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).with_name("fingerprints.py")), "collect", "--out", folder]
        command += ["--models", str(MODELS), "--model", "tb7m", "--emulate", "--prompt-tokens", "32"]
        command += ["--count", str(count), "--conditions", *HONEST, *DEVIATIONS]
        subprocess.run(command, check=True)
        with np.load(Path(folder) / "fingerprints.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    rows = []
    for passes in PASSES:
        honest = {name: measured(arrays, name, passes) for name in HONEST}
        null = fit_null(
            MAIN,
            TOKENS,
            [one for sequences in honest.values() for one in sequences[:FIT]],
            [(name, sequences[FIT:]) for name, sequences in honest.items()],
            sensitivity=passes == 2,
        )
        assert null is not None
        rows += [row for name in DEVIATIONS for row in rows_of(arrays, null, name, passes)]
    return {"null_sequences": count - FIT, "alpha": ALPHA, "power": POWER, "rows": rows}


def measured(arrays: Mapping[str, Any], name: str, passes: int) -> list[Measured]:
    """A provider's fingerprints beside the verifier's projections, as an audit has them."""
    own_SFK = arrays["own"][..., : MAIN.k].astype(np.float32)
    values_SFK = own_SFK + arrays[f"error/{name}"][..., : MAIN.k] * np.float32(arrays[f"step/{name}"])
    return [
        Measured(
            id=str(number),
            tokens=len(own_FK),
            claimed_A=(to_intervals(MAIN, 0, to_codes(MAIN, 0, values_FK)),),
            own_AFK=own_FK[None],
            sensitivity_AF=apart_F[None] if passes == 2 else None,
        )
        for number, (own_FK, values_FK, apart_F) in enumerate(
            zip(own_SFK, values_SFK, arrays["sensitivity"], strict=True)
        )
    ]


def rows_of(arrays: Mapping[str, Any], null: FingerprintNull, name: str, passes: int) -> list[dict[str, Any]]:
    """Planned and measured numbers of sequences for each length."""
    multiple = float(arrays[f"step/{name}"] / arrays["step/honest"])
    deviating_SE = np.array(
        [prefix_scores(one, MAIN, null.scales, TOKENS)[0] for one in measured(arrays, name, passes)[FIT:]]
    )
    calibration, found = calibration_of(null), []
    for place, tokens in enumerate(TOKENS):
        planned = plan(calibration, f"errors={multiple}", Aim(tokens=tokens), fingerprints=True)
        needed = stats.sequences_needed(
            [np.array([one.scores[0][place] for one in stack.sequences]) for stack in null.stacks],
            deviating_SE[:, place],
            alpha=ALPHA / 2,  # as audits test fingerprints
            rng=np.random.default_rng(place),
            power=POWER,
            limit=LIMIT,
        )
        found.append(
            {
                "passes": passes,
                "deviation": name,
                "multiple": round(multiple, 3),
                "tokens": tokens,
                "planned": planned.options[0].fixed,
                "measured": needed,
            }
        )
        print(found[-1], flush=True)
    return found


def calibration_of(null: FingerprintNull) -> Calibration:
    """A calibration that holds these fingerprints. What it says of tokens is not looked at."""
    scores = tuple(0.0 for _ in TOKENS)
    stacks = [
        Stack(
            name=stack.name,
            contract="vllm-v2-e",
            engine={},
            traces_digest=None,
            fit_sequences=0,
            fit=(),
            sequences=tuple(
                HonestSequence(
                    id=one.id, prompt="", tokens=TOKENS[-1], exact_match=1.0, surprise=(), scores=scores, simulated=()
                )
                for one in stack.sequences
            ),
        )
        for stack in null.stacks
    ]
    return Calibration(
        model="tb7m",
        weights="",
        reference_settings={},
        sampling={},
        statistic=LikelihoodRatio(sigma=1.0),
        detect_sigma=2.0,
        effects=(2.0,),
        edges=TOKENS,
        stacks=tuple(stacks),
        created="",
        fingerprints=null,
    )


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Planned over measured, where either is more than the fewest that a test can do with."""
    rows = raw["rows"]
    fewest = stats.fewest_sequences(raw["null_sequences"], raw["alpha"] / 2)
    told = [row for row in rows if None not in _pair(row) and max(_pair(row)) > fewest]
    ratios = [row["planned"] / row["measured"] for row in told]
    return {
        "null_sequences": raw["null_sequences"],
        "rows": [[*(row[key] for key in KEYS), *_pair(row)] for row in rows],
        "fewest_sequences": fewest,
        "planned_over_measured": {"rows": len(told), "least": round(min(ratios), 3), "most": round(max(ratios), 3)},
    }


def _pair(row: Mapping[str, Any]) -> tuple[int | None, int | None]:
    return row["planned"], row["measured"]


def table(found: Mapping[str, Any]) -> str:
    """The table for the docs."""
    lines_of: dict[str, list[str]] = {}
    for passes, name, multiple, _, planned, needed in found["rows"]:
        way = "a second pass" if passes == 2 else "one pass"
        said = f"{DEVIATIONS[name]}, {multiple:.2g} times the honest errors, {way}"
        lines_of.setdefault(said, []).append(f"{_count(planned)} / {_count(needed)}")
    told = found["planned_over_measured"]
    lines = [
        "Sequences planned / measured with the deviation's own fingerprints, by the tokens of each sequence: tb7m,",
        f"`{label(MAIN)}`, alpha {ALPHA}, power {POWER}, two honest stacks of {found['null_sequences']} sequences.",
        f"Where a test could do with fewer, planned is {told['least']:.2f} to {told['most']:.2f} times measured.",
        "",
        "| deviation | " + " | ".join(f"{tokens} token{'s' * (tokens > 1)}" for tokens in TOKENS) + " |",
        "|---|" + "---|" * len(TOKENS),
    ]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines_of.items()]
    return "\n".join(lines) + "\n"


def _count(number: int | None) -> str:
    return f"over {LIMIT:,}" if number is None else f"{number:,}"


if __name__ == "__main__":
    sys.exit(main())
