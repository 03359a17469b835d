"""Prompt files, and the set that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from veridifr.collecting.prompts import Prompt, default_prompts, read_prompts
from veridifr.errors import TraceError


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_three_kinds(tmp_path: Path) -> None:
    lines = (
        '{"id": "a", "prompt": "hé"}\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n'
        '{"prompt_token_ids": [1, 2]}\n'
    )
    text, chat, ids = read_prompts(written(tmp_path / "p.jsonl", lines))
    assert (text.id, text.prompt) == ("a", "hé")
    assert chat.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    assert ids.prompt_token_ids == (1, 2)
    assert text.as_chat() == Prompt(id="a", messages=({"role": "user", "content": "hé"},))
    assert chat.as_chat() is chat and ids.as_chat() is ids


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "empty"),
        ("5", "expected an object"),
        ("{}", "got none, expected one of prompt"),
        ('{"prompt": "a", "prompt_token_ids": [1]}', "got prompt and prompt_token_ids"),
        ('{"prompt": "a", "temperature": 1}', "'temperature': not a key of a prompt"),
        ('{"prompt": ""}', "prompt: got 0 characters"),
        ('{"prompt": 5}', "prompt: got int"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"prompt_token_ids": []}', "prompt_token_ids"),
        ('{"prompt_token_ids": [-1]}', "prompt_token_ids"),
        ('{"messages": []}', "messages: expected a list"),
        ('{"messages": ["hi"]}', r"messages\[0\]: expected an object"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\]"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', r"messages\[0\].content: got list"),
        ('{"messages": [{"role": "user", "content": "x", "name": "n"}]}', r"messages\[0\]"),
        ('{"id": "", "prompt": "a"}', "id: got an empty string"),
        ('{"id": "b", "prompt": "a"}', "'b' occurs twice"),
    ],
)
def test_a_line_that_is_none_is_refused_with_its_place(tmp_path: Path, line: str, named: str) -> None:
    path = written(tmp_path / "p.jsonl", f'{{"id": "b", "prompt": "first"}}\n{line}\n')
    with pytest.raises(TraceError, match=rf"p.jsonl:2: .*{named}"):
        read_prompts(path)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="holds no prompts"):
        read_prompts(written(tmp_path / "p.jsonl", ""))
    with pytest.raises(TraceError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


def test_the_default_set_is_varied() -> None:
    """Some hundred texts, none twice and none the beginning of another, in several scripts and program languages."""
    found = read_prompts("default")
    assert found == default_prompts()
    texts = [prompt.prompt or "" for prompt in found]
    assert 300 <= len(texts) <= 400
    assert not [a for a in texts for b in texts if a is not b and b.startswith(a)]
    assert len({text.split()[0] for text in texts}) > 100
    assert all(10 <= len(text) <= 400 for text in texts)
    for sign in ("def ", "SELECT", "#include", "fn ", "func ", "const ", "é", "ü", "¿", "日", "я", "한"):
        assert any(sign in text for text in texts), sign
    assert sum(text.endswith("?") for text in texts) > 60
