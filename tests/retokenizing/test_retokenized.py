"""Real tokens of a GPU, thrown away and made again from their text: an honest audit stays honest, the others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from veridifr import EngineRecord, Reference, ReferenceSettings, Verdict, audit, load_reference, read_calibration
from veridifr import retokenizing as module
from veridifr.calibration import Calibration
from veridifr.demo import DATA
from veridifr.origins import why_unscored
from veridifr.references.hf import HfReference
from veridifr.replay import Replayer
from veridifr.retokenizing import retokenized
from veridifr.trace import Trace
from veridifr.traces import read_traces

TOKENS = 120
NOBODY = EngineRecord(name="unknown")


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> Reference:
    return load_reference(f"hf:{tb7m}", ReferenceSettings(device="cpu", threads=1))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return read_calibration(DATA / "demo" / "calibration.json")[0]


def bundled(name: str, tokens: int = TOKENS) -> list[Trace]:
    """Traces of the demo, as if no more tokens had been asked for."""
    return [
        replace(
            trace,
            output_token_ids=trace.output_token_ids[:tokens],
            sampling=replace(trace.sampling, max_tokens=tokens),
            finish_reason="length",
        )
        for trace in read_traces(DATA / "demo" / f"{name}.jsonl.gz")
    ]


def from_text(trace: Trace, reference: Reference) -> Trace:
    """What a collector would have made of the text alone."""
    text = reference.decode(trace.output_token_ids.tolist()) or ""
    own = reference.encode(text) or []
    counts = {"server_count": len(trace.output_token_ids), "own_count": len(own)}
    lost = {"unscored": "lost"} if "\ufffd" in text else {}
    extra = {**trace.extra, "token_ids_from": "text", "retokenization": counts, **lost}
    return replace(trace, output_token_ids=np.array(own, dtype=np.int32), extra=extra)


def same(one: Trace, other: Trace) -> bool:
    return np.array_equal(one.output_token_ids, other.output_token_ids)


def test_nearly_all_splits_are_found_again(reference: Reference) -> None:
    """Of honest sequences that a tokenizer splits otherwise, the search gives back the ids that were sampled."""
    sampled = bundled("calibration.v1")[:48]
    made = [from_text(trace, reference) for trace in sampled]
    drifted = [n for n, trace in enumerate(made) if not same(trace, sampled[n])]
    assert len(drifted) >= 8  # so many that an audit that read them as ids would see another model
    assert sum(why_unscored(made[n]) is None for n in drifted) >= 1  # and equal counts alone do not show it
    found = retokenized(made, Replayer(reference))
    assert [trace.id for trace in found] == [trace.id for trace in sampled]
    right = [same(trace, original) for trace, original in zip(found, sampled, strict=True)]
    assert sum(right[n] for n in drifted) >= 0.8 * len(drifted)
    assert all(right[n] for n in range(48) if n not in drifted)
    for trace, original, fine in zip(found, sampled, right, strict=True):
        assert reference.decode(trace.output_token_ids.tolist()) == reference.decode(original.output_token_ids.tolist())
        assert trace.extra["retokenization"]["own_count"] == len(trace.output_token_ids)
        assert fine or why_unscored(trace) is not None or trace.id in {sampled[n].id for n in drifted}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokens"), [("v1", 120), ("v2", 120), ("v2", 200)])
def test_an_honest_audit_of_texts_is_not_divergent(
    name: str, tokens: int, reference: Reference, calibration: Calibration
) -> None:
    sampled = bundled(name, tokens)
    finding = audit([from_text(t, reference) for t in sampled], reference, calibration, requests=sampled)
    assert finding.verdict in (Verdict.CONSISTENT, Verdict.UNDECIDED)
    assert finding.p_value is not None
    assert finding.p_value > 0.05
    assert finding.sequences_unsupported <= 4


@pytest.mark.slow
def test_without_the_search_it_would_be(
    reference: Reference, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal counts alone let splits pass that look like another model: what the search is there for."""
    monkeypatch.setattr("veridifr.auditing.retokenized", lambda traces, *rest: list(traces))
    sampled = bundled("v2", 200)
    finding = audit([from_text(t, reference) for t in sampled], reference, calibration, requests=sampled)
    assert finding.verdict is Verdict.DIVERGENT


@pytest.mark.slow
def test_texts_of_an_engine_that_the_tokens_give_away(reference: Reference, calibration: Calibration) -> None:
    """The sampler is found from the sequences that are split as it drew them, and then splits the others."""
    asked = [replace(trace, engine=NOBODY) for trace in bundled("v2")]
    made = [from_text(trace, reference) for trace in asked]
    assert sum(why_unscored(trace) is not None for trace in made) >= 5
    finding = audit(made, reference, calibration, requests=asked)
    assert (finding.verdict, finding.contract) == (Verdict.CONSISTENT, "vllm-v2-e")
    assert finding.sequences_unsupported == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4", "temp1.1"])
def test_a_deviation_still_shows(name: str, reference: Reference, calibration: Calibration) -> None:
    sampled = bundled(name)
    finding = audit([from_text(t, reference) for t in sampled], reference, calibration, requests=sampled)
    assert finding.verdict is Verdict.DIVERGENT


def test_traces_with_their_own_ids_are_left_alone(reference: Reference) -> None:
    sampled = bundled("v1")[:3]
    stated = [replace(trace, extra={**trace.extra, "token_ids_from": "server"}) for trace in sampled]
    for traces in (sampled, stated):
        assert all(a is b for a, b in zip(retokenized(traces, Replayer(reference)), traces, strict=True))


def without_tokenizer(reference: Reference) -> Reference:
    assert isinstance(reference, HfReference)
    return HfReference.from_model(reference._model, None, settings=reference._settings)


CASES: dict[str, tuple[Callable[[Trace], Trace], str | None]] = {
    "no known sampler": (lambda t: replace(t, engine=NOBODY), None),
    "unscored already": (lambda t: replace(t, extra={**t.extra, "unscored": "refused"}), "refused"),
    "no output": (lambda t: replace(t, output_token_ids=np.array([], dtype=np.int32)), "retokenization"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_searched_stays_as_it_is(case: str, reference: Reference) -> None:
    change, reason = CASES[case]
    trace = change(from_text(bundled("v1")[0], reference))
    (found,) = retokenized([trace], Replayer(reference))
    assert found is trace
    assert (why_unscored(found) or "").startswith(reason or "")


def test_a_reference_without_a_tokenizer_scores_no_text(reference: Reference) -> None:
    made = [from_text(trace, reference) for trace in bundled("v1")[:2]]
    found = retokenized(made, Replayer(without_tokenizer(reference)))
    assert [why_unscored(trace) for trace in found] == [module.NO_TOKENIZER] * 2


def test_a_search_without_end_is_broken_off(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence with more other splits than are tried is no evidence, whatever its count."""
    monkeypatch.setattr(module, "_LEAST_TRIES", 0)
    monkeypatch.setattr(module, "_TOKENS_PER_TRY", 10**6)
    made = [from_text(trace, reference) for trace in bundled("calibration.v1")[:24]]
    found = retokenized(made, Replayer(reference))
    broken = [trace for trace in found if trace.extra.get("unscored") == module.TOO_MANY]
    assert 1 <= len(broken) < 24
