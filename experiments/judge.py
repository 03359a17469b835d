"""One step of judging in a process of its own: it loads transformers, and vLLM's processes must not.

judge.py fit EXPERIMENT MODEL FOLDER             what is fitted on honest sequences; leaves fitted.json
judge.py score EXPERIMENT MODEL FOLDER NAME ...  every detector's value; leaves NAME.scores.npz of each; a provider that
                                                 fails does not stop the next
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import numpy as np

import scores
import spec as specs
from veridifr import Reference
from veridifr.rng import compiled


def main(verb: str, file: str, model: str, folder: str, *names: str) -> int:
    """See the module's text. Exit status: 1 if a provider failed."""
    compiled.enable()
    experiment, out = specs.read(Path(file)), Path(folder)
    path = experiment.models[model]
    size = int(json.loads((path / "config.json").read_text())["hidden_size"])
    reference = scores.reference_of(path)
    if verb == "fit":
        honest = []
        for one in experiment.honest:
            if not (out / f"{one.file}.jsonl.gz").exists():
                continue  # it failed, which the run reports
            traces, states = scores.read_provider(out, one)
            part = states if states is None else states[: experiment.fit]
            honest.append(list(scores.replay(reference, size, traces[: experiment.fit], part)))
        scores.fit(experiment, honest).save(out / "fitted.json")
        return 0
    fitted, failed = scores.Fitted.load(out / "fitted.json"), 0
    for name in names:
        provider = next(one for one in experiment.providers if one.name == name)
        try:
            _score(experiment, reference, size, fitted, provider, out)
        except Exception:  # noqa: BLE001  (whatever it is, the next provider is still wanted)
            print(f"{name}: failed\n{traceback.format_exc()}", flush=True)
            failed = 1
    return failed


def _score(
    experiment: specs.Experiment, reference: Reference, size: int, fitted: scores.Fitted, provider: specs.Provider,
    out: Path,
) -> None:  # fmt: skip
    traces, states = scores.read_provider(out, provider)
    first = experiment.fit if provider.honest else 0
    seen = first if states is None else len(states)  # hidden states are there for these only
    parts = (
        scores.replay(reference, size, traces[first:seen], None if states is None else states[first:]),
        scores.replay(reference, size, traces[seen:], None),
    )
    pairs = [scores.measure(experiment, item, fitted) for part in parts for item in part]
    arrays = {"tokens": np.stack([tokens for tokens, _ in pairs])}
    if states is not None:
        arrays["activations"] = np.stack([found for _, found in pairs if found is not None])
    kept = {key: scores.shortened(value, experiment.stored_bits) for key, value in arrays.items()}
    np.savez_compressed(out / f"{provider.file}.partial.npz", **kept)  # type: ignore[arg-type]  # arrays by name
    (out / f"{provider.file}.partial.npz").replace(out / f"{provider.file}.scores.npz")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
