"""Importers of OpenAI-style answers and of hand-made files of other tools."""

from __future__ import annotations

import json

import pytest

from veridifr.errors import TraceError
from veridifr.trace import EngineRecord, Sampling
from veridifr.traces import from_difr, from_openai, from_token_difr, import_file, trace_to_dict

ENGINE = EngineRecord(name="vllm", version="0.24.0", runner="v1")
ASKED = Sampling(temperature=0.7, seed=42, max_tokens=3)


# OpenAI-style answers


def answer(*choices, **changes):
    return {"id": "cmpl-1", "object": "text_completion", "model": "org/m", "choices": list(choices), **changes}


def choice(**changes):
    fields = {"index": 0, "text": "x", "finish_reason": "length", "stop_reason": None}
    return {**fields, "token_ids": [3, 4], "prompt_token_ids": [1, 2], **changes}


def openai(completion, **options):
    return from_openai(completion, sampling=ASKED, engine=ENGINE, **options)


def test_completion():
    (trace,) = openai(answer(choice()))
    assert (trace.id, trace.model, trace.finish_reason) == ("cmpl-1/0", "org/m", "length")
    assert (trace.prompt_token_ids.tolist(), trace.output_token_ids.tolist()) == ([1, 2], [3, 4])
    assert (trace.sampling, trace.engine) == (ASKED, ENGINE)


def test_chat_completion():
    chat = answer(
        {"index": 0, "message": {"role": "assistant"}, "finish_reason": "tool_calls", "token_ids": [3]},
        object="chat.completion",
        prompt_token_ids=[1, 2],
    )
    (trace,) = openai(chat, id="mine", model="asked")
    assert (trace.id, trace.model, trace.finish_reason) == ("mine", "asked", "tool_calls")
    assert trace.prompt_token_ids.tolist() == [1, 2]


def test_choices_are_children():
    first, second = openai(answer(choice(), choice(index=1, token_ids=[])), id="r")
    assert [trace.id for trace in (first, second)] == ["r/0", "r/1"]
    assert [trace.engine.child for trace in (first, second)] == [0, 1]
    assert len(second.output_token_ids) == 0


def test_the_prompt_that_was_asked():
    bare = answer(choice(prompt_token_ids=None))
    (trace,) = openai(bare, prompt_token_ids=[9])
    assert trace.prompt_token_ids.tolist() == [9]
    with pytest.raises(TraceError, match="prompt_token_ids: missing in the answer, and not given"):
        openai(bare)
    with pytest.raises(TraceError, match="the answer's prompt is not the one that was asked"):
        openai(answer(choice()), prompt_token_ids=[1, 2, 3])


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (answer(choice(token_ids=None)), r"choices\[0\].token_ids: missing: .*return_token_ids"),
        (answer({"index": 0, "text": "x"}), r"choices\[0\].token_ids: missing"),
        (answer(choice(token_ids=[1.5])), r"choices\[0\].token_ids\[0\]: got 1.5"),
        (answer(choice(token_ids="abc")), r"choices\[0\].token_ids: got 'abc', expected a list"),
        (answer(choice(), choice()), "choices.index: the same index occurs twice"),
        (answer(choice(index=-1)), r"choices\[0\].index: got -1"),
        (answer(choice(), choice(index=1, prompt_token_ids=[5])), r"choices\[1\].prompt_token_ids: several prompts"),
        (answer("x"), r"choices\[0\]: got str, expected an object"),
        (answer(), "choices: expected a list of at least one"),
        ({"error": {"message": "overloaded"}}, "choices: expected a list of at least one"),
        (answer(choice(), model=None), "model: got None, expected a string"),
        (answer(choice(), id=7), "id: got 7, expected a string"),
        ([], "completion: got list, expected an object"),
    ],
)
def test_answers_that_cannot_be_used(bad, match):
    with pytest.raises(TraceError, match=match):
        openai(bad)


# Files of difr and token-difr

NEW = {
    "samples": [
        {"prompt_token_ids": [1], "output_token_ids": [2, 3]},
        {"prompt_token_ids": [4], "output_token_ids": []},
    ]
}
LEGACY = {
    "config": {"model": "x", "temperature": 0.0},
    "samples": [{"prompt_token_ids": [1], "outputs": [{"token_ids": [2, 3]}]}],
}


def save(tmp_path, document, name="f.json"):
    (tmp_path / name).write_text(json.dumps(document))
    return tmp_path / name


@pytest.mark.parametrize("read", [from_difr, from_token_difr])
def test_both_formats_of_difr(tmp_path, read):
    first, second = read(save(tmp_path, NEW), model="m", sampling=ASKED, engine=ENGINE)
    assert (first.id, second.id) == ("f/0", "f/1")
    assert (first.prompt_token_ids.tolist(), first.output_token_ids.tolist()) == ([1], [2, 3])
    assert (first.sampling, first.engine, first.model) == (ASKED, ENGINE, "m")
    greedy = Sampling(temperature=0.0)
    (legacy,) = read(save(tmp_path, LEGACY), model="m", sampling=greedy, engine=ENGINE)
    assert legacy.output_token_ids.tolist() == [2, 3]


