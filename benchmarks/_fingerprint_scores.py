"""From what `collect` of benchmarks/fingerprints.py left to the scores that are kept in the repository.

Everything but the main specification is kept as cells: honest and deviating scores sorted together, as counts of
[honest, deviating] scores at each level. Neighbouring scores of one kind share a level, which changes no ROC curve.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from veridifr.fingerprints import FingerprintSpec, Intervals, combine, fit_scale, ratios, to_codes, to_intervals

Arrays = Mapping[str, Any]
CLAIMED = ("honest", "honest_eager", "honest_one", "honest_decode", "honest_true")
"""Honest stacks of the claimed type, bfloat16: curves are against these in turn, one that is identical to another left
out. float16 is much nearer to float32; vLLM writes tokens of its own, of which TOPLOC's statistics are not kept."""
STACKS = (
    *CLAIMED,
    "honest_vllm",
    *(f"honest_h200{rest}" for rest in ("", "_eager", "_one", "_decode", "_vllm", "_half")),
    "honest_half",
)
TOKENS = (1, 2, 4, 8, 16, 32)
STATISTICS = ("mismatches", "mean", "median", "combined")
HIDDEN = 384
"""Hidden size stated in the specifications: a spec's arithmetic on projected coordinates does not depend on it."""


def spec_of(encoding: str, k: int, step: int = -4) -> FingerprintSpec:
    """A specification with one tap, and a step of 2^step where the encoding is wrapped."""
    steps = (step,) if encoding.startswith("wrapped") else ()
    return FingerprintSpec(seed=7, hidden_size=HIDDEN, k=k, encoding=encoding, step_log2=steps)


MAIN = spec_of("wrapped2", 16, -4)
"""Chosen from a pilot on a CPU with other error sizes, before any of the H200's data."""
SWEEP = [
    *[spec_of("wrapped1", k, -1) for k in (4, 8)],
    *[spec_of("wrapped1", k, -2) for k in (4, 8)],
    *[spec_of("wrapped1", k, -3) for k in (4, 8)],
    *[spec_of("wrapped2", k, -4) for k in (4, 8, 16)],
    spec_of("wrapped1", 32, -4),
    spec_of("wrapped4", 32, -6),
    *[spec_of("wrapped2", k, -5) for k in (8, 16, 32, 64, 96, 128, 160)],
    *[spec_of("wrapped2", k, -6) for k in (16, 32)],
    spec_of("wrapped3", 6, -4),
    *[spec_of("wrapped4", k, -4) for k in (4, 5)],
    *[spec_of("wrapped3", k, -6) for k in (8, 16)],
]
"""Searched for the cheapest that reaches a given power, with all tokens or every 2nd, 4th, ... carrying coordinates."""
ENCODINGS = [
    spec_of("float32", 1),
    spec_of("bfloat16", 2),
    spec_of("scaled8", 3),
    spec_of("scaled4", 6),
    spec_of("scaled2", 12),
    spec_of("sign", 32),
    spec_of("wrapped4", 8, -6),
    spec_of("wrapped3", 10, -5),
    MAIN,
    spec_of("wrapped1", 32, -4),
]
"""Encodings at about 4 bytes per token."""
ENCODING_TOKENS = 8
SPECS = [spec_of("wrapped2", 8, -4), MAIN, spec_of("wrapped2", 32, -5)]
"""Specifications compared as the one for all deviations."""
LEAST_KEPT = 0.99
"""Configurations that skip tokens are kept where their AUC is at least this."""


def label(spec: FingerprintSpec, every: int = 1) -> str:
    """How a specification is named in the results."""
    step = f" step 2^{spec.step_log2[0]}" if spec.wrapped else ""
    return f"{spec.encoding} k={spec.k}{step}" + (f" every {every}" if every > 1 else "")


