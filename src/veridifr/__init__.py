"""veridifr: did this provider really run the model, weights and sampling settings it claims?

The names below are the public API. They load when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from veridifr._version import __version__

if TYPE_CHECKING:
    from veridifr.auditing import Sources, audit
    from veridifr.betting import Sequential
    from veridifr.calibration import Calibration, calibrate
    from veridifr.calibration_io import read_calibration, write_calibration
    from veridifr.collecting import ApiKey, Budget, Collected, Endpoint, Limits, Prompt, collect, read_prompts
    from veridifr.comparing import compare
    from veridifr.comparison import Comparison
    from veridifr.errors import VeridifrError
    from veridifr.finding import Finding, Verdict
    from veridifr.honest_traces import HonestTraces
    from veridifr.identification import Identification, identify
    from veridifr.planning import Aim, Plan, plan
    from veridifr.references import Reference, ReferenceSettings
    from veridifr.references import load as load_reference
    from veridifr.replay import Replayer
    from veridifr.seed_use import SeedReport, seed_report
    from veridifr.seeds import SeedCheck, SeedIssuer, check_seeds, generate_secret, read_secret, write_secret
    from veridifr.trace import EngineRecord, Sampling, Trace
    from veridifr.traces import from_openai, from_vllm, read_traces, write_traces

_PLACES = {
    "Aim": "veridifr.planning",
    "ApiKey": "veridifr.collecting",
    "Budget": "veridifr.collecting",
    "Calibration": "veridifr.calibration",
    "Collected": "veridifr.collecting",
    "Comparison": "veridifr.comparison",
    "Endpoint": "veridifr.collecting",
    "EngineRecord": "veridifr.trace",
    "Finding": "veridifr.finding",
    "HonestTraces": "veridifr.honest_traces",
    "Identification": "veridifr.identification",
    "Limits": "veridifr.collecting",
    "Plan": "veridifr.planning",
    "Prompt": "veridifr.collecting",
    "Reference": "veridifr.references",
    "ReferenceSettings": "veridifr.references",
    "Replayer": "veridifr.replay",
    "Sampling": "veridifr.trace",
    "SeedCheck": "veridifr.seeds",
    "SeedIssuer": "veridifr.seeds",
    "SeedReport": "veridifr.seed_use",
    "Sequential": "veridifr.betting",
    "Sources": "veridifr.auditing",
    "Trace": "veridifr.trace",
    "Verdict": "veridifr.finding",
    "VeridifrError": "veridifr.errors",
    "audit": "veridifr.auditing",
    "calibrate": "veridifr.calibration",
    "check_seeds": "veridifr.seeds",
    "collect": "veridifr.collecting",
    "compare": "veridifr.comparing",
    "from_openai": "veridifr.traces",
    "from_vllm": "veridifr.traces",
    "generate_secret": "veridifr.seeds",
    "identify": "veridifr.identification",
    "load_reference": "veridifr.references",
    "plan": "veridifr.planning",
    "read_calibration": "veridifr.calibration_io",
    "read_prompts": "veridifr.collecting",
    "read_secret": "veridifr.seeds",
    "read_traces": "veridifr.traces",
    "seed_report": "veridifr.seed_use",
    "write_calibration": "veridifr.calibration_io",
    "write_secret": "veridifr.seeds",
    "write_traces": "veridifr.traces",
}

__all__ = [
    "Aim",
    "ApiKey",
    "Budget",
    "Calibration",
    "Collected",
    "Comparison",
    "Endpoint",
    "EngineRecord",
    "Finding",
    "HonestTraces",
    "Identification",
    "Limits",
    "Plan",
    "Prompt",
    "Reference",
    "ReferenceSettings",
    "Replayer",
    "Sampling",
    "SeedCheck",
    "SeedIssuer",
    "SeedReport",
    "Sequential",
    "Sources",
    "Trace",
    "Verdict",
    "VeridifrError",
    "__version__",
    "audit",
    "calibrate",
    "check_seeds",
    "collect",
    "compare",
    "from_openai",
    "from_vllm",
    "generate_secret",
    "identify",
    "load_reference",
    "plan",
    "read_calibration",
    "read_prompts",
    "read_secret",
    "read_traces",
    "seed_report",
    "write_calibration",
    "write_secret",
    "write_traces",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'veridifr' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), "load" if name == "load_reference" else name)


def __dir__() -> list[str]:
    return sorted(__all__)
