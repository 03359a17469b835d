"""One step of judging in a process of its own: it loads transformers, and vLLM's processes must not.

judge.py fit EXPERIMENT MODEL FOLDER           what is fitted on honest sequences; leaves fitted.json
judge.py score EXPERIMENT MODEL FOLDER NAME    every detector's value; leaves NAME.scores.npz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import scores
import spec as specs
from veridifr.rng import compiled


def main(verb: str, file: str, model: str, folder: str, name: str = "") -> None:
    """See the module's text."""
    compiled.enable()
    experiment, out = specs.read(Path(file)), Path(folder)
    path = experiment.models[model]
    size = int(json.loads((path / "config.json").read_text())["hidden_size"])
    reference = scores.reference_of(path)
    if verb == "fit":
        honest = []
        for one in experiment.honest:
            traces, states = scores.read_provider(out, one)
            part = states if states is None else states[: experiment.fit]
            honest.append(list(scores.replay(reference, size, traces[: experiment.fit], part)))
        scores.fit(experiment, honest).save(out / "fitted.json")
        return
    provider = next(one for one in experiment.providers if one.name == name)
    fitted = scores.Fitted.load(out / "fitted.json")
    traces, states = scores.read_provider(out, provider)
    first = experiment.fit if provider.honest else 0
    rest = states if states is None else states[first:]
    pairs = [scores.measure(experiment, item, fitted) for item in scores.replay(reference, size, traces[first:], rest)]
    arrays = {"tokens": np.stack([tokens for tokens, _ in pairs]).astype(np.float32)}
    if states is not None:
        arrays["activations"] = np.stack([found for _, found in pairs if found is not None]).astype(np.float32)
    np.savez_compressed(out / f"{provider.file}.partial.npz", **arrays)
    (out / f"{provider.file}.partial.npz").replace(out / f"{provider.file}.scores.npz")


if __name__ == "__main__":
    main(*sys.argv[1:])
