"""Who may import whom. Each rule holds for the tree as it is, and is shown to catch a module that breaks it."""

from __future__ import annotations

import ast
import sys

import pytest

from .guards import imports, modules, parse, within

# Modules below a prefix may import, of this package, only what lies below the names given (and below itself).
ONLY: dict[str, tuple[str, ...]] = {
    "veridifr.errors": (),
    "veridifr.trace": ("veridifr.errors",),
    "veridifr.finding": ("veridifr.errors",),
    "veridifr.rng": ("veridifr.errors",),
    "veridifr.stats": ("veridifr.errors",),
    "veridifr.traces": ("veridifr.errors", "veridifr.trace"),
    "veridifr.origins": ("veridifr.trace",),
    "veridifr.requests": ("veridifr.errors", "veridifr.origins", "veridifr.trace"),
    "veridifr.collecting": (
        "veridifr.errors",
        "veridifr.origins",
        "veridifr.seeds",
        "veridifr.trace",
        "veridifr.traces",
    ),
    "veridifr.evidence": ("veridifr.errors", "veridifr.trace"),
    "veridifr.evidence_io": ("veridifr.errors", "veridifr.trace", "veridifr.evidence"),
    "veridifr.filters": ("veridifr.errors", "veridifr.trace"),
    "veridifr.contracts": ("veridifr.errors", "veridifr.trace", "veridifr.rng"),
    "veridifr.processors": ("veridifr.errors", "veridifr.trace", "veridifr.contracts"),
    "veridifr.shares": (),  # arithmetic for tokens and fingerprints alike
    # a fingerprint is attached to a trace, and read from one
    "veridifr.fingerprints": ("veridifr.errors", "veridifr.rng", "veridifr.shares", "veridifr.trace"),
    # runs in a provider's engine: no statistics, no reference, no verdict
    "veridifr.vllm": (
        "veridifr.errors",
        "veridifr.trace",
        "veridifr.traces",
        "veridifr.contracts",
        "veridifr.fingerprints",
    ),
    "veridifr.comparison": ("veridifr.errors", "veridifr.finding"),
    "veridifr.report": ("veridifr.errors", "veridifr.finding", "veridifr.comparison", "veridifr.trace"),
    "veridifr.seeds": ("veridifr.errors", "veridifr.trace", "veridifr.traces"),
    "veridifr.seed_use": ("veridifr.errors", "veridifr.trace"),
}

# Modules below a prefix may not import anything below these, whatever else they import. Scores never see a reference or
# a test, so they can be recomputed from evidence on disk; references never see what is made of their logits.
NEVER: dict[str, tuple[str, ...]] = {
    "veridifr.references": ("veridifr.finding", "veridifr.report", "veridifr.stats", "veridifr.scores"),
    "veridifr.scores": ("veridifr.finding", "veridifr.report", "veridifr.stats", "veridifr.references"),
    "veridifr.likelihood": ("veridifr.finding", "veridifr.report", "veridifr.stats", "veridifr.references"),
    "veridifr.calibration": ("veridifr.finding", "veridifr.report"),
}

# Third-party modules, and the only places that may import them (None: anywhere).
THIRD_PARTY: dict[str, tuple[str, ...] | None] = {
    "numpy": None,
    "scipy": None,
    "tqdm": None,
    "torch": (
        "veridifr.references",
        "veridifr.fingerprints.capture",
        "veridifr.fingerprints.projector",
        "veridifr.vllm.inspection",
        "veridifr.vllm.self_test",
        "veridifr.vllm.staging",
    ),
    "vllm": (
        "veridifr.references.vllm_engine",
        "veridifr.references.vllm_steps",
        "veridifr.vllm.extension",
        "veridifr.vllm.inspection",
        "veridifr.vllm.runner_v2",
        "veridifr.vllm.self_test",
    ),
    "triton": ("veridifr.references.race_kernels",),
    "transformers": ("veridifr.references", "veridifr.collecting.tokenizer"),
    "tokenizers": ("veridifr.references",),
    "safetensors": ("veridifr.references",),
    "huggingface_hub": ("veridifr.references",),
    "httpx": ("veridifr.references", "veridifr.collecting.sending"),
    "pyarrow": ("veridifr.traces",),
    "numba": ("veridifr.rng.compiled",),
}


