"""Plans give every set prompts of its own, change one thing at a time, and outlive a set that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_traces
import numpy as np
import pytest
import torch
from gpu_traces import PAPER, PLANS, command, parser, prompts_command, shrunk
from process_runner import Runner
from rounded_weights import INT8_CONFIG, int4_packed, int8_channels, round_groups, write_rounded
from safetensors.torch import load_file, save_file
from trace_engine import choose
from trace_pools import PromptSet, load_pool, load_prompts, save_prompts

MODELS = Path("models")


@pytest.mark.parametrize("name", sorted(PLANS))
def test_sets_of_a_plan_share_no_prompt(name: str) -> None:
    conditions = PLANS[name](MODELS).conditions
    numbers = [n for c in conditions for n in range(c.first, c.first + c.count)]
    assert numbers == list(range(sum(c.count for c in conditions)))
    assert len({c.name for c in conditions}) == len(conditions)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_a_set_deviates_in_one_thing_and_honest_ones_in_none(name: str) -> None:
    plan = PLANS[name](MODELS)
    for condition in plan.conditions:
        changes = [
            condition.weights != "bf16",
            condition.kv_cache != "auto",
            condition.model.name != condition.claimed_model,
            condition.used != condition.claimed,
        ]
        honest = condition.name.startswith(("v1", "v2", "honest", "more", "calibration"))
        assert sum(changes) == (0 if honest else 1), condition.name
        assert condition.claimed_model == plan.model
        assert len(condition.used.items() - condition.claimed.items()) <= 1
        usual = {"hot": gpu_traces.HOT, "unfiltered": gpu_traces.UNFILTERED}.get(name, PAPER)
        assert condition.claimed == (gpu_traces.PLAIN if "plain" in condition.name else usual)


def test_demo_has_the_sets_that_the_issue_asks_for() -> None:
    sets = {c.name: (c.count, c.runner) for c in PLANS["demo"](MODELS).conditions}
    honest = {"v1": (40, "v1"), "v2": (40, "v2"), "calibration.v1": (120, "v1"), "calibration.v2": (120, "v2")}
    assert sets == {**honest, "int4": (40, "v1"), "temp1.1": (40, "v2")}


def test_a_shrunk_plan_keeps_prompts_apart() -> None:
    plan = shrunk(PLANS["pools"](MODELS), count=3, only=["fp8", "honest.v2"], runner="v1")
    assert [(c.name, c.first, c.count, c.runner) for c in plan.conditions] == [
        ("honest.v2", 0, 3, "v1"),
        ("fp8", 3, 3, "v1"),
    ]
    with pytest.raises(SystemExit, match="plan pools has no set nonsense"):
        shrunk(plan, count=None, only=["nonsense"], runner=None)


def test_a_set_made_later_keeps_the_prompts_it_has_in_the_whole_plan() -> None:
    whole = PLANS["pools"](MODELS)
    late = next(c for c in whole.conditions if c.name == "held.int8")
    plan = shrunk(whole, count=None, only=["held.int8"], runner=None)
    assert plan.conditions == (late,)
    options = parser().parse_args(["plan", "pools", "--models", "models", "--out", "o"])
    read = parser().parse_args(prompts_command(plan, Path("p.npz"), options)[2:])
    assert (read.count, read.start, read.runner) == (late.first + late.count, whole.start, "v2")


def test_the_command_line_of_a_set_says_all_of_it() -> None:
    condition = next(c for c in PLANS["pools"](MODELS).conditions if c.name == "held.temp0.95")
    options = parser().parse_args(["plan", "pools", "--models", "models", "--out", "o"])
    line = command(condition, Path("p.npz"), Path("s.npz"), options)
    read = parser().parse_args(line[2:])
    assert json.loads(read.claimed) == PAPER
    assert json.loads(read.used) == {**PAPER, "temperature": 0.95}
    assert (read.first, read.count, read.runner, read.compact) == (condition.first, 1200, "v1", True)
    assert (read.model, read.claimed_model, read.max_tokens) == (MODELS / "tb24m", "tb24m", 300)


def test_prompts_with_a_special_token_or_a_known_opening_are_left_out() -> None:
    openings = {(0, 9, 9)}
    candidates = [(0, 3, 4, 5), (0, 3, 1, 5), (0, 3, 4, 6), (0, 9, 9, 7), (0, 4, 4, 4)]
    assert choose(candidates, (0, 1, 2), 3, openings) == [0, 4]
    assert openings == {(0, 9, 9), (0, 3, 4), (0, 4, 4)}


def test_a_process_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = Runner(tmp_path, deadline=60.0)
    bad = "raise SystemExit('no such kernel')"
    commands = {"bad": [sys.executable, "-c", bad], "good": [sys.executable, "-c", "print(1)"]}
    assert runner.run(commands, 1) == ["good"]
    assert runner.failed == {"bad": "exit status 1: no such kernel"}
    assert "    no such kernel" in capsys.readouterr().out


def test_past_the_deadline_what_runs_is_ended_and_nothing_is_started(tmp_path: Path) -> None:
    runner = Runner(tmp_path, deadline=0.3)
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert runner.run({"long": sleep, "next": sleep}, 1) == []
    assert runner.failed == {"long": "ended: past the deadline", "next": "not started: past the deadline"}


def test_a_plan_can_reuse_the_prompts_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = PromptSet(((0, 1), (0, 2)), (3, 4), (5, 6), {"start": 2})
    save_prompts(tmp_path / "old.npz", known)
    ran: list[str] = []
    monkeypatch.setattr(Runner, "run", lambda self, commands, jobs: ran.extend(commands) or [])
    line = ["plan", "pools", "--models", "models", "--out", str(tmp_path / "out"), "--only", "fp8", "--count", "2"]
    assert gpu_traces.run_plan(parser().parse_args([*line, "--prompts", str(tmp_path / "old.npz")])) == 1
    assert ran == ["fp8"]
    assert load_prompts(tmp_path / "out" / "prompts.npz") == known


@pytest.mark.parametrize("name", ["demo", "pools"])
def test_a_plan_writes_what_it_could_make_and_exits_with_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]
    real = Runner.run

    def run(self: Runner, commands: dict[str, list[str]], jobs: int) -> list[str]:
        return real(self, {key: stub + line[2:] for key, line in commands.items()}, jobs)

    monkeypatch.setattr(Runner, "run", run)
    line = ["plan", name, "--models", "models", "--out", str(tmp_path / "out"), "--count", "2", "--jobs", "2"]
    sets = ["v1", "int4"] if name == "demo" else ["honest.v1", "int4"]
    for each in sets:
        line += ["--only", each]
    assert gpu_traces.run_plan(parser().parse_args(line)) == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["sets"]) == sets[:1]
    assert manifest["failed"] == {"int4": "exit status 1: no int4 here"}
    made = tmp_path / "out" / ("v1.jsonl.gz" if name == "demo" else "pools-0.npz")
    assert list(manifest["sha256"]) == [made.name]
    if name == "pools":
        assert [t["id"] for t in load_pool(made, "honest.v1")] == ["honest.v1/0", "honest.v1/1"]


def test_rounding_has_the_values_worked_out_by_hand() -> None:
    weight = torch.tensor([[7.0, -7.0, 1.4, 1.6, 0.3, 0.0, -0.6, 0.0]])
    assert round_groups(weight, 4, group=4).tolist() == [[7.0, -7.0, 1.0, 2.0, *_by_hand()]]
    assert round_groups(torch.tensor([[3.0, 1.4, -1.6, 0.0]]), 3, group=4).tolist() == [[3.0, 1.0, -2.0, 0.0]]
    with pytest.raises(ValueError, match="no multiple of the group of 3"):
        round_groups(weight, 4, group=3)


def _by_hand() -> list[float]:
    """The second group: the largest is 0.6, so the scale is 0.6 / 7, and 0.3 is 3.5 steps, which goes to 4 (even)."""
    step = float(np.float32(0.6) / np.float32(7))
    return [float(np.float32(4) * np.float32(step)), 0.0, float(np.float32(-7) * np.float32(step)), 0.0]


def test_int8_levels_use_the_whole_range_of_each_output() -> None:
    levels, scale = int8_channels(torch.tensor([[127.0, -1.0], [0.5, 0.25]]))
    assert levels.tolist() == [[127, -1], [127, 64]]
    assert scale.tolist() == [[1.0], [float(np.float32(0.5) / np.float32(127))]]


def test_packed_int4_is_what_compressed_tensors_reads() -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(1))
    found = int4_packed(weight)
    levels = unpack_from_int32(found["weight_packed"], 4, torch.Size(found["weight_shape"].tolist()))
    assert found["weight_packed"].shape == (6, 32)
    assert int(levels.min()) >= -8
    assert int(levels.abs().max()) == 7
    again = (levels.reshape(6, 2, 128) * found["weight_scale"][:, :, None]).reshape(6, 256)
    assert torch.equal(again, round_groups(weight, 4))


def test_packed_levels_are_those_of_the_scale_that_is_kept() -> None:
    """Scales are rounded to bfloat16: every weight goes to the level nearest to it by that scale."""
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    found = int4_packed(weight)
    assert found["weight_scale"].dtype == torch.bfloat16
    unsigned = found["weight_packed"][:, :, None].to(torch.int64) >> (4 * torch.arange(8)) & 15
    nearest = (weight.float() / found["weight_scale"].float()).round().clamp(-8, 7) + 8
    assert torch.equal(unsigned.reshape(4, 128), nearest.to(torch.int64))


def test_only_linear_layers_are_rounded(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight")
    tensors = {name: torch.randn(4, 128, generator=generator).to(torch.bfloat16) for name in names}
    source = tmp_path / "m"
    source.mkdir()
    save_file(tensors, str(source / "model-00001-of-00001.safetensors"))
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "config.json").write_text('{"model_type": "llama"}')
    for kind in ("int3", "int8"):
        assert write_rounded(source, tmp_path / kind, kind) == 1
        made = load_file(str(tmp_path / kind / "model.safetensors"))
        changed = {name for name in names if not torch.equal(made[name], tensors[name])}
        assert changed == {"model.layers.0.mlp.up_proj.weight"}
        assert not (tmp_path / kind / "model.safetensors.index.json").exists()
    assert made["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config == {"model_type": "llama", "quantization_config": INT8_CONFIG}
    assert write_rounded(source, tmp_path / "packed", "int4_packed") == 1
    packed = load_file(str(tmp_path / "packed" / "model.safetensors"))
    parts = {f"model.layers.0.mlp.up_proj.{part}" for part in ("weight_packed", "weight_scale", "weight_shape")}
    assert set(packed) == {*names, *parts} - {"model.layers.0.mlp.up_proj.weight"}
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
    with pytest.raises(ValueError, match="got int5"):
        write_rounded(source, tmp_path / "int5", "int5")
