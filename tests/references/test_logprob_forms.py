"""Answers that say something impossible are refused by the field that says it, whatever else they hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_api import echo_choice, vllm_choice
from hypothesis import given
from hypothesis import strategies as st

from makers import make_trace
from veridifr.errors import ReferenceError
from veridifr.references.logprob_forms import FORMS, Form
from veridifr.references.model_files import read_model_files
from veridifr.references.top_logprobs import TopLogprobs, evidence_from

IDS = [5, 6, 3, 1, 2]
VOCAB = 12
TOKENS = 3
PROMPT, ECHO = FORMS


def choice(form: Form, count: int = 4) -> dict[str, Any]:
    logits = np.random.default_rng(1).standard_normal((len(IDS), VOCAB)) * 2
    logprobs_TV = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    made = (vllm_choice if form is PROMPT else echo_choice)(logprobs_TV, IDS, count)
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def read(form: Form, value: dict[str, Any]) -> TopLogprobs:
    return form.read(value, IDS, TOKENS, VOCAB)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_both_forms_say_the_same(form: Form) -> None:
    found, other = read(form, choice(form)), read(PROMPT, choice(PROMPT))
    np.testing.assert_array_equal(found.ids_N, other.ids_N)
    np.testing.assert_allclose(found.logprobs_N, other.logprobs_N)
    assert (found.counts_T >= 4).all() and (found.counts_T <= 5).all()
    evidence_from(make_trace(), VOCAB, found).validate()


def test_ranks_count_from_zero_and_need_all() -> None:
    whole = read(PROMPT, choice(PROMPT))
    assert whole.rank_T is not None and whole.rank_T.min() >= 0
    some = choice(PROMPT)
    del some["prompt_logprobs"][-1]["2"]["rank"]
    assert read(PROMPT, some).rank_T is None
    assert read(ECHO, choice(ECHO)).rank_T is None


def at(value: Any, path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    """A copy of `value` with `new` at `path`; with `...` the entry is left out."""
    changed = copy.deepcopy(value)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if new is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return changed  # type: ignore[no-any-return]


P, L = "prompt_logprobs", "logprobs"


@pytest.mark.parametrize(
    ("form", "path", "new", "message"),
    [
        (PROMPT, (P,), None, "prompt_logprobs: got nothing, expected a list"),
        (PROMPT, (P,), {}, "prompt_logprobs: got dict, expected a list"),
        (PROMPT, (P, -1), ..., "prompt_logprobs: got 4 entries for 5 tokens"),
        (PROMPT, (P, 4), None, r"prompt_logprobs\[4\]: got nothing, expected an object"),
        (PROMPT, (P, 4), {}, r"prompt_logprobs\[4\]: does not list 2, the token that was sent"),
        (PROMPT, (P, 4, "2"), ..., r"prompt_logprobs\[4\]: does not list 2"),
        (PROMPT, (P, 4), {"2": {"logprob": -1.0}}, r"prompt_logprobs\[4\]: lists 1 tokens, expected 2 to 12"),
        (PROMPT, (P, 4, "12"), {"logprob": -9.0}, r"\[4\]: token id 12 is outside the vocabulary of 12"),
        (PROMPT, (P, 4, "-1"), {"logprob": -9.0}, r"\[4\]: got '-1', expected a token id"),
        (PROMPT, (P, 4, "\u0663"), {"logprob": -9.0}, r"\[4\]: got '\\u0663', expected a token id"),
        (PROMPT, (P, 4, "2"), 5, r"\[4\]\.2: got int, expected an object"),
        (PROMPT, (P, 4, "2", "logprob"), ..., r"\[4\]\.2\.logprob: got nothing, expected a log-probability"),
        (PROMPT, (P, 4, "2", "logprob"), 0.5, r"\.2\.logprob: got 0\.5, .*raw_logprobs"),
        (PROMPT, (P, 4, "2", "logprob"), True, r"\.2\.logprob: got True"),
        (PROMPT, (P, 4, "2", "logprob"), -1e7, r"\.2\.logprob: got -10000000"),
        (PROMPT, (P, 4, "2", "logprob"), 10**400, r"\.2\.logprob: got 1000"),
        (PROMPT, (P, 4, "2", "logprob"), 0.0, r"\[4\]: the listed probabilities add up to more than 1"),
        (PROMPT, (P, 4, "2", "rank"), 0, r"\[4\]\.2\.rank: got 0"),
        (PROMPT, (P, 4, "2", "rank"), 1.5, r"\[4\]\.2\.rank: got 1\.5"),
        (ECHO, (L,), None, "logprobs: got nothing, expected an object"),
        (ECHO, (L, "tokens"), ..., r"logprobs\.tokens: got nothing"),
        (ECHO, (L, "tokens", 4), " the", r"logprobs\.tokens\[4\]: got ' the': the server names tokens by their text"),
        (ECHO, (L, "tokens", 4), 2, r"logprobs\.tokens\[4\]: got int: the server names"),
        (ECHO, (L, "tokens", 4), "token_id:3", r"logprobs\.tokens\[4\]: got token_id:3, and 2 was sent"),
        (ECHO, (L, "token_logprobs", 4), None, r"logprobs\.token_logprobs\[4\]: got nothing"),
        (ECHO, (L, "top_logprobs", 4), None, r"logprobs\.top_logprobs\[4\]: got nothing, expected an object"),
        (ECHO, (L, "top_logprobs", 4), {" a": -1.0}, r"top_logprobs\[4\]: got ' a': the server names tokens"),
        (ECHO, (L, "top_logprobs", 4), {}, r"echo\[4\]: lists 1 tokens"),
    ],
)
def test_what_is_wrong_is_named(form: Form, path: tuple[Any, ...], new: Any, message: str) -> None:
    with pytest.raises(ReferenceError, match=message):
        read(form, at(choice(form), path, new))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in below for place in places(item, (*path, key)))]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(FORMS), st.data(), JUNK)
def test_junk_anywhere_is_evidence_or_our_error(form: Form, data: st.DataObject, junk: Any) -> None:
    whole = choice(form)
    path = data.draw(st.sampled_from(places(whole)[1:]))
    try:
        found = read(form, at(whole, path, junk))
    except ReferenceError as error:
        assert "\n" not in str(error) and str(error).isprintable()
        return
    evidence_from(make_trace(), VOCAB, found).validate()


@given(
    st.lists(st.lists(st.floats(-50, 20), min_size=VOCAB, max_size=VOCAB), min_size=TOKENS, max_size=TOKENS),
    st.integers(2, VOCAB),
    st.sampled_from([0.0, 0.01, 0.3, 1.0, 1.7, 50.0]),
)
def test_any_rows_give_valid_evidence(logits: list[list[float]], count: int, temperature: float) -> None:
    """Peaked, flat and tied rows: sizes fit, bounds are probabilities, and what is unlisted is within them."""
    logits_TV = np.array(logits)
    logprobs_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=1, keepdims=True)
    ids = [0, *make_trace().output_token_ids.tolist()]
    made = vllm_choice(logprobs_TV, ids, count)
    trace = make_trace(temperature=temperature)
    evidence = evidence_from(trace, VOCAB, PROMPT.read(made, ids, TOKENS, VOCAB)).validate()
    unlisted = np.ones(logits_TV.shape, dtype=bool)
    unlisted[evidence.rows_N, evidence.ids_N] = False
    scaled = logprobs_TV / evidence.temperature
    share = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
    assert ((share * unlisted).sum(axis=1) <= evidence.tail_T + 1e-12).all()
    assert (np.where(unlisted, logprobs_TV, -np.inf).max(axis=1) <= evidence.floor_T + 1e-5).all()


def model_files(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_model_files(tb7m: Path, tmp_path: Path) -> None:
    found = read_model_files(tb7m)
    assert (found.vocab_size, found.eos_ids) == (8192, (1,)) and found.tokenizer is not None
    nested = model_files(tmp_path, config={"text_config": {"vocab_size": 9, "eos_token_id": [2, 3]}})
    found = read_model_files(nested)
    assert (found.vocab_size, found.eos_ids, found.tokenizer) == (9, (2, 3), None)
    model_files(tmp_path, generation_config={"eos_token_id": 4})
    assert read_model_files(tmp_path).eos_ids == (4,)


def test_a_tokenizer_that_would_cut_texts_short_does_not(tb7m: Path, tmp_path: Path) -> None:
    stated = json.loads((tb7m / "tokenizer.json").read_text())
    stated["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    stated["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2,
        "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    found = read_model_files(model_files(tmp_path, config={"vocab_size": 8192}, tokenizer=stated)).tokenizer
    plain = read_model_files(tb7m).tokenizer
    for text in ("x", "def mean(values):\n    return sum(values) / len(values)"):
        assert found.encode(text).ids == plain.encode(text).ids


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "JSON"),
        ([], "expected a JSON object"),
        ({}, "vocab_size: got None"),
        ({"vocab_size": True}, "vocab_size: got True"),
        ({"vocab_size": 0}, "vocab_size: got 0"),
        ({"vocab_size": 9, "eos_token_id": 9}, "eos_token_id: got 9, expected token ids below 9"),
        ({"vocab_size": 9, "eos_token_id": "x"}, "eos_token_id: got 'x'"),
    ],
)
def test_model_files_that_are_wrong(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ReferenceError, match=message):
        read_model_files(model_files(tmp_path, config=config))


def test_model_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReferenceError, match=r"config\.json: cannot be read"):
        read_model_files(tmp_path)
