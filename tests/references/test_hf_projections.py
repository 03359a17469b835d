"""The reference's own projections: of the model's hidden states, from the run that gives the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_hf import some_traces

from veridifr.errors import FingerprintError
from veridifr.fingerprints import FingerprintSpec, project
from veridifr.references import ReferenceSettings, load
from veridifr.references.hf import HfReference


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> HfReference:
    return load(f"hf:{tb7m}", ReferenceSettings(device="cpu"))  # type: ignore[return-value]


def test_projections_of_the_run_that_gives_the_logits(reference: HfReference) -> None:
    spec = FingerprintSpec(seed=4, hidden_size=256, k=6, encoding="sign", taps=("final", "layer.2"), every=2)
    traces = some_traces(4)
    measuring = reference.measuring(spec)
    assert measuring.settings["fingerprints"] == spec.digest().hex()
    assert "fingerprints" not in reference.settings
    plain = {e.trace_id: e for e in reference.evidence(traces)}
    found = {e.trace_id: e for e in measuring.evidence(traces)}
    for trace in traces:
        own = found[trace.id].projections_AFK
        ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids[:-1]])[None].astype(np.int64)
        with torch.inference_mode():
            base = reference._model.base_model(input_ids=torch.from_numpy(ids), output_hidden_states=True)
        first = len(trace.prompt_token_ids) - 1
        states = [base.last_hidden_state[0, first::2].numpy(), base.hidden_states[3][0, first::2].numpy()]
        assert own is not None and own.dtype == np.float32
        np.testing.assert_allclose(own, np.stack([project(s, 4, 6) for s in states]), atol=2e-4)
        assert plain[trace.id].projections_AFK is None
        np.testing.assert_array_equal(plain[trace.id].logits_N, found[trace.id].logits_N)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"hidden_size": 128}, "spec.hidden_size: got 128"), ({"taps": ("layer.6",)}, "the model has 6 decoder layers")],
)
def test_a_specification_for_another_model(reference: HfReference, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FingerprintError, match=message):
        reference.measuring(FingerprintSpec(**{"seed": 4, "hidden_size": 256, "k": 6, "encoding": "sign", **fields}))