def test_settings_for_each_sample(tmp_path):
    seeds = [Sampling(seed=1), Sampling(seed=2)]
    found = from_difr(save(tmp_path, NEW), model="m", sampling=seeds, engine=ENGINE)
    assert [trace.sampling.seed for trace in found] == [1, 2]
    with pytest.raises(TraceError, match="sampling: got 1, expected one for each of 2"):
        from_difr(save(tmp_path, NEW), model="m", sampling=seeds[:1], engine=ENGINE)


def test_several_outputs_of_a_sample_need_their_number(tmp_path):
    outputs = [{"token_ids": [2], "index": 1}, {"token_ids": [3], "index": 0}]
    path = save(tmp_path, {"samples": [{"prompt_token_ids": [1], "outputs": outputs}]})
    first, second = from_difr(path, model="m", sampling=ASKED, engine=ENGINE)
    assert [(t.id, t.engine.child, t.output_token_ids.tolist()) for t in (first, second)] == [
        ("f/0/1", 1, [2]),
        ("f/0/0", 0, [3]),
    ]


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"scores": [], "config": {}}, "this is a file of difr's results, which holds no token ids"),
        ({"config": {}}, "samples: missing"),
        ({"samples": {}}, "samples: expected a list"),
        ({"samples": []}, "holds no samples"),
        ([], "got list, expected an object"),
        ({"samples": [7]}, r"samples\[0\]: got int, expected an object"),
        ({"samples": [{"output_token_ids": [1]}]}, r"samples\[0\]: prompt_token_ids: missing"),
        ({"samples": [{"prompt_token_ids": [1]}]}, "expected either output_token_ids or outputs"),
        (
            {"samples": [{"prompt_token_ids": [1], "output_token_ids": [1], "outputs": []}]},
            "expected either output_token_ids or outputs",
        ),
        ({"samples": [{"prompt_token_ids": [1], "outputs": []}]}, "outputs: expected a list of at least one"),
        ({"samples": [{"prompt_token_ids": [1], "outputs": [{}]}]}, r"outputs\[0\].token_ids: missing"),
        (
            {"samples": [{"prompt_token_ids": [1], "outputs": [{"token_ids": []}] * 2}]},
            r"samples\[0\]: outputs\[0\].index: missing",
        ),
        (
            {"samples": [{"prompt_token_ids": [1], "outputs": [{"token_ids": [], "index": 0}] * 2}]},
            r"outputs\[1\].index: 0 occurs twice",
        ),
        ({"samples": [{"prompt_token_ids": [1], "output_token_ids": [True]}]}, r"output_token_ids\[0\]: got True"),
        (LEGACY, "config.temperature: the file says 0, but the sampling given for it says 0.7"),
    ],
)
def test_files_of_difr_that_cannot_be_used(tmp_path, document, match):
    path = save(tmp_path, document)
    with pytest.raises(TraceError, match=match) as caught:
        from_difr(path, model="m", sampling=ASKED, engine=ENGINE)
    assert str(caught.value).startswith(str(path))


# Files by name


def test_import_file_reads_what_the_importers_read(tmp_path):
    claim = {"sampling": {"temperature": 0.7, "seed": 42, "max_tokens": 3}, "engine": trace_engine()}
    (trace,) = import_file("openai", save(tmp_path, answer(choice())), **claim)
    assert trace_to_dict(trace) == trace_to_dict(openai(answer(choice()))[0])
    both = [answer(choice()), answer(choice(), id="cmpl-2")]
    assert [t.id for t in import_file("openai", save(tmp_path, both), **claim)] == ["cmpl-1/0", "cmpl-2/0"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in both))
    assert [t.id for t in import_file("openai", tmp_path / "a.jsonl", **claim)] == ["cmpl-1/0", "cmpl-2/0"]
    assert len(import_file("difr", save(tmp_path, NEW), model="m", **claim)) == 2
    assert len(import_file("token-difr", save(tmp_path, NEW), model="m", **claim)) == 2


def trace_engine():
    return {"name": "vllm", "version": "0.24.0", "runner": "v1"}


@pytest.mark.parametrize(
    ("kind", "document", "options", "match"),
    [
        ("vllm", NEW, {}, "'vllm': unknown kind of file, expected one of difr, openai, token-difr"),
        ("difr", NEW, {"model": None}, "model: files of difr do not name the model"),
        ("difr", NEW, {"sampling": {"temperature": -1}}, "sampling.temperature: got -1"),
        ("difr", NEW, {"engine": {}}, "engine.name: missing"),
        ("openai", [], {}, "holds no completions"),
        ("openai", [answer(choice())] * 2, {}, r"\[1\]: id: 'cmpl-1/0' was used before, at .*\[0\]"),
        ("openai", answer(choice(token_ids=None)), {}, r"f.json: \[0\]: choices\[0\].token_ids: missing"),
    ],
)
def test_import_file_refuses(tmp_path, kind, document, options, match):
    settings = {"sampling": {}, "engine": {"name": "x"}, "model": "m", **options}
    with pytest.raises(TraceError, match=match):
        import_file(kind, save(tmp_path, document), **settings)


def test_document_limit(tmp_path, monkeypatch):
    from veridifr.traces import peer_files

    monkeypatch.setattr(peer_files, "MAX_DOCUMENT_BYTES", 20)
    with pytest.raises(TraceError, match=r"f.json: longer than 20 bytes"):
        from_difr(save(tmp_path, NEW), model="m", sampling=ASKED, engine=ENGINE)
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        from_difr(tmp_path / "none.json", model="m", sampling=ASKED, engine=ENGINE)
