"""From an answer to token ids: from the server, from token strings, from the text, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Body, FakeServer, Request
from runs import run

from makers import make_trace
from veridifr import Prompt, Sampling, read_traces
from veridifr.collecting.answers import read_answer
from veridifr.collecting.tokenizer import Tokenizer
from veridifr.collecting.writing import Ids, find_ids
from veridifr.errors import InputError
from veridifr.origins import why_unscored
from veridifr.trace import Trace


@pytest.fixture(scope="module")
def tokenizer(tb7m: Path) -> Tokenizer:
    return Tokenizer(tb7m)


def found(tokenizer: Tokenizer | None, request: Trace | None = None, **choice: Any) -> Ids:
    asked = make_trace(()) if request is None else request
    return find_ids(read_answer({"choices": [choice]}), asked, tokenizer)


def test_ids_of_the_server_come_first(tokenizer: Tokenizer) -> None:
    given = found(tokenizer, token_ids=[9, 8], text="x", logprobs={"tokens": ["a"]})
    assert given == Ids(ids=(9, 8), origin="server")


def test_token_strings_are_looked_up_exactly(tokenizer: Tokenizer) -> None:
    ids = tokenizer.of_output("def mean(values):\n    return")
    strings = [tokenizer.text([token]) for token in ids]
    assert found(tokenizer, logprobs={"tokens": strings}) == Ids(ids=tuple(ids), origin="token_strings")
    entries = [{"token": "?", "bytes": list(s.encode())} for s in strings]
    assert found(tokenizer, logprobs={"content": entries}).ids == tuple(ids)
    for number, text in enumerate(strings):
        assert tokenizer.of_token(text.encode()) == ids[number]


def test_every_token_string_names_its_own_id_or_none(tokenizer: Tokenizer) -> None:
    """All 8192 of them: a string that could be two tokens, or half a character, is none."""
    known = [tokenizer.of_token(tokenizer.text([token]).encode()) for token in range(8192)]
    assert all(value in (token, None) for token, value in enumerate(known))
    assert sum(value is not None for value in known) > 7900


def test_a_string_that_is_no_token_falls_back_to_the_text(tokenizer: Tokenizer) -> None:
    given = found(tokenizer, text="abc", logprobs={"tokens": ["abc", "no such token in any vocabulary"]})
    assert (given.origin, given.ids) == ("text", tuple(tokenizer.of_output("abc")))


@pytest.mark.parametrize(
    ("choice", "sampling", "ended"),
    [
        ({"finish_reason": "stop"}, {}, True),
        ({"finish_reason": "length"}, {}, False),
        ({}, {}, False),
        ({"finish_reason": "stop", "stop_reason": "\n"}, {}, False),
        ({"finish_reason": "stop"}, {"stop": ("\n",)}, False),
        ({"finish_reason": "stop"}, {"stop_token_ids": (7,)}, False),
    ],
)
def test_an_end_that_no_text_shows(
    tokenizer: Tokenizer, choice: dict[str, Any], sampling: dict[str, Any], ended: bool
) -> None:
    given = found(tokenizer, make_trace((), **sampling), text="return x", **choice)
    assert given.ids == (*tokenizer.of_output("return x"), *([1] if ended else []))
    assert (given.origin, given.why) == ("text", None)


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"text": "half \ufffd"}, "text: its token ids do not give it back"),
        ({"text": "x<|eos|>y"}, None),
        ({"text": ""}, None),
        ({}, "output_token_ids: the answer has neither ids nor text"),
        ({"message": {"content": "hi", "reasoning_content": "so"}}, "reasoning_content: returned apart"),
        ({"message": {"content": "hi", "reasoning": "so"}}, "reasoning: returned apart"),
        ({"message": {"content": None, "tool_calls": [{}]}}, "tool_calls: returned apart"),
        ({"message": {"content": None, "refusal": "no"}}, "refusal: returned apart"),
    ],
)
def test_texts_that_cannot_be_split(tokenizer: Tokenizer, choice: dict[str, Any], why: str | None) -> None:
    given = found(tokenizer, **choice).why
    assert given is None if why is None else given is not None and given.startswith(why)


def test_without_a_tokenizer_text_is_no_evidence() -> None:
    assert "no tokenizer" in (found(None, text="x").why or "")


def answers(tokenizer: Tokenizer, ends_counted: bool, drift: int | None) -> Any:
    """A server without ids. `drift`: the request of that number was sampled with one token more than its text has."""
    texts = ["return x", "import os", "if a:", "self.x"]

    def respond(request: Request, body: Body) -> Body:
        number = request.body["prompt"][2] - 7
        count = len(tokenizer.of_output(texts[number])) + ends_counted + (number == drift)
        body["choices"][0].update(text=texts[number], token_ids=None, finish_reason="stop")
        return {**body, "usage": {"prompt_tokens": 3, "completion_tokens": count}}

    return respond


@pytest.mark.parametrize(
    ("ends_counted", "drift", "scored"), [(True, None, 4), (True, 1, 3), (False, None, 0), (False, 2, 0)]
)
def test_counts_decide_over_texts(
    tokenizer: Tokenizer, tb7m: Path, tmp_path: Path, ends_counted: bool, drift: int | None, scored: int
) -> None:
    """Where the server does not count the end token, a count that fits by accident is no evidence either."""
    asked = [Prompt(prompt_token_ids=(5, 6, 7 + n)) for n in range(4)]
    with FakeServer(answers(tokenizer, ends_counted, drift)) as server:
        came = run(tmp_path / "t.jsonl", server.url, asked, tokenizer=tb7m)
    traces = list(read_traces(came.traces))
    assert sum(why_unscored(trace) is None for trace in traces) == scored
    assert came.ambiguous == 4 - scored
    assert all(trace.output_token_ids[-1] == 1 for trace in traces)
    counts = traces[0].extra["retokenization"]
    assert counts["own_count"] == counts["server_count"] + (not ends_counted)


@pytest.mark.parametrize("send", ["ids", "text"])
def test_prompts_are_tokenized_here(tokenizer: Tokenizer, tb7m: Path, tmp_path: Path, send: str) -> None:
    with FakeServer() as server:
        run(tmp_path / "t.jsonl", server.url, [Prompt(prompt="def f(x):")], tokenizer=tb7m, send=send,
            sampling=Sampling(max_tokens=4))  # fmt: skip
        (request,) = server.requests
    ids = tokenizer.of_text("def f(x):")
    assert request.body["prompt"] == (ids if send == "ids" else "def f(x):")
    (trace,) = read_traces(tmp_path / "t.jsonl")
    assert trace.prompt_token_ids.tolist() == ids
    assert trace.extra["issued_seed"]["veridifr"] == "seeds/1"
    # the server tokenized "text" in its own way, which shows
    assert (why_unscored(trace) is None) == (send == "ids")


def test_chat_templates(tokenizer: Tokenizer, tb7m: Path, tmp_path: Path) -> None:
    """The model's own template is applied here; a tokenizer without one is refused."""
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(InputError, match="chat template cannot be applied"):
        tokenizer.of_messages(messages)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tb7m / name).read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    made = Tokenizer(folder)
    assert made.text(made.of_messages(messages)) == "<user>hi<a>"


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tokenizer"):
        Tokenizer(tmp_path)
    with pytest.raises(InputError, match="is no directory"):
        Tokenizer(tmp_path / "none")
