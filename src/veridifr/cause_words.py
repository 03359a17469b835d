"""The words for a cause, as reports give them."""

from __future__ import annotations

from veridifr.distribution import Statistic
from veridifr.hypotheses import Candidate
from veridifr.scores import Hypothesis


def named(candidate: Candidate, estimate: float | None) -> str:
    """A few words for a cause beside others."""
    if candidate.code == "forward_pass":
        size = "" if estimate is None else f" (logit noise {estimate:.3g})"
        return f"another forward pass{size}"
    if candidate.code == "sampler_contract":
        return f"the sampler {candidate.label}"
    return f"{candidate.code} {candidate.label}"


def twin(candidate: Candidate) -> str:
    """A cause that is not told from the one that is named."""
    return candidate.label if candidate.code == "sampler_contract" else f"Draws at {candidate.code} {candidate.label}"


def sentence(candidate: Candidate, estimate: float | None, claim: Hypothesis, statistic: Statistic) -> str:
    """What the cause is, against what was claimed. `estimate` is in the parameter's unit."""
    if candidate.code == "forward_pass" and estimate is None:
        what = "likeliest tokens" if claim.sampling.greedy else "draws"
        return (
            f"The forward pass differs: these are the {what} of other logits than the reference's. Other weights, a "
            "quantization or a bug would do this."
        )
    if candidate.code == "forward_pass":
        times = (estimate or 0.0) / statistic.sigma
        return (
            f"The forward pass differs: its logits carry errors of {estimate:.3g}, {times:.0f} times the honest "
            f"{statistic.sigma:.3g}. Other weights, a quantization or a bug would do this."
        )
    if candidate.code == "sampler_contract":
        return f"These tokens fit {candidate.label}, not {claim.contract.id}."
    if candidate.code == "seed":
        own = candidate.label if "seed" in candidate.label else f"seed {candidate.label}"
        kind = "noise that no seed explains" if candidate.label == "none" else own
        return f"These tokens fit {kind}, not the seed that was claimed."
    claimed = getattr(claim.sampling, candidate.code)
    found = f"{estimate:.3g}" if estimate is not None else candidate.label
    return f"These tokens fit {candidate.code} {found}, not {'off' if claimed is None else f'{claimed:g}'}."
