"""A server as the reference: what it lists against whole rows, what it cannot tell, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_api import MODEL, Api, Rows, cards, model_api, serve

from makers import make_trace, whole_rows
from veridifr.cli import main
from veridifr.contracts.registry import infer
from veridifr.demo import DATA
from veridifr.errors import CalibrationError, ReferenceError
from veridifr.evidence import HOT, Evidence
from veridifr.fingerprints import FingerprintSpec
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.references.hf import HfReference
from veridifr.references.http import HttpReference
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.scores import Hypothesis, Scores, Status
from veridifr.scoring import score
from veridifr.trace import Trace
from veridifr.traces import read_traces, write_traces

VOCAB, TOKENS = 8192, 30


@pytest.fixture(scope="module")
def rows(tb7m: Path) -> Rows:
    """The bundled model's log-probabilities."""
    model = load(f"hf:{tb7m}", ReferenceSettings(device="cpu"))
    assert isinstance(model, HfReference)

    @functools.cache
    def find(ids: tuple[int, ...]) -> np.ndarray:
        with torch.inference_mode():
            return torch.log_softmax(model._model(torch.tensor([ids])).logits[0].float(), dim=-1).numpy()

    return lambda ids: find(tuple(ids))


@pytest.fixture(scope="module", params=["prompt_logprobs", "echo"])
def api(request: pytest.FixtureRequest, rows: Rows) -> Iterator[Api]:
    with serve(model_api(rows, request.param)) as started:
        yield started


def reference(api: Api, tb7m: Path, count: int = 66, **more: Any) -> HttpReference:
    found = load(api.url, ReferenceSettings(model_files=tb7m, top_logprobs=count, **more))
    assert isinstance(found, HttpReference)
    return found


def some_traces(**sampling: Any) -> list[Trace]:
    """Real traces, cut short, under other claims: what is compared is what two references say of the same tokens."""
    traces = [t for name in ("v1", "v2") for t in islice(read_traces(DATA / "demo" / f"{name}.jsonl.gz"), 3)]
    return [
        replace(
            trace,
            prompt_token_ids=trace.prompt_token_ids[:16],
            output_token_ids=trace.output_token_ids[:TOKENS],
            sampling=replace(trace.sampling, **{"top_k": None, "top_p": None, "temperature": 1.0, **sampling}),
        )
        for trace in traces
    ]


def truth(trace: Trace, rows: Rows) -> Evidence:
    """Whole rows: what no listing can add to."""
    ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids]).tolist()
    return whole_rows(trace, rows(ids)[len(trace.prompt_token_ids) - 1 : -1])


def scores(trace: Trace, evidence: Evidence) -> Scores:
    contract = infer(trace.engine, trace.sampling, VOCAB).contract
    return score(trace, evidence, Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed))


EXACT = (
    {"top_k": 50, "top_p": 0.95},
    {"top_k": 50, "top_p": 0.95, "temperature": 0.6},
    {"top_k": 20, "temperature": 1.4},
    {"top_k": 5, "min_p": 0.01},
    {"temperature": 0.0},
)
PARTLY = (
    {"min_p": 0.05, "temperature": 0.8},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 0.7},
    {"temperature": 0.5},
)
BOUNDS = ({"top_k": 66}, {"top_p": 0.8, "temperature": 1.3}, {}, {"temperature": 1.5})


