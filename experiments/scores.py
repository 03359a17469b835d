"""Every detector's value of every sequence: what the tables are made of.

Tokens: the likelihood score of this package and the field's statistics by name, summed over the first tokens of a
sequence. Activations: the fingerprint score of this package, and TOPLOC's three statistics and their combination for
several top-k, each over the first tokens of a sequence. Everything fitted is fitted on the honest providers' `fit`
sequences, which are not judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import spec as specs
from veridifr import Reference, ReferenceSettings, Trace, load_reference, read_traces
from veridifr.evidence import Evidence
from veridifr.fingerprints import (
    ErrorScale,
    FingerprintSpec,
    Intervals,
    combine,
    fit_scale,
    project,
    projection_matrix,
    ratios,
    to_codes,
    to_intervals,
)
from veridifr.fingerprints.projection import scale
from veridifr.fingerprints.toploc import compare, proof_bytes, prove
from veridifr.fitting import fit_statistic
from veridifr.named_statistics import NAMES, NamedStatistics, fit_named
from veridifr.scores import Scores
from veridifr.scoring import score_claim
from veridifr.statistic import Alternative, LikelihoodRatio

TOKEN_DETECTORS = ("likelihood", *NAMES)
LIKELIHOOD = ("sigma", "epsilon", "spread", "shares", "alternatives")
"""What is fitted of the likelihood score."""
TOP_KS = (4, 16, 64, 256)
PROOF_BYTES = tuple(proof_bytes(top_k) for top_k in TOP_KS)
"""Bytes of a proof for each of these: also what activation detectors are compared at."""
TOPLOC = ("mismatches", "mean", "median", "combined")
_SEED = 7
"""Seed of the projection matrix of the fingerprints that are judged."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """What honest sequences gave: the likelihood score, the clips of the others, the scale of honest projections."""

    likelihood: LikelihoodRatio
    named: NamedStatistics
    scales: tuple[ErrorScale, ...]
    """Of each fingerprint that is judged; empty where no hidden states were kept."""

    def save(self, path: Path) -> None:
        """Write the numbers to a JSON file."""
        value = {
            **{name: asdict(self.likelihood)[name] for name in LIKELIHOOD},
            "named": asdict(self.named),
            "scales": [asdict(scale) for scale in self.scales],
        }
        path.write_text(json.dumps(value) + "\n")

    @staticmethod
    def load(path: Path) -> Fitted:
        """What `save` wrote."""
        value = json.loads(path.read_text())
        return Fitted(
            LikelihoodRatio(
                **{name: value[name] for name in ("sigma", "epsilon", "spread")},
                shares=tuple(value["shares"]),
                alternatives=tuple(Alternative(**entry) for entry in value["alternatives"]),
            ),
            NamedStatistics(**value["named"]),
            tuple(ErrorScale(**(scale | {"shares": tuple(scale["shares"])})) for scale in value["scales"]),
        )


@dataclass(frozen=True, eq=False)
class Replayed:
    """One sequence of a provider as the verifier sees it; `theirs` and `own` are hidden states [F, D], `sensitivity_F`
    how far rounding moves them, or None."""

    scores: Scores
    theirs: npt.NDArray[np.float32] | None
    own: npt.NDArray[np.float32] | None
    sensitivity_F: npt.NDArray[np.float32] | None


def reference_of(path: Path, dtype: str = "float32", attention: str | None = None) -> Reference:
    """The verifier's model."""
    settings = ReferenceSettings(dtype=dtype)
    experts = "num_experts" in json.loads((path / "config.json").read_text())
    if not experts and attention is None:
        return load_reference(f"hf:{path}", settings)
    import torch
    from transformers import AutoModelForCausalLM

    from veridifr.references.hf import HfReference

    # grouped products are made for bfloat16: each expert by itself
    options = {"experts_implementation": "eager"} if experts else {}
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation=attention or "sdpa", local_files_only=True, **options
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HfReference.from_model(model.to(device), settings=settings)


def replay(
    reference: Reference, size: int, traces: Sequence[Trace], states: npt.NDArray[np.uint16] | None
) -> Iterator[Replayed]:
    """Each trace's scores under its claim, with both sides' hidden states where `states` [S, F, D] are given; `size` is
    the reference's hidden size."""
    if states is not None:
        whole = FingerprintSpec(seed=0, hidden_size=size, k=size, encoding="float32")
        measuring = reference.measuring(whole, sensitivity=True)
        assert measuring is not None
        reference = measuring
    found: dict[str, Evidence] = {item.trace_id: item for item in reference.evidence(traces)}
    for number, trace in enumerate(traces):
        item = found[trace.id]
        theirs = own = apart = None
        if states is not None:
            assert item.projections_AFK is not None and item.sensitivity_AF is not None
            theirs = (states[number].astype(np.uint32) << 16).view(np.float32)
            own = _unprojected(item.projections_AFK[0, : len(theirs)], size)
            apart = item.sensitivity_AF[0, : len(theirs)]
        yield Replayed(score_claim(trace, item, eos_ids=reference.eos_ids), theirs, own, apart)


