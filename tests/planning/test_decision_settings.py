"""Other sampling settings in benchmarks/decisions.py: what their files hold, and the score that was told."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from trace_pools import TraceSet, bundle, save_set

import _decision_pauc as pauc
import _decision_settings as settings
from _decision_figures import setting_figures
from veridifr.demo import DATA

LENGTHS, STATISTICS = pauc.SETTING.edges, pauc.SETTING.statistics


def arrays(rng: np.random.Generator, far: float, told: float) -> dict[str, np.ndarray]:
    """Normal scores of an honest and a deviating set; the latter lies `far`, and `told` for the score that was told."""
    found = {"edges": np.array(LENGTHS), "statistics": np.array(STATISTICS)}
    for name, count, shift in (("honest.v1", 1200, 0.0), ("fp8", 400, far)):
        found[f"{name}/scores"] = shift + rng.normal(size=(count, len(LENGTHS), len(STATISTICS)))
        found[f"{name}/fit"] = np.zeros(count, dtype=bool)
        for tokens in pauc.SHUFFLED:
            found[f"{name}/shuffled{tokens}"] = shift + rng.normal(size=(count, len(STATISTICS)))
    found["honest.v1/told.fp8"] = rng.normal(size=(1200, len(LENGTHS)))
    found["fp8/told"] = told + rng.normal(size=(200, len(LENGTHS)))
    return found


def test_a_file_says_which_lengths_and_statistics_it_holds() -> None:
    found = arrays(np.random.default_rng(0), 20.0, 0.0)
    assert pauc.layout_of(found) == pauc.SETTING
    assert pauc.layout_of({}) == pauc.USUAL
    figures = setting_figures(found)
    assert set(figures["pauc"]["fp8"]["10"]) == set(STATISTICS)
    assert figures["pauc"]["fp8"]["10"]["likelihood"] == 1.0
    assert figures["targets"]["fp8"] == {"tokens": 300, "pauc": 1.0, "lower": 1.0, "reached": True}
    assert figures["tokens_at_pauc_0.9"]["fp8"]["likelihood"] is None  # it is there at once
    assert figures["tokens_ratio"]["fp8"]["match_rate"] is None


def test_the_score_that_was_told_is_judged_on_its_own_half() -> None:
    """By itself: the set's other scores tell nothing here, or all."""
    blind = pauc.told(arrays(np.random.default_rng(1), 20.0, 0.0))
    sure = pauc.told(arrays(np.random.default_rng(1), 0.0, 20.0))
    assert blind["fp8"]["300"]["told"] == pytest.approx(0.5, abs=0.02)
    assert sure["fp8"]["300"]["told"] == 1.0
    assert "600" not in sure["fp8"]  # single sequences only
    without = {key: value for key, value in arrays(np.random.default_rng(2), 1.0, 1.0).items() if "told" not in key}
    assert pauc.told(without) == {}
    assert setting_figures(without)["pauc_told"] == {}
    alone = settings.told_alone(arrays(np.random.default_rng(1), 0.0, 20.0))
    assert not any(key.endswith("scores") or "shuffled" in key for key in alone)
    assert pauc.told(alone) == sure
    some = arrays(np.random.default_rng(3), 0.0, 1.5)
    floored = settings.floored(some)
    assert 0.5 < pauc.told(some)["fp8"]["100"]["told"] < 0.9
    assert pauc.told(floored) == pauc.told(some)
    assert np.mean(floored["honest.v1/told.fp8"] == some["honest.v1/told.fp8"]) < 0.06


def test_parts_cover_every_sequence_once(tmp_path: Path) -> None:
    pool = made(tmp_path, {"honest.v1": 30, "int4": 3})
    parts = settings.parts_of([pool], None)
    covered = [n for part in parts["honest.v1"] for n in range(part.first, part.stop)]
    assert covered == list(range(30))
    assert [(part.first, part.stop) for part in settings.parts_of([pool], 2)["int4"]] == [(0, 2)]


def test_collected_scores_are_those_of_judged_sequences(tmp_path: Path) -> None:
    pool = made(tmp_path, {"honest.v1": 30, "int4": 4, "temp1.1": 2})
    source = settings.Source(DATA / "tb7m", "cpu", (pool,))
    settings.collect(source, tmp_path, "hot", 1, None, ["int4"])
    about = json.loads((tmp_path / "decisions_hot.json").read_text())["fitted"]
    with np.load(tmp_path / "decisions_hot.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    judged = 30 - about["fitted_sequences"]
    assert 0 < about["fitted_sequences"] < 30
    assert found["honest.v1/scores"].shape == (judged, len(LENGTHS), len(STATISTICS))
    assert found["honest.v1/told.int4"].shape == (judged, len(LENGTHS))
    assert (found["int4/scores"].shape[0], found["int4/told"].shape[0]) == (4, 2)
    assert not any(name.startswith("temp1.1") for name in found)
    assert found["int4/scores"][:, -1, 0].min() > found["honest.v1/scores"][:, -1, 0].max()
    assert found["int4/told"][:, -1].min() > found["honest.v1/told.int4"][:, -1].max()
    assert about["temperature"] == 1.0
    assert sum(about["shares"]["int4"]) == pytest.approx(1.0, abs=1e-3)


def made(folder: Path, counts: dict[str, int]) -> Path:
    """A file of sets: sequences of the packaged demo, whose honest calibration stands for honest sets."""
    files = {"honest.v1": "calibration.v1", "int4": "int4", "temp1.1": "temp1.1"}
    parts = []
    for name, count in counts.items():
        with gzip.open(DATA / "demo" / f"{files[name]}.jsonl.gz", "rt") as file:
            lines = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
        first = lines[0]
        save_set(
            folder / f"{name}.npz",
            TraceSet(
                tuple(tuple(line["prompt_token_ids"]) for line in lines),
                tuple(tuple(line["output_token_ids"]) for line in lines),
                tuple(line["sampling"]["seed"] for line in lines),
                tuple(range(count)),
                {
                    "model": first["model"],
                    "sampling": {key: value for key, value in first["sampling"].items() if key != "seed"},
                    "engine": first["engine"],
                    "finish_reason": "length",
                },
            ),
        )
        parts.append((name, folder / f"{name}.npz"))
    return bundle(parts, folder / "sets")[0]