@pytest.mark.parametrize("sampling", [*EXACT, *PARTLY, *BOUNDS], ids=str)
def test_scores_are_those_of_whole_rows_or_bounds(api: Api, tb7m: Path, rows: Rows, sampling: dict[str, Any]) -> None:
    """The slow oracle: a scored token has the gap that the whole row gives it, and the others are called bounds.

    Gaps beyond half a logit, of no weight for the likelihood, need only be as far: candidates that far are not listed.
    """
    made = {trace.id: trace for trace in some_traces(**sampling)}
    found = list(reference(api, tb7m).evidence(list(made.values())))
    assert {evidence.trace_id for evidence in found} == made.keys()
    scored = 0
    for evidence in found:
        trace = made[evidence.trace_id]
        evidence.validate()
        mine, true = scores(trace, evidence), scores(trace, truth(trace, rows))
        exact = mine.status_T == Status.SCORED
        assert set(mine.status_T.tolist()) <= {Status.SCORED, Status.BOUND}
        near = np.abs(true.gap_T) < 0.5
        moved = 5e-3 if "top_p" in sampling and "top_k" not in sampling else 1e-3
        np.testing.assert_allclose(mine.gap_T[exact & near], true.gap_T[exact & near], atol=moved)
        assert ((np.sign(mine.gap_T) == np.sign(true.gap_T)) & (np.abs(mine.gap_T) > 0.49))[exact & ~near].all()
        assert (mine.match_T == true.match_T)[exact & (np.abs(true.gap_T) > moved)].all()
        if not filtered(sampling):
            assert (mine.gap_T >= true.gap_T - 1e-3).all()
        scored += int(exact.sum())
    assert scored == (6 * TOKENS if sampling in EXACT else 0) if sampling not in PARTLY else 0 < scored < 6 * TOKENS


def filtered(sampling: dict[str, Any]) -> bool:
    return bool({"top_k", "top_p", "min_p"} & sampling.keys())


@pytest.mark.parametrize("sampling", [{"temperature": t} for t in (0.05, 0.7, 1.0, 1.3, 30.0)], ids=str)
@pytest.mark.parametrize("count", [2, 20, 300])
def test_what_is_left_out_is_bounded(api: Api, tb7m: Path, rows: Rows, sampling: dict[str, Any], count: int) -> None:
    for trace in some_traces(**sampling)[:2]:
        (evidence,) = reference(api, tb7m, count).evidence([trace])
        whole = truth(trace, rows)
        logprobs_TV = whole.logits_N.reshape(-1, VOCAB).astype(np.float64)
        unlisted = np.ones(logprobs_TV.shape, dtype=bool)
        unlisted[evidence.rows_N, evidence.ids_N] = False
        assert (np.where(unlisted, logprobs_TV, -np.inf).max(axis=1) <= evidence.floor_T).all()
        for temperature, tail_T in (
            (evidence.temperature, evidence.tail_T),
            (HOT * evidence.temperature, evidence.hot_tail_T),
        ):
            scaled = logprobs_TV / temperature
            share = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
            assert ((share * unlisted).sum(axis=1) <= tail_T * (1 + 1e-5)).all()
        listed = evidence.rank_T < count
        near = np.abs(evidence.rank_T - whole.rank_T) <= 1  # float32 ties
        assert near[listed].all()
        assert (evidence.rank_T <= whole.rank_T + 1).all()
        assert near.all() or reference(api, tb7m, count).settings["form"] == "echo"


def test_a_whole_vocabulary_leaves_nothing_open(tb7m: Path, rows: Rows) -> None:
    with serve(model_api(rows, "prompt_logprobs")) as api:
        trace = replace(some_traces()[0], output_token_ids=some_traces()[0].output_token_ids[:2])
        (evidence,) = reference(api, tb7m, VOCAB).evidence([trace])
    assert (evidence.floor_T == -np.inf).all() and not evidence.tail_T.any() and not evidence.hot_tail_T.any()
    np.testing.assert_allclose(scores(trace, evidence).gap_T, scores(trace, truth(trace, rows)).gap_T, atol=1e-4)


def test_what_a_reference_says_of_itself(api: Api, tb7m: Path) -> None:
    found = reference(api, tb7m)
    assert (found.name, found.vocab_size, found.eos_ids) == (api.url, VOCAB, (1,))
    assert len(found.weights_digest) == 64
    assert found.settings["served_model"] == MODEL and found.settings["top_logprobs"] == 66
    assert "not checked" in str(found.settings["weights"])
    assert found.decode([795, 1992]) == load(f"hf:{tb7m}", ReferenceSettings(device="cpu")).decode([795, 1992])
    spec = FingerprintSpec(seed=1, hidden_size=256, k=8, encoding="wrapped3", taps=("final",), step_log2=(-5,))
    assert found.measuring(spec) is None


