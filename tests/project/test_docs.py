"""What the documents say must be so: links lead somewhere, commands and options exist, JSON examples parse."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import veridifr

from .guards import ROOT

DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCS]
FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
VERBS = (
    "demo",
    "audit",
    "collect",
    "compare",
    "plan",
    "calibrate",
    "replay",
    "samplers",
    "noise",
    "report",
    "import",
    "seeds",
    "serve-flags",
)
ACTIONS = {"seeds": ("new-secret", "issue", "check")}
README = ROOT / "README.md"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks in one of `languages` ("" for a block that names none)."""
    return [body for _, language, body in FENCE.findall(text) if language in languages]


def anchor(heading: str) -> str:
    """The fragment that a renderer gives a heading: lower case, spaces to hyphens, other punctuation gone."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE)}


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a document whose file or heading does not exist."""
    broken = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, fragment = unquote(target).partition("#")
        where = (path.parent / file).resolve() if file else path
        if not where.is_relative_to(ROOT) or not where.exists():
            broken.append(target)
        elif fragment and where.suffix == ".md":
            content = text if where == path else where.read_text(encoding="utf-8")
            broken += [] if fragment in anchors(content) else [target]
    return broken


def commands(text: str) -> list[list[str]]:
    """Every `veridifr ...` command line of the shell blocks and code spans of a document, split as a shell would."""
    lines = [
        line.partition("#")[0].strip().removeprefix("$ ")
        for body in blocks(text, "", "bash", "sh", "shell", "console", "yaml")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`(veridifr [^`\n]+)`", FENCE.sub("", text))
    found = []
    for line in lines:
        match = re.search(r"(?:^|[\s/&;|])veridifr\s+([a-z][^&;|>#]*)", " " + line)
        if match:
            found.append(shlex.split(match[1].replace("'", "").replace('"', "")))  # quotes may span what was cut off
    return found


@functools.cache
def help_of(*verb: str) -> str:
    """`veridifr VERB --help`; fails the test if it does."""
    done = subprocess.run(
        [sys.executable, "-m", "veridifr", *verb, "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wrong_commands(found: list[list[str]]) -> list[str]:
    """Command lines whose verb or long option the program does not know."""
    wrong = []
    for words in found:
        if words[0] not in VERBS:
            wrong.append(f"veridifr {words[0]}: no such command")
            continue
        verb = words[:1]
        if words[0] in ACTIONS and len(words) > 1:
            if words[1] not in ACTIONS[words[0]]:
                wrong.append(f"veridifr {words[0]} {words[1]}: no such action")
                continue
            verb = words[:2]
        options = {word.split("=")[0].rstrip(".,:)") for word in words if word.startswith("--")}
        known = set(re.findall(r"--[a-z][\w-]*", help_of(*verb)))
        wrong += [f"veridifr {' '.join(verb)} {option}: no such option" for option in sorted(options - known)]
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert broken_links(ROOT / name, read(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_json_examples_parse(name: str) -> None:
    text = read(name)
    for body in blocks(text, "json"):
        json.loads(body)
    for body in blocks(text, "jsonl"):
        for line in body.splitlines():
            json.loads(line)


@pytest.mark.parametrize("name", NAMES)
def test_python_examples_compile_and_import_what_exists(name: str) -> None:
    for body in blocks(read(name), "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module == "veridifr":
                assert [alias.name for alias in node.names if alias.name not in veridifr.__all__] == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    assert wrong_commands(commands(read(name))) == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help_and_is_in_the_readme(verb: str) -> None:
    assert "usage: veridifr" in help_of(verb)
    assert re.search(rf"\bveridifr {verb}\b", README.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("verb", "action"), [(verb, action) for verb in ACTIONS for action in ACTIONS[verb]])
def test_every_action_has_help(verb: str, action: str) -> None:
    assert f"usage: veridifr {verb} {action}" in help_of(verb, action)
    assert action in help_of(verb)


def test_the_readme_opens_with_the_two_commands() -> None:
    text = README.read_text(encoding="utf-8")
    shell = "\n".join(blocks(text, "", "bash", "sh", "shell", "console"))
    assert "make demo" in shell
    assert "make test" in shell
    assert re.search(r"!\[[^\]]+\]\(docs/img/", text), "a picture of a report, with a text for those who can't see it"


@pytest.mark.parametrize(
    "name",
    [
        "docs/trace-format.md",
        "docs/threat-model.md",
        "docs/adding-an-engine.md",
        "docs/statistics.md",
        "docs/ci-recipe.md",
        "docs/how-to-choose.md",
        "docs/contracts.md",
        "docs/providers.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
    ],
)
def test_the_document_exists(name: str) -> None:
    assert len(read(name)) > 400


def test_the_normative_format_has_examples() -> None:
    assert blocks(read("docs/trace-format.md"), "json", "jsonl")


def test_every_document_is_reachable_from_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    linked = {unquote(target).partition("#")[0] for target in LINK.findall(text)}
    assert [name for name in NAMES if name.startswith("docs/") and name not in linked] == []


def test_exit_statuses_are_stated() -> None:
    for name in ("README.md", "docs/ci-recipe.md"):
        for status in range(5):
            assert re.search(rf"^\W*{status}\b", read(name), re.MULTILINE), f"{name} does not list exit status {status}"


def test_a_broken_link_is_found() -> None:
    path = ROOT / "docs" / "threat-model.md"
    text = (
        "# One thing\n[a](nowhere.md) [b](../README.md) [c](#one-thing) [d](#two) [e](https://example.org/x) `[f](no)`"
    )
    assert broken_links(path, text) == ["nowhere.md", "#two"]


def test_a_wrong_command_is_found() -> None:
    text = (
        "```bash\n$ veridifr adit x\nmake y && veridifr audit T --no-such \\\n  --neither\n```\n`veridifr noise --json`"
        "\n`veridifr seeds issue R --no-secret` `veridifr seeds reveal` `veridifr seeds`"
    )
    found = commands(text)
    assert found == [["adit", "x"], ["audit", "T", "--no-such", "--neither"], ["noise", "--json"],
        ["seeds", "issue", "R", "--no-secret"], ["seeds", "reveal"], ["seeds"]]  # fmt: skip
    assert wrong_commands(found) == [
        "veridifr adit: no such command",
        "veridifr audit --neither: no such option",
        "veridifr audit --no-such: no such option",
        "veridifr seeds issue --no-secret: no such option",
        "veridifr seeds reveal: no such action",
    ]


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("What it does", "what-it-does"),
        ("`veridifr audit`: exit status", "veridifr-audit-exit-status"),
        ("[Link](x.md) & more", "link--more"),
    ],
)
def test_anchor(heading: str, expected: str) -> None:
    assert anchor(heading) == expected