def cell_bytes(spec: FingerprintSpec, every: int, tokens: int) -> int:
    """Payload bytes of one batch of `tokens` tokens."""
    entries = -(-tokens // every)
    return -(-entries * spec.k * spec.bits // 8) + (entries if spec.scaled else 0)


def names_array(names: Sequence[str]) -> Any:
    """Names of cells as the bytes of a text, a line each: they are thousands, and alike."""
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def names_from(stored: Any) -> list[str]:
    """What `names_array` stored."""
    return bytes(stored).decode().split("\n")


class Collected:
    """What `collect` left, cut into prompts that calibrate and prompts that are judged."""

    def __init__(self, arrays: Arrays, calibrate: int) -> None:
        self.arrays, self.calibrate = arrays, calibrate
        self.count = len(arrays["own"]) - calibrate
        names = [key.split("/", 1)[1] for key in arrays if key.startswith("error/")]
        self.identical = {
            name: first
            for first, name in itertools.combinations([name for name in STACKS if name in names], 2)
            if np.array_equal(arrays[f"error/{first}"], arrays[f"error/{name}"])
        }
        self.stacks = [name for name in STACKS if name in names and name not in self.identical]
        self.claimed = [name for name in CLAIMED if name in self.stacks]
        self.deviations = [name for name in names if name not in STACKS]

    def fit(self, spec: FingerprintSpec, *, plain: bool = False) -> Any:
        """The honest scale of the calibrating prompts, all stacks of the claimed type together. `plain`: of one pass of
        the verifier, without sensitivities."""
        rows = slice(0, self.calibrate)
        own = self._own(spec, self.claimed[0], rows)
        parts = [self._intervals(spec, self._values(spec, name, rows)) for name in self.claimed]
        apart = None if plain else self._sensitivity(self.claimed[0], rows, own.shape[1])
        joined = None if apart is None else np.concatenate([apart.ravel()] * len(parts))
        own = np.concatenate([own.reshape(-1, spec.k)] * len(parts))
        return fit_scale(Intervals.joined(parts), own, joined, most=10**6)

    def ratios(self, spec: FingerprintSpec, name: str, scale: Any, tokens: int = 32, *, plain: bool = False) -> Any:
        """Log-likelihood ratios [judged prompts, tokens, multiples]; "turn" is the honest stacks in turn."""
        rows = slice(self.calibrate, None)
        own = self._own(spec, name, rows)[:, :tokens]
        if name == "turn":
            stacks = np.stack([self._values(spec, stack, rows) for stack in self.claimed])
            values = self.turn(stacks)
        else:
            values = self._values(spec, name, rows)
        intervals = self._intervals(spec, values[:, :tokens])
        apart = None if plain else self._sensitivity(name, rows, own.shape[1]).ravel()
        found = ratios(intervals, own.reshape(-1, spec.k), scale, sensitivity_F=apart)
        return found.reshape(*own.shape[:2], -1)

    def errors(self, name: str, tokens: int) -> Any:
        """Root mean square of the errors of the first tokens' coordinates, before any encoding, each relative to its
        token's sensitivity, by judged prompt."""
        rows = slice(self.calibrate, None)
        levels = self.arrays[f"error/{name}"][rows, :tokens].astype(np.float64)
        levels /= self._sensitivity(name, rows, tokens)[..., None]
        return np.sqrt((levels**2).mean(axis=(1, 2))) * float(self.arrays[f"step/{name}"])

    def turn(self, stacks: Any) -> Any:
        """One stack's row for each prompt, the claimed stacks taking turns."""
        rows = np.arange(stacks.shape[1])
        return stacks[rows % len(stacks), rows]

    def toploc(self, name: str, chunk: int, top_k: int) -> dict[str, Any]:
        """TOPLOC's statistics of the judged prompts. `combined` counts a mismatched exponent as a binade (128)."""
        top = int(self.arrays["top_ks"][top_k])
        wrong, mean, median = (
            self.arrays[f"toploc/{name}/{part}"][chunk, top_k, self.calibrate :].astype(float)
            for part in ("mismatches", "means", "medians")
        )
        mean = np.where(wrong == top, 128.0, mean)
        combined = (wrong * 128 + mean * (top - wrong)) / top
        return {"mismatches": wrong, "mean": mean, "median": median, "combined": combined}

    def _sensitivity(self, name: str, rows: slice, tokens: int) -> Any:
        """Of the verifier's hidden states; a stack that wrote other tokens has its own."""
        key = f"sensitivity/{name}" if f"sensitivity/{name}" in self.arrays else "sensitivity"
        return self.arrays[key][rows, :tokens]

    def _wide(self, spec: FingerprintSpec) -> str:
        return "wide/" if spec.k > self.arrays["own"].shape[2] else ""

    def _own(self, spec: FingerprintSpec, name: str, rows: slice) -> Any:
        """The verifier's coordinates; a stack that wrote other tokens has its own."""
        key = f"own/{name}" if f"own/{name}" in self.arrays else f"{self._wide(spec)}own"
        return self.arrays[key][rows, :, : spec.k].astype(np.float32)

    def _values(self, spec: FingerprintSpec, name: str, rows: slice) -> Any:
        error = self.arrays[f"{self._wide(spec)}error/{name}"][rows, :, : spec.k]
        return self._own(spec, name, rows) + error * np.float32(self.arrays[f"step/{name}"])

    def _intervals(self, spec: FingerprintSpec, values: Any) -> Intervals:
        return to_intervals(spec, 0, to_codes(spec, 0, values.reshape(-1, spec.k)))


def kept(arrays: Arrays, calibrate: int, *, lean: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays to keep, and what the results file says of them. `lean`: of each method only the cells that no cheaper one
    equals, and those of `SPECS`; what is cheapest and what is best is among them."""
    source = Collected(arrays, calibrate)
    scale, plain = source.fit(MAIN), source.fit(MAIN, plain=True)
    print(label(MAIN), scale, "of one pass", plain, flush=True)
    cells = _frontier(_all_cells(source, lean=True)) if lean else dict(_all_cells(source, lean=False))
    counts = list(cells.values())
    found = {
        **_main(source, scale),
        **_main(source, plain, plain=True),
        "counts": np.concatenate(counts).astype(np.uint16),
        "ends": np.cumsum([len(part) for part in counts]).astype(np.int32),
        "names": names_array(list(cells)),
    }
    about = {
        "spec": label(MAIN),
        "bytes_per_token": MAIN.bytes_per_token(),
        "calibrating_prompts": calibrate,
        "batches": source.count,
        "scale": {"sigma": scale.sigma, "spread": scale.spread},
        "scale_of_one_pass": {"sigma": plain.sigma, "spread": plain.spread},
        "deviations": source.deviations,
        "stacks": source.stacks,
        "claimed": source.claimed,
        "identical": source.identical,
        "error_per_coordinate": {
            name: round(float(arrays[f"step/{name}"]) * 16, 5)
            for name in [*source.stacks, *source.identical, *source.deviations]
        },
        "lean": lean,
    }
    return found, about


def _main(source: Collected, scale: Any, *, plain: bool = False) -> dict[str, Any]:
    """Ranks of the main specification's scores, [tokens, prompts] for each condition, in prompt order; with `plain` of
    one pass of the verifier, and of the stacks that curves are against alone. Ranks are among
    the honest scores of all stacks: odd for an honest one or an equal one, even for a deviating one between two, which
    is all that a comparison with honest scores takes."""
    scores = {}
    for name in (source.claimed if plain else source.stacks) + source.deviations:
        values = source.ratios(MAIN, name, scale, plain=plain)
        scores[name] = np.stack([combine(values[:, :tokens].sum(axis=1)) for tokens in TOKENS])
    stacks = [name for name in source.stacks if name in scores]
    honest = [np.unique(np.stack([scores[name][row] for name in stacks])) for row in range(len(TOKENS))]

    def ranks(values: Any) -> Any:
        pairs = zip(honest, values, strict=True)
        return np.stack([np.searchsorted(h, v) + np.searchsorted(h, v, "right") for h, v in pairs]).astype(np.uint16)

    return {f"{'one_pass' if plain else 'main'}/{name}": ranks(values) for name, values in scores.items()}


def _frontier(cells: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """Cells of which no smaller one of the same method, deviation and tokens has as great an AUC, and `SPECS`' own."""
    found: dict[str, Any] = {}
    best: dict[tuple[str, ...], float] = {}
    wanted = {label(spec) for spec in SPECS}
    rows = [(key.split("|"), area(counts), key, counts) for key, counts in cells]
    for (*group, _, config), auc, key, counts in sorted(rows, key=lambda row: (int(row[0][3]), -row[1])):
        better = auc > best.get(tuple(group), -1.0)
        if better or config in wanted:
            found[key] = counts
        if better:
            best[tuple(group)] = auc
    return found


def _all_cells(source: Collected, *, lean: bool) -> Iterator[tuple[str, Any]]:
    yield from _toploc_cells(source)
    for tokens, name in itertools.product(TOKENS, source.deviations):
        turn = source.turn(np.stack([source.errors(stack, tokens) for stack in source.claimed]))
        yield f"size|{name}|{tokens}|0|size of the error", levels(turn, source.errors(name, tokens))
    for spec in SWEEP:
        yield from _spec_cells(source, spec, 32, sparse=True)
    for spec in [] if lean else ENCODINGS:
        if spec not in SWEEP:
            yield from _spec_cells(source, spec, ENCODING_TOKENS, sparse=False)


def _spec_cells(source: Collected, spec: FingerprintSpec, most: int, *, sparse: bool) -> Iterator[tuple[str, Any]]:
    scale = source.fit(spec)
    print(label(spec), scale, flush=True)
    values = {name: source.ratios(spec, name, scale, most) for name in ("turn", *source.deviations)}
    for tokens in (n for n in TOKENS if n <= values["turn"].shape[1]):
        for every in (n for n in TOKENS if n <= tokens and (sparse or n == 1)):
            totals = {name: combine(part[:, :tokens:every].sum(axis=1)) for name, part in values.items()}
            size = cell_bytes(spec, every, tokens)
            for name in source.deviations:
                counts = levels(totals["turn"], totals[name])
                if every == 1 or area(counts) >= LEAST_KEPT:
                    yield f"ours|{name}|{tokens}|{size}|{label(spec, every)}", counts


def _toploc_cells(source: Collected) -> Iterator[tuple[str, Any]]:
    """Each configuration with the statistic whose AUC is best for this deviation: hindsight, in TOPLOC's favour."""
    for c, tokens in enumerate(source.arrays["chunks"].tolist()):
        for t, top_k in enumerate(source.arrays["top_ks"].tolist()):
            if top_k > tokens * int(source.arrays["hidden_size"]):
                continue
            stacks = [source.toploc(name, c, t) for name in source.claimed]
            for name in source.deviations:
                theirs = source.toploc(name, c, t)
                found = {
                    s: levels(source.turn(np.stack([stack[s] for stack in stacks])), theirs[s]) for s in STATISTICS
                }
                best = max(STATISTICS, key=lambda s: area(found[s]))
                yield f"toploc|{name}|{tokens}|{2 + 2 * top_k}|top-{top_k}, {best}", found[best]


def levels(honest_N: Any, deviating_M: Any) -> Any:
    """Counts [levels, 2] of honest and deviating scores by rising score; neighbouring levels of one kind are joined."""
    values, places = np.unique(np.concatenate([honest_N, deviating_M]), return_inverse=True)
    counts = np.stack([
        np.bincount(places[: len(honest_N)], minlength=len(values)),
        np.bincount(places[len(honest_N) :], minlength=len(values)),
    ], axis=1)  # fmt: skip
    kind = (counts > 0) @ np.array([1, 2])  # 1 honest, 2 deviating, 3 both: a tie, which stays as it is
    starts = np.concatenate([[True], (kind[1:] != kind[:-1]) | (kind[1:] == 3)])
    return np.add.reduceat(counts, np.flatnonzero(starts), axis=0)


def area(counts: Any) -> float:
    """Area under the ROC curve of counts by level, ties counting half."""
    honest, deviating = counts.astype(float).T
    below = np.cumsum(honest) - honest
    return float((deviating * (below + honest / 2)).sum() / (honest.sum() * deviating.sum()))