def test_evidence_survives_a_file(api: Api, tb7m: Path, tmp_path: Path) -> None:
    """`veridifr replay` against a server: an audit can then be checked without it."""
    made = some_traces(top_k=50)
    planned = [Planned(id=t.id, trace=t, end=TOKENS, tokens=TOKENS) for t in made]
    found = reference(api, tb7m)
    assert all(evidence for _, evidence in Replayer(found, spool=tmp_path / "e").run(planned, label="x"))
    asked = len(api.asked)
    recorded: Reference = load(f"evidence:{tmp_path / 'e'}")
    assert recorded.weights_digest == found.weights_digest
    assert recorded.settings["top_logprobs"] == 66 and recorded.eos_ids == (1,)
    for trace in made:
        (mine,), (theirs,) = found.evidence([trace]), recorded.evidence([trace])
        np.testing.assert_array_equal(mine.logits_N, theirs.logits_N)
    assert len(api.asked) == asked + len(made)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("repetition_penalty", 1.1),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("logit_bias", {5: 1.0}),
        ("allowed_token_ids", (1, 2)),
        ("bad_words_token_ids", ((5,),)),
        ("min_tokens", 4),
    ],
)
def test_settings_that_need_whole_rows_are_refused_by_name(api: Api, tb7m: Path, setting: str, value: Any) -> None:
    found = reference(api, tb7m)
    assert found.refuse(make_trace()) is None
    why = found.refuse(make_trace(**{setting: value}))
    assert why is not None and why.startswith(f"sampling.{setting}: needs whole rows of logits")


def test_traces_that_cannot_be_replayed_are_refused(api: Api, tb7m: Path) -> None:
    found = reference(api, tb7m)
    assert "empty" in str(found.refuse(make_trace([])))
    assert "outside the vocabulary of 8192" in str(found.refuse(make_trace([VOCAB])))
    generated = 1 if found.settings["form"] == "prompt_logprobs" else 0
    assert found.refuse(make_trace([3] * (2046 - generated))) is None
    assert "are more than its 2048" in str(found.refuse(make_trace([3] * (2047 - generated))))


def test_a_server_that_names_tokens_by_text_is_refused(rows: Rows, tb7m: Path) -> None:
    with (
        serve(model_api(rows, "text")) as api,
        pytest.raises(ReferenceError, match="which ids they are cannot be known"),
    ):
        reference(api, tb7m)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "models: data: expected a list"),
        ({"data": [7]}, "models: data: expected a list"),
        ({"data": []}, "0 models among 0"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, r"2 models among 2 \('a', 'b'\); name one with --served-model"),
        ({"data": [{"id": 5}]}, "models: id: got int, expected a short text"),
        (cards(root=5), "models: root: got int"),
        (cards(max_model_len=-1), "models: max_model_len: got -1"),
        (cards(max_model_len=True), "models: max_model_len: got True"),
    ],
)
def test_a_list_of_models_that_cannot_be_used(tb7m: Path, data: Any, message: str) -> None:
    with serve(Api(lambda path, body: (200, data))) as api, pytest.raises(ReferenceError, match=message):
        reference(api, tb7m)