def wrong_imports(module: str, names: set[str]) -> list[str]:
    """What is wrong with a module of this package that imports `names`; empty if nothing is."""
    wrong = []
    own = {name for name in names if within(name, ("veridifr",))}
    for prefix, allowed in ONLY.items():
        if within(module, (prefix,)):
            outside = own - {"veridifr", "veridifr._version"} - {n for n in own if within(n, (prefix, *allowed))}
            wrong += [f"{module} imports {name}, which {prefix} may not" for name in sorted(outside)]
    for prefix, forbidden in NEVER.items():
        if within(module, (prefix,)):
            wrong += [f"{module} imports {name}" for name in sorted(own) if within(name, forbidden)]
    if module != "veridifr.__main__" and not within(module, ("veridifr.cli",)):
        wrong += [f"{module} imports {name}: only __main__ may" for name in own if within(name, ("veridifr.cli",))]
    if module != "veridifr.cli":  # the parts of the command line are its own
        wrong += [f"{module} imports {name}: only veridifr.cli may" for name in own if name.startswith("veridifr.cli_")]
    for name in sorted(names - own):
        top = name.split(".")[0]
        places = THIRD_PARTY.get(top, ())
        if top not in sys.stdlib_module_names and places is not None and not within(module, places):
            wrong.append(f"{module} imports {name}, allowed in {', '.join(places) or 'no module'}")
    return wrong


def known(name: str) -> bool:
    return name in modules()


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports(module: str) -> None:
    path = modules()[module]
    found = imports(parse(path), module, package=path.name == "__init__.py")
    # `from veridifr import x` names an attribute or a module; only the modules matter here.
    assert wrong_imports(module, {n for n in found if not within(n, ("veridifr",)) or known(n)}) == []


def test_every_rule_is_about_something_that_exists() -> None:
    rules = {*ONLY, *NEVER, *(name for places in THIRD_PARTY.values() for name in places or ())}
    assert sorted(rules - modules().keys()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("veridifr.stats.power", "from veridifr.trace import Trace"),
        ("veridifr.stats.power", "from ..trace import Trace"),
        ("veridifr.stats", "def late():\n    import veridifr.audit"),
        ("veridifr.contracts.greedy", "from veridifr import references"),
        ("veridifr.processors", "import veridifr.report.html"),
        ("veridifr.rng", "from veridifr.finding import Finding"),
        ("veridifr.scores", "import veridifr.references.hf"),
        ("veridifr.references.hf", "from veridifr.finding import Finding"),
        ("veridifr.audit", "from veridifr.cli import main"),
        ("veridifr.seeds", "from veridifr.auditing import audit"),
        ("veridifr.audit", "import veridifr.cli_seeds"),
        ("veridifr.audit", "import torch"),
        ("veridifr.audit", "from veridifr.errors import require\nrequire('torch.nn', 'hf')"),
        ("veridifr.audit", "import importlib\nimportlib.import_module('transformers')"),
        ("veridifr.report.html", "import jinja2"),
        ("veridifr.vllm.offline", "import vllm"),
        ("veridifr.vllm.recorder", "import torch"),
        ("veridifr.vllm.recorder", "from veridifr.scoring import score"),
        ("veridifr.references.hf", "import pyarrow"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    package = module.count(".") == 1 and module in ("veridifr.stats",)
    assert wrong_imports(module, imports(ast.parse(source), module, package=package)) != []


@pytest.mark.parametrize(
    ("module", "package", "source", "expected"),
    [
        ("veridifr.stats.power", False, "from . import intervals", "veridifr.stats.intervals"),
        ("veridifr.stats.power", False, "from .intervals import f", "veridifr.stats.intervals"),
        ("veridifr.stats.power", False, "from ..errors import f", "veridifr.errors"),
        ("veridifr.stats", True, "from .intervals import f", "veridifr.stats.intervals"),
        ("veridifr.stats", True, "from ..errors import f", "veridifr.errors"),
        ("veridifr.audit", False, "import numpy.typing as npt", "numpy.typing"),
    ],
)
def test_relative_imports_are_resolved(module: str, package: bool, source: str, expected: str) -> None:
    assert expected in imports(ast.parse(source), module, package=package)
