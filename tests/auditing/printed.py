"""Recorded GPU traces with fingerprints that a provider could have sent, and a calibration of honest ones.

The provider's forward pass is the bundled model with each layer's output rounded to bfloat16 (simulated: as cheap as
float32 on a CPU). Everything else is what `veridifr.audit` sees in earnest.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from recorded import DETECT, TOKENS, Recorded, cut, planned
from veridifr.calibration import HonestTraces, calibrate
from veridifr.demo import DATA, model_path
from veridifr.fingerprints import Fingerprint, FingerprintSpec, with_fingerprint
from veridifr.fingerprints.capture import Capture
from veridifr.references import ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.trace import Trace
from veridifr.traces import read_traces

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from rounded_weights import LINEAR, round_groups

SPEC = FingerprintSpec(
    seed=5, hidden_size=256, k=8, encoding="wrapped3", taps=("final", "layer.1", "layer.4"), step_log2=(-5, -8, -6)
)
SIZES = {"v1": 16, "int4": 16, "calibration.v1": 32}


def provider(*, bits: int | None = None, layers: Sequence[int] = range(6)) -> Any:
    """The bundled model as a provider runs it, with the weights of some layers rounded to so many bits."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32, local_files_only=True).eval()
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda _module, _given, out: _rounded(out))
    if bits is not None:
        with torch.no_grad():
            for number in layers:
                for name, module in model.base_model.layers[number].named_modules():
                    if name.split(".")[-1] in LINEAR:
                        module.weight.copy_(round_groups(module.weight, bits))
    return model


def _rounded(output: Any) -> Any:
    if isinstance(output, tuple):
        return (_rounded(output[0]), *output[1:])
    return output.to(torch.bfloat16).to(torch.float32)


def prefilled(model: Any, trace: Trace, spec: FingerprintSpec = SPEC) -> Fingerprint:
    """The fingerprint that `model` leaves over a trace's tokens."""
    ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids[:-1]]).astype(np.int64)
    tokens = len(trace.output_token_ids)
    captured = Capture(model, spec, starts=[len(trace.prompt_token_ids) - 1], counts=[tokens])
    with captured, torch.inference_mode():
        model.base_model(input_ids=torch.from_numpy(ids)[None], use_cache=False)
    return captured.fingerprint(0, tokens)


def stamped(model: Any, traces: Sequence[Trace]) -> list[Trace]:
    return [with_fingerprint(trace, prefilled(model, trace)) for trace in traces]


@functools.cache
def _once(folder: Path) -> Recorded:
    folder.mkdir()
    torch.set_num_threads(1)
    sets = {
        name: [cut(trace, TOKENS) for trace in read_traces(DATA / "demo" / f"{name}.jsonl.gz")][:count]
        for name, count in SIZES.items()
    }
    honest, rounded = provider(), provider(bits=4)
    sets = {name: stamped(honest, traces) for name, traces in sets.items()}
    sets["int4 weights"] = stamped(rounded, sets["v1"])
    sets["int4 all"] = stamped(rounded, sets["int4"])
    model = load(f"hf:{model_path()}", ReferenceSettings(device="cpu", threads=1))
    file = folder / "evidence"
    replayed = [replace(t, extra={}) for name in SIZES for t in sets[name]]
    replayer = Replayer(model, spool=file).with_projections(SPEC, sensitivity=True)
    assert all(evidence for _, evidence in replayer.run(planned(replayed), label="record"))
    calibration = calibrate(
        [HonestTraces(name="calibration.v1", traces=sets["calibration.v1"])],
        load(f"evidence:{file}"),
        detect_sigma=DETECT,
        fingerprints=SPEC,
    )
    return Recorded(file=file, sets=sets, calibration=calibration)


@pytest.fixture(scope="session")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One recording for a test session."""
    return _once(tmp_path_factory.getbasetemp() / "printed")