def test_one_of_several_models_is_named(rows: Rows, tb7m: Path) -> None:
    inner = model_api(rows, "echo")

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (200, {"data": [{"id": "other"}, *cards()["data"]]}) if path == "models" else inner.answer(path, body)

    with serve(Api(answer)) as api:
        found = reference(api, tb7m, served_model=MODEL)
        assert {body["model"] for path, body in api.asked if path == "completions"} == {MODEL}
        other = reference(api, tb7m, served_model="other")
        assert found.weights_digest != other.weights_digest
        with pytest.raises(ReferenceError, match="no such model among 2"):
            reference(api, tb7m, served_model="third")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "another"}, "tb7m was asked, and 'another' answers"),
        ({"model": None}, "tb7m was asked, and NoneType answers"),
        ({"choices": []}, "choices: expected a list of one object"),
        ({"choices": [1]}, "choices: expected a list of one object"),
        ({"choices": "x"}, "choices: expected a list of one object"),
        ({"choices": [{}]}, "prompt_logprobs: got nothing, expected a list"),
    ],
)
def test_an_answer_that_cannot_be_used(rows: Rows, tb7m: Path, change: dict[str, Any], message: str) -> None:
    inner = model_api(rows, "prompt_logprobs")

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        status, value = inner.answer(path, body)
        return status, {**value, **change} if len(body.get("prompt", [])) > 4 else value

    with serve(Api(answer)) as api:
        found = reference(api, tb7m)
        with pytest.raises(ReferenceError, match=message) as caught:
            list(found.evidence([make_trace()]))
    assert str(caught.value).startswith("sequence 's0': ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_files": None}, "--model-files"),
        ({"dtype": "float32"}, "--dtype is the server's own"),
        ({"device": "cpu"}, "--device is the server's own"),
        ({"threads": 2}, "--threads is the server's own"),
        ({"revision": "x"}, "--revision is the server's own"),
        ({"top_logprobs": 1}, "top_logprobs: got 1, expected at least 2"),
    ],
)
def test_settings_that_a_server_does_not_have(tb7m: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ReferenceError, match=message):
        load("http://127.0.0.1:1/v1", ReferenceSettings(**{"model_files": tb7m, **settings}))


def test_another_listing_is_another_calibration(api: Api, tb7m: Path) -> None:
    """How much is listed decides which tokens are bounds, so scores of two sizes are not compared."""
    from veridifr.calibration import HonestTraces, calibrate

    traces = [replace(t, id=f"{t.id}/{i}") for i in range(3) for t in some_traces(top_k=20)]
    traces = [replace(t, prompt_token_ids=t.prompt_token_ids[n // 6 :]) for n, t in enumerate(traces)]
    honest = [HonestTraces(name="v1", traces=[t for t in traces if t.engine.runner == "v1"])]
    made = calibrate(honest, reference(api, tb7m, 40))
    head = honest[0].traces[0]
    made.check_fits(reference(api, tb7m, 40), head.sampling, made.contracts[0])
    with pytest.raises(CalibrationError, match=r"reference\.top_logprobs: made with 40, this audit uses 30"):
        made.check_fits(reference(api, tb7m, 30), head.sampling, made.contracts[0])


def test_a_calibration_of_bounds_alone_is_refused(api: Api, tb7m: Path) -> None:
    from veridifr.calibration import HonestTraces, calibrate

    traces = [t for t in some_traces(temperature=1.5) if t.engine.runner == "v1"]
    with pytest.raises(CalibrationError, match=r"every token is a bound.*--top-logprobs"):
        calibrate([HonestTraces(name="v1", traces=traces)], reference(api, tb7m, 2))


def test_the_command_line(api: Api, tb7m: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_traces(tmp_path / "t.jsonl", some_traces(top_k=20)[:2])
    (tmp_path / "key").write_text("a-key")
    options = ["--reference", api.url, "--model-files", str(tb7m), "--served-model", MODEL, "--top-logprobs", "40"]
    options += ["--reference-key-file", str(tmp_path / "key"), "--out", str(tmp_path / "e"), "--quiet"]
    assert main(["replay", str(tmp_path / "t.jsonl"), *options]) == 0
    assert api.authorizations[-1] == "Bearer a-key"
    assert load(f"evidence:{tmp_path / 'e'}").settings["top_logprobs"] == 40
    assert main(["replay", str(tmp_path / "t.jsonl"), "--reference", api.url, "--out", str(tmp_path / "f")]) == 2
    assert capsys.readouterr().err.startswith(f"veridifr: reference {api.url}: needs the folder")
