"""What experiments on a GPU need: how engines are started, which providers share one, and that one may fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run
import scores
import spec as specs
import worker

GPU = specs.read(Path(specs.__file__).parent / "gpu.toml")
TEXT = """
name = "x"
tokens = 20
fit = 2
judged = 40
edges = [10, 20]
budgets = [10, 40]
claim = {temperature = 1.0}
[models.m]
path = "nowhere"
[models.n]
path = "nowhere"
[defaults]
max_num_seqs = 7
[[providers]]
name = "a"
honest = true
[[providers]]
name = "b"
honest = true
[[providers]]
name = "c"
weights = "int4"
[[providers]]
name = "d"
max_num_seqs = 8
"""


def provider(name: str) -> specs.Provider:
    return next(one for one in GPU.providers if one.name == name)


def test_engines_share_a_gpu() -> None:
    found = worker.options_of(provider("vllm V1, CUDA graphs"), 64, 128, gpu=True)
    assert found["kv_cache_memory_bytes"] == worker.KV_CACHE_BYTES
    assert found["gpu_memory_utilization"] < 0.05
    assert found["max_model_len"] == 192
    assert found["max_num_batched_tokens"] >= 256 * 64  # no prompt in chunks
    assert not found["enforce_eager"]
    assert "quantization" not in found


def test_what_a_provider_changes_reaches_the_engine() -> None:
    assert worker.options_of(provider("fp8 weights and activations"), 64, 128, gpu=True)["quantization"] == "fp8"
    assert worker.options_of(provider("fp8 key-value cache"), 64, 128, gpu=True)["kv_cache_dtype"] == "fp8"
    inside = worker.options_of(provider("1 in 100 tokens uniform among 2"), 64, 128, gpu=True)
    assert inside["logits_processors"] == ["inside:Inside"]
    assert "worker_extension_cls" not in inside
    assert inside["enforce_eager"]
    chunked = worker.options_of(provider("vllm V2, prompts prefilled in chunks"), 64, 128, gpu=True)
    assert 256 <= chunked["max_num_batched_tokens"] < 256 * 64  # no room for all prompts at once


@pytest.mark.parametrize("name", ["fp8 weights and activations", "fp8 key-value cache", "int4 weights, packed (W4A16)"])
def test_what_needs_a_gpu_is_refused_without(name: str) -> None:
    with pytest.raises(ValueError, match="need a GPU"):
        worker.options_of(provider(name), 64, 128, gpu=False)


def test_only_providers_of_one_engine_share_a_process() -> None:
    found = specs.groups(GPU.providers, 4)
    assert sorted(one.name for group in found for one in group) == sorted(one.name for one in GPU.providers)
    assert all(len({one.process for one in group}) == 1 and len(group) <= 4 for group in found)
    assert all(len(group) == 1 for group in found if group[0].honest)
    together = [{one.name for one in group} for group in found]
    assert {"int4 weights", "int4 weights, temperature tuned to hide it"} in together
    assert all(group[0].inside is None or all(one.inside for one in group) for group in found)


def test_hidden_states_are_kept_where_they_are_compared() -> None:
    kept = {one.name: GPU.states_of(one) for one in GPU.providers}
    assert kept["vllm V1, eager"] == GPU.fit + 150
    assert kept["int4 weights"] == kept["context cut to 24 tokens"] == 150
    assert kept["temperature 1.1"] == kept["another seed"] == kept["1 in 100 tokens uniform among 2"] == 0


def test_defaults_are_those_of_providers() -> None:
    assert [one.max_num_seqs for one in specs.parse(TEXT).providers] == [7, 7, 7, 8]
    with pytest.raises(ValueError, match="unknown keys seats"):
        specs.parse(TEXT.replace("max_num_seqs = 7", "seats = 7"))


def test_shortened_values_are_rounded_to_nearest() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * np.logspace(-8, 8, 1000, dtype=np.float32)
    found = scores.shortened(values, 11)
    assert np.all(np.abs(found - values) <= np.abs(values) * 2.0**-12)
    assert not np.any(found.view(np.uint32) & np.uint32((1 << 12) - 1))
    assert np.array_equal(scores.shortened([0.0, 1.0, np.inf, 2047.0], 11), [0.0, 1.0, np.inf, 2047.0])
    assert np.array_equal(scores.shortened(values, 23), values)


class Steps:
    """In the place of the processes: each leaves what it would, but for the providers that fail."""

    def __init__(self, *failing: tuple[str, str, str]) -> None:
        self.failing = failing

    def __call__(self, _run: Any, verb: str, model: str, place: str, *names: str) -> tuple[float, str]:
        folder = Path(place).parent if verb == "prompts" else Path(place)
        if verb == "prompts":
            Path(place).write_text("[]")
            (folder / "engine.json").write_text('{"version": "0.24.0"}')
        if verb == "fit":
            (folder / "fitted.json").write_text("{}")
        left = [name for name in names if (verb, model, name) not in self.failing]
        for name in left:
            if verb == "serve":
                (folder / f"{name}.jsonl.gz").touch()
            if verb == "score":
                rng = np.random.default_rng(len(model) + ord(name))
                np.savez(folder / f"{name}.scores.npz", tokens=rng.random((40, 2, 7), dtype=np.float32))
        return 0.0, "" if len(left) == len(names) else "what it said"


def outcome(monkeypatch: pytest.MonkeyPatch, folder: Path, steps: Steps, *options: str) -> tuple[int, dict[str, Any]]:
    (folder / "x.toml").write_text(TEXT)
    monkeypatch.setattr(run, "_worker", steps)
    words = [str(folder / "x.toml"), "--work", str(folder / "work"), "--results", str(folder), *options]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    status = run.main()
    return status, json.loads((folder / "x" / "table.json").read_text())


def test_all_models_are_in_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, document = outcome(monkeypatch, tmp_path, Steps())
    assert status == 0
    assert {(row["model"], row["deviation"]) for row in document["figures"]["rows"]} == {
        (model, name) for model in ("m", "n") for name in ("c", "d")
    }
    assert document["raw"]["failed"] == {}
    assert document["raw"]["engine"]["m"]["version"] == "0.24.0"


def test_one_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="serve: n: c\nwhat it said"):
        outcome(monkeypatch, tmp_path, Steps(("serve", "n", "c")))


def test_one_that_fails_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = Steps(("serve", "m", "c"), ("score", "n", "d"), ("serve", "n", "a"))
    status, document = outcome(monkeypatch, tmp_path, steps, "--keep-going")
    assert status == 1
    assert {(row["model"], row["deviation"]) for row in document["figures"]["rows"]} == {("m", "d"), ("n", "c")}
    assert document["raw"]["failed"] == {"m": {"c": "serve"}, "n": {"a": "serve", "d": "score"}}
    assert list(document["figures"]["honest"]["n"]) == ["b"]


def test_a_model_without_an_honest_provider_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = Steps(("serve", "m", "a"), ("serve", "m", "b"))
    status, document = outcome(monkeypatch, tmp_path, steps, "--keep-going")
    assert status == 1
    assert {row["model"] for row in document["figures"]["rows"]} == {"n"}


def test_a_time_limit_leaves_providers_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "x.toml", "--deadline", "3"])
    with pytest.raises(SystemExit):
        run.main()
    (tmp_path / "x.toml").write_text(TEXT)
    words = [str(tmp_path / "x.toml"), "--work", str(tmp_path / "work"), "--results", str(tmp_path), "--keep-going"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words, "--deadline", "0"])
    assert run.main() == 1
    assert not (tmp_path / "x").exists()