def fit(experiment: specs.Experiment, honest: Sequence[Sequence[Replayed]]) -> Fitted:
    """From the `fit` sequences of every honest provider."""
    together = [item.scores for items in honest for item in items]
    likelihood = fit_statistic(together)
    known = [item for items in honest for item in items if item.own is not None]
    apart = [item.sensitivity_F for item in known if item.sensitivity_F is not None]
    scales = []
    for fingerprint in experiment.fingerprints if known else ():
        intervals, own = zip(*(_coded(item, *fingerprint) for item in known), strict=True)
        scales.append(fit_scale(Intervals.joined(intervals), np.concatenate(own), np.concatenate(apart)))
    return Fitted(likelihood, fit_named(together, likelihood.sigma), tuple(scales))


def measure(experiment: specs.Experiment, item: Replayed, fitted: Fitted) -> tuple[Floats, Floats | None]:
    """Token detectors [E, 7] at the experiment's edges, and activation detectors [B, fingerprints + top-k x 4] at its
    activation budgets, or None where there are no hidden states."""
    likelihood_E = fitted.likelihood.prefix_scores(item.scores, experiment.edges)
    tokens = np.column_stack([likelihood_E, fitted.named.prefix_scores(item.scores, experiment.edges)])
    if item.own is None or not fitted.scales:
        return tokens, None
    budgets = np.asarray(experiment.activation_budgets)
    ours = []
    for fingerprint, honest in zip(experiment.fingerprints, fitted.scales, strict=True):
        intervals, own = _coded(item, *fingerprint)
        totals = np.cumsum(ratios(intervals, own, honest, sensitivity_F=item.sensitivity_F), axis=0)
        ours.append(combine(totals[budgets - 1]))
    theirs = [_toploc(item, int(budget)) for budget in budgets]
    return tokens, np.column_stack([*ours, np.array(theirs)])


def shortened(values: npt.ArrayLike, bits: int) -> npt.NDArray[np.float32]:
    """Values as float32 with `bits` bits of mantissa, rounded to nearest: the others are 0, and compress well."""
    exact = np.ascontiguousarray(values, dtype=np.float32)
    if bits >= 23:
        return exact
    gone = 23 - bits
    raised = exact.view(np.uint32) + np.uint32(1 << (gone - 1))
    return (raised >> np.uint32(gone) << np.uint32(gone)).view(np.float32)


def activation_detectors(experiment: specs.Experiment) -> tuple[str, ...]:
    """Names of the columns that `measure` gives for activations: our fingerprints, then TOPLOC's."""
    wider = (f"fingerprint {k} 2^{','.join(map(str, steps))}" for k, *steps in experiment.wider)
    return ("fingerprint", *wider, *(f"toploc {name} {top_k}" for top_k in TOP_KS for name in TOPLOC))


def activation_bytes(experiment: specs.Experiment) -> npt.NDArray[np.int64]:
    """What each of these detectors costs, [B, columns]: bytes sent at each of the activation budgets. TOPLOC sends one
    proof for all the tokens of a chunk."""
    ours = [
        [_spec(k, k, *steps).payload_bytes(tokens) for k, *steps in experiment.fingerprints]
        for tokens in experiment.activation_budgets
    ]
    theirs = [size for size in PROOF_BYTES for _ in TOPLOC]
    return np.array([[*row, *theirs] for row in ours])


def read_provider(folder: Path, provider: specs.Provider) -> tuple[list[Trace], npt.NDArray[np.uint16] | None]:
    """The traces of a provider and its hidden states, as the worker left them."""
    states = folder / f"{provider.file}.states.npy"
    return (
        list(read_traces(folder / f"{provider.file}.jsonl.gz")),
        np.load(states, allow_pickle=False) if states.exists() else None,
    )


def _toploc(item: Replayed, budget: int) -> list[float]:
    """The four statistics for each top-k, one chunk of `budget` tokens. A mismatched exponent counts as a binade."""
    assert item.theirs is not None and item.own is not None
    found: list[float] = []
    for top_k in TOP_KS:
        proof = prove(item.theirs[:budget], top_k)
        distance = compare(item.own[:budget], proof, top_k)
        wrong = distance.exponent_mismatches
        mean = 128.0 if distance.mantissa_mean is None else distance.mantissa_mean
        median = 128.0 if distance.mantissa_median is None else distance.mantissa_median
        found += [wrong, mean, median, (wrong * 128.0 + mean * (top_k - wrong)) / top_k]
    return found


def _coded(item: Replayed, k: int, step: int, *pattern: int) -> tuple[Intervals, npt.NDArray[np.float32]]:
    """What the provider would send, and the verifier's own projections. A model of another hidden size projects what it
    has with the matrix for its own size."""
    assert item.theirs is not None and item.own is not None
    chosen = _spec(item.own.shape[1], k, step, *pattern)
    codes = to_codes(chosen, 0, project(item.theirs, chosen.seed, chosen.k))
    return to_intervals(chosen, 0, codes), project(item.own, chosen.seed, chosen.k)


def _spec(size: int, k: int, step: int, *pattern: int) -> FingerprintSpec:
    return FingerprintSpec(
        seed=_SEED,
        hidden_size=size,
        k=k,
        encoding="wrapped2",
        step_log2=(step,),
        pattern_log2=pattern or (0,),
    )


def _unprojected(projected_FD: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Hidden states from a projection on all coordinates: the matrix is orthogonal, so its transpose undoes it."""
    matrix = projection_matrix(0, size, size).astype(np.float64) * float(scale(size))
    return np.asarray(projected_FD.astype(np.float64) @ matrix, dtype=np.float32)
