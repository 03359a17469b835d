"""The mode table of docs/modes.md in kind: in every mode an honest provider is not divergent, a deviation that the
table calls visible is, under its cause, and one that it calls not visible is not.

Seeded and filtered audits are of recorded GPU tokens. Tokens at temperature 0, and of no filter, are made here from the
bundled model: many short sequences at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from recorded import Recorded, planned
from veridifr.auditing import audit
from veridifr.calibration import Calibration, HonestTraces, calibrate
from veridifr.demo import model_path
from veridifr.errors import CalibrationError
from veridifr.finding import Finding, Verdict
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.report import to_text
from veridifr.trace import EngineRecord, Sampling, Trace

NOBODY = EngineRecord(name="unknown")
PROMPT, TOKENS = 12, 40


def other_seeds(traces: Sequence[Trace]) -> list[Trace]:
    """Claimed under seeds that made none of the tokens."""
    return [replace(t, sampling=replace(t.sampling, seed=900_000 + i)) for i, t in enumerate(traces)]


def made(
    recorded: Recorded, name: str, claimed: float, *, first: int = 0, count: int = 24, noise: float = 0.02,
    temperature: float | None = None,
) -> list[Trace]:  # fmt: skip
    """Draws of the bundled model at `temperature` (the claimed one by default), its logits off by errors of `noise`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32, local_files_only=True).eval()
    rng, heat = np.random.default_rng(sum(map(ord, name))), claimed if temperature is None else temperature
    sources = [*recorded["calibration.v1"], *recorded["calibration.v2"], *recorded["v1"]][first : first + count]
    prompts = np.array([trace.prompt_token_ids[:PROMPT] for trace in sources])
    ids, cache, chosen = torch.tensor(prompts, dtype=torch.long), None, []
    with torch.inference_mode():
        for _ in range(TOKENS):
            found = model(ids, past_key_values=cache, use_cache=True)
            logits = found.logits[:, -1].double().numpy()
            logits = logits + noise * rng.standard_normal(logits.shape) + heat * rng.gumbel(size=logits.shape)
            chosen.append(logits.argmax(axis=1))
            ids, cache = torch.tensor(chosen[-1][:, None]), found.past_key_values
    return [
        Trace(
            id=f"{name}/{number}", model="tb7m", prompt_token_ids=prompt, output_token_ids=output,
            finish_reason="length", engine=NOBODY,
            sampling=Sampling(temperature=claimed, max_tokens=TOKENS, ignore_eos=True),
        )
        for number, (prompt, output) in enumerate(zip(prompts, np.array(chosen).T, strict=True))
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One mode made ready: sets of traces, the evidence for them, and the calibration."""

    sets: dict[str, list[Trace]]
    reference: Reference
    calibration: Calibration
    sampler: str = "auto"

    def audit(self, name: str) -> Finding:
        return audit(self.sets[name], self.reference, self.calibration, sampler=self.sampler)


def ready(folder: Path, sets: dict[str, list[Trace]], detect: float, sampler: str = "auto") -> Mode:
    """Replay every set, and calibrate on `calibration`."""
    model, spool = load(f"hf:{model_path()}", ReferenceSettings(device="cpu", threads=1)), folder / "evidence"
    for traces in sets.values():
        assert all(evidence for _, evidence in Replayer(model, spool=spool).run(planned(traces), label="made"))
    stored = load(f"evidence:{spool}")
    honest = [HonestTraces(name="honest", traces=sets["calibration"])]
    calibration = calibrate(honest, stored, detect_sigma=detect, sampler=sampler)
    return Mode(sets=sets, reference=stored, calibration=calibration, sampler=sampler)


@pytest.fixture(scope="module")
def seeded(recorded: Recorded) -> Mode:
    sets = {name: recorded[name] for name in ("v1", "v2", "int4", "temp1.1")}
    sets["seeds ignored"] = other_seeds(recorded["v1"])
    return Mode(sets=sets, reference=recorded.reference, calibration=recorded.calibration)


@pytest.fixture(scope="module")
def filtered(recorded: Recorded) -> Mode:
    stacks = [HonestTraces(name=name, traces=recorded[name]) for name in ("calibration.v1", "calibration.v2")]
    calibration = calibrate(stacks, recorded.reference, detect_sigma=0.5, sampler="unknown")
    sets = {name: recorded[name] for name in ("v1", "v2", "int4", "temp1.1")}
    sets["seeds ignored"] = other_seeds(recorded["v1"])
    return Mode(sets=sets, reference=recorded.reference, calibration=calibration, sampler="unknown")


@pytest.fixture(scope="module")
def unfiltered(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Mode:
    sets = {
        "calibration": made(recorded, "calibration", 1.0, count=40),
        "honest": made(recorded, "honest", 1.0, first=40),
        "temperature 1.5": made(recorded, "temperature 1.5", 1.0, first=40, temperature=1.5),
        "errors of 0.3": made(recorded, "errors of 0.3", 1.0, first=40, noise=0.3),
    }
    sets["seeds ignored"] = other_seeds(sets["honest"])
    return ready(tmp_path_factory.mktemp("unfiltered"), sets, 0.6, "unknown")


@pytest.fixture(scope="module")
def greedy(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Mode:
    sets = {
        "calibration": made(recorded, "calibration", 0.0, count=40),
        "honest": made(recorded, "honest", 0.0, first=40),
        "errors of 0.6": made(recorded, "errors of 0.6", 0.0, first=40, noise=0.6),
        "temperature 1": made(recorded, "temperature 1", 0.0, first=40, temperature=1.0),
    }
    sets["seeds ignored"] = other_seeds(sets["honest"])
    return ready(tmp_path_factory.mktemp("greedy"), sets, 0.5)


NOT_DIVERGENT = [
    ("seeded", "v1"),
    ("seeded", "v2"),
    ("filtered", "v1"),
    ("filtered", "v2"),
    ("filtered", "seeds ignored"),
    ("unfiltered", "honest"),
    ("unfiltered", "seeds ignored"),
    ("unfiltered", "errors of 0.3"),
    ("greedy", "honest"),
    ("greedy", "seeds ignored"),
]
DIVERGENT = [
    ("seeded", "int4", ("forward_pass",)),
    ("seeded", "temp1.1", ("temperature",)),
    ("seeded", "seeds ignored", ("seed",)),
    ("filtered", "int4", ("forward_pass",)),
    ("filtered", "temp1.1", ("temperature", "unexplained")),
    ("unfiltered", "temperature 1.5", ("temperature",)),
    ("greedy", "errors of 0.6", ("forward_pass",)),
    ("greedy", "temperature 1", ("temperature", "forward_pass")),
]
"""Two causes where both are right (temperature 0), and where 1,920 tokens are too few to name one."""
EVIDENCE = {"seeded": "seeded", "filtered": "distribution", "unfiltered": "distribution", "greedy": "greedy"}


@pytest.mark.parametrize(("mode", "name"), NOT_DIVERGENT)
def test_honest_and_invisible_providers_are_not_divergent(request: pytest.FixtureRequest, mode: str, name: str) -> None:
    finding = request.getfixturevalue(mode).audit(name)
    assert finding.mode == EVIDENCE[mode]
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)
    assert finding.diagnosis.code == "none"


@pytest.mark.parametrize(("mode", "name", "codes"), DIVERGENT)
def test_visible_deviations_are_divergent_under_their_cause(
    request: pytest.FixtureRequest, mode: str, name: str, codes: tuple[str, ...]
) -> None:
    finding = request.getfixturevalue(mode).audit(name)
    assert (finding.mode, finding.verdict) == (EVIDENCE[mode], Verdict.DIVERGENT)
    assert finding.diagnosis.code in codes


def test_errors_at_temperature_zero_may_be_draws(greedy: Mode) -> None:
    """The two are hardly told apart there: the cause is the forward pass, and the sentence says so."""
    diagnosis = greedy.audit("errors of 0.6").diagnosis
    assert {cause.code for cause in diagnosis.alternatives} == {"forward_pass", "temperature"}
    assert (diagnosis.parameter, diagnosis.estimate) == (None, None)
    assert diagnosis.sentence.startswith("The forward pass differs: these are the likeliest tokens of other logits")


def test_temperature_zero_works_with_any_engine(greedy: Mode, recorded: Recorded) -> None:
    """Calibrated on honest tokens of an unknown engine: no contract, seed or version is needed; nothing is said of a
    seed or a sampler, which greedy decoding has not."""
    assert (greedy.calibration.mode, greedy.calibration.contracts) == ("greedy", ("greedy",))
    for sampler in ("auto", "unknown"):  # at temperature 0 the two are one
        fine = replace(greedy, sampler=sampler).audit("honest")
        assert (fine.mode, fine.contract, fine.distribution) == ("greedy", "greedy", None)
        assert fine.test is not None and fine.test.power is not None
        assert "nothing is drawn" in to_text(fine)
    with pytest.raises(CalibrationError, match="temperature"):
        audit(recorded["v1"], greedy.reference, greedy.calibration)
