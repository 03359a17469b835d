"""How far rounding moves each hidden state: a second pass of the reference, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_hf import some_traces

from veridifr.errors import ReferenceError
from veridifr.fingerprints import FingerprintSpec
from veridifr.references import ReferenceSettings, load
from veridifr.references.hf import HfReference
from veridifr.references.recorded import RecordedReference
from veridifr.references.sensitivity import rounded
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.trace import Trace

SPEC = FingerprintSpec(seed=4, hidden_size=256, k=6, encoding="sign", taps=("final", "layer.2"), every=2)


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> HfReference:
    return load(f"hf:{tb7m}", ReferenceSettings(device="cpu"))  # type: ignore[return-value]


def states_of(reference: HfReference, trace: Trace, *, narrow: bool) -> list[torch.Tensor]:
    """Hidden states [entries, D] of both taps, each trace by itself."""
    ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids[:-1]])[None].astype(np.int64)
    base = reference._model.base_model
    taken: list[torch.Tensor] = []
    handle = base.layers[2].register_forward_hook(lambda _m, _i, out: taken.append(out))
    try:
        with torch.inference_mode():
            if narrow:
                with rounded(base):
                    final = base(input_ids=torch.from_numpy(ids)).last_hidden_state
            else:
                final = base(input_ids=torch.from_numpy(ids)).last_hidden_state
    finally:
        handle.remove()
    layer = taken[0][0] if isinstance(taken[0], tuple) else taken[0]
    first = len(trace.prompt_token_ids) - 1
    return [final[0, first::2], layer[0, first::2]]


def test_it_is_the_root_mean_square_of_what_rounding_changes(reference: HfReference) -> None:
    traces = some_traces(4)
    measuring = reference.measuring(SPEC, sensitivity=True)
    assert measuring is not None and measuring.settings["sensitivity"] == "bfloat16"
    assert "sensitivity" not in reference.settings
    plain = reference.measuring(SPEC)
    assert plain is not None
    without = {item.trace_id: item for item in plain.evidence(traces)}
    alone = {}
    for trace in traces:  # one by one: in a batch sums differ in a last bit, which turns some roundings round
        (item,) = measuring.evidence([trace])
        pairs = zip(states_of(reference, trace, narrow=False), states_of(reference, trace, narrow=True), strict=True)
        wanted = np.stack([(a - b).square().mean(dim=1).sqrt().numpy() for a, b in pairs])
        assert item.sensitivity_AF is not None and (wanted > 1e-4).all()
        np.testing.assert_allclose(item.sensitivity_AF, wanted, rtol=1e-3)
        alone[trace.id] = item.sensitivity_AF
    for item in measuring.evidence(traces):
        assert item.sensitivity_AF is not None
        assert np.abs(np.log(item.sensitivity_AF / alone[item.trace_id])).max() < 0.25
        other = without[item.trace_id]
        assert other.sensitivity_AF is None and other.projections_AFK is not None and item.projections_AFK is not None
        np.testing.assert_array_equal(item.projections_AFK, other.projections_AFK)
        np.testing.assert_array_equal(item.logits_N, other.logits_N)


def test_the_model_is_left_as_it_was(reference: HfReference) -> None:
    trace = some_traces(1)[0]
    before = states_of(reference, trace, narrow=False)
    with pytest.raises(RuntimeError, match="on purpose"), rounded(reference._model.base_model):
        raise RuntimeError("on purpose")
    for mine, theirs in zip(before, states_of(reference, trace, narrow=False), strict=True):
        assert torch.equal(mine, theirs)


def test_only_a_float32_model_can_say_it(tb7m: Path, reference: HfReference) -> None:
    narrow = load(f"hf:{tb7m}", ReferenceSettings(device="cpu", dtype="bfloat16"))
    assert narrow.measuring(SPEC) is not None
    assert narrow.measuring(SPEC, sensitivity=True) is None
    with pytest.raises(ReferenceError, match=r"projections and their sensitivity .* use hf:DIR in float32"):
        Replayer(narrow).with_projections(SPEC, sensitivity=True)


def test_recorded_evidence_has_it_or_not(reference: HfReference, tmp_path: Path) -> None:
    trace = some_traces(1)[0]
    tokens = len(trace.output_token_ids)
    planned = [Planned(id=trace.id, trace=trace, end=tokens, tokens=tokens)]
    for name, sensitivity in (("with", True), ("without", False)):
        replayer = Replayer(reference, spool=tmp_path / name).with_projections(SPEC, sensitivity=sensitivity)
        (made,) = (evidence for _, evidence in replayer.run(planned, label="replay"))
        assert made is not None
        recorded = RecordedReference(tmp_path / name).measuring(SPEC, sensitivity=sensitivity)
        assert recorded is not None
        (read,) = recorded.evidence([trace])
        if sensitivity:
            assert made.sensitivity_AF is not None and read.sensitivity_AF is not None
            np.testing.assert_array_equal(read.sensitivity_AF, made.sensitivity_AF)
    assert RecordedReference(tmp_path / "without").measuring(SPEC, sensitivity=True) is None
    assert RecordedReference(tmp_path / "with").measuring(SPEC) is not None
