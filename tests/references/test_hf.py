"""A transformers model as the reference: its listing against whole rows of the model's own logits, and refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from makers import make_trace
from veridifr.contracts.common import V1_ORDER
from veridifr.errors import ReferenceError
from veridifr.evidence import HOT, Evidence, claimed_index
from veridifr.processors import process
from veridifr.references import ReferenceSettings, load
from veridifr.references.hf import HfReference, digest_model, digest_parameters
from veridifr.references.listing import Listing, joined
from veridifr.references.tokenizing import first_eos_ids
from veridifr.trace import Trace

VOCAB = 8192


@pytest.fixture(scope="module")
def reference(tb7m: Path) -> HfReference:
    return load(f"hf:{tb7m}", ReferenceSettings(device="cpu"))  # type: ignore[return-value]


def with_settings(reference: HfReference, **fields: Any) -> HfReference:
    """The same model under other settings."""
    return HfReference.from_model(reference._model, settings=ReferenceSettings(**fields))


def some_traces(count: int = 3, **sampling: Any) -> list[Trace]:
    """Sequences of different lengths over ids that the model knows."""
    rng = np.random.default_rng(4)
    return [
        make_trace(rng.integers(3, VOCAB, 5 + 3 * i), prompt=rng.integers(3, VOCAB, 4 + i), name=f"s{i}", **sampling)
        for i in range(count)
    ]


def model_rows(model: Any, trace: Trace) -> np.ndarray:
    """The model's own float32 logits of each output token, [T, V]."""
    ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids])[None, :-1].astype(np.int64)
    with torch.inference_mode():
        rows = model(input_ids=torch.from_numpy(ids)).logits[0].float().numpy()
    return rows[len(trace.prompt_token_ids) - 1 :]


def check_against(
    evidence: Evidence, rows_TV: np.ndarray, trace: Trace, processed_TV: np.ndarray | None = None
) -> None:
    """Everything that evidence says, held against whole rows."""
    evidence.validate()
    heat = evidence.temperature
    shown = rows_TV if processed_TV is None else processed_TV
    np.testing.assert_allclose(evidence.logits_N, rows_TV[evidence.rows_N, evidence.ids_N], atol=1e-4)
    np.testing.assert_allclose(evidence.lse_T, np.logaddexp.reduce(rows_TV.astype(float), axis=1), atol=1e-4)
    claimed_index(evidence, trace.output_token_ids)  # raises where one is missing
    own = rows_TV[np.arange(len(rows_TV)), trace.output_token_ids]
    assert np.abs((rows_TV > own[:, None]).sum(axis=1) - evidence.rank_T).max() <= 2  # near ties may fall either way
    unlisted = np.ones(rows_TV.shape, dtype=bool)
    unlisted[evidence.rows_N, evidence.ids_N] = False
    best_left = np.where(unlisted, shown, -np.inf).max(axis=1)
    assert (best_left <= evidence.floor_T + 1e-3).all()
    for temperature, tail_T in ((heat, evidence.tail_T), (HOT * heat, evidence.hot_tail_T)):
        scaled = shown.astype(np.float64) / temperature
        share = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
        assert ((share * unlisted).sum(axis=1) <= tail_T * (1 + 1e-3) + 1e-6).all()


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.4, "top_p": 0.9},
        {"top_k": 50},
        {"min_p": 0.05},
        {"temperature": 0.0},
    ],
)
def test_logits_are_the_model_s(reference: HfReference, sampling: dict[str, Any]) -> None:
    made = {trace.id: trace for trace in some_traces(**sampling)}
    found = {evidence.trace_id: evidence for evidence in reference.evidence(list(made.values()))}
    assert found.keys() == made.keys()
    for name, evidence in found.items():
        check_against(evidence, model_rows(reference._model, made[name]), made[name])


@pytest.mark.parametrize(
    "sampling",
    [
        {"logit_bias": {7: 30.0, 11: -30.0}},
        {"repetition_penalty": 1.5, "presence_penalty": 2.0, "frequency_penalty": -1.0},
        {"min_tokens": 4},
        {"logit_bias": {7: 30.0}, "top_k": 5},
    ],
)
def test_processed_logits_decide_what_is_listed(reference: HfReference, sampling: dict[str, Any]) -> None:
    """What a bias lifts is listed, with the model's own logit; what is left out is bounded after processing."""
    for trace in some_traces(2, **sampling):
        (evidence,) = reference.evidence([trace])
        rows = model_rows(reference._model, trace)
        tokens = len(rows)
        processed = process(
            V1_ORDER,
            trace.sampling,
            trace.prompt_token_ids,
            trace.output_token_ids,
            np.arange(tokens),
            np.repeat(np.arange(tokens), VOCAB),
            np.tile(np.arange(VOCAB), tokens),
            rows.reshape(-1),
            reference.eos_ids,
        ).reshape(rows.shape)
        check_against(evidence, rows, trace, processed)
        if 7 in trace.sampling.logit_bias:
            assert (np.bincount(evidence.rows_N[evidence.ids_N == 7], minlength=tokens) == 1).all()


@pytest.mark.parametrize("fields", [{"batch_tokens": 1}, {"batch_tokens": 10**6}, {"logit_elements": VOCAB * 2}])
def test_batches_and_chunks_change_nothing(reference: HfReference, fields: dict[str, Any]) -> None:
    """Sequences alone, all at once, and two rows of logits at a time: the same whole rows up to float32 rounding."""
    made = some_traces(4)
    whole = {"list_bytes": 16 * VOCAB}  # more than whole rows take
    expected = {e.trace_id: e for e in with_settings(reference, **whole).evidence(made)}
    for evidence in with_settings(reference, **whole, **fields).evidence(made):
        other = expected[evidence.trace_id]
        assert len(evidence.ids_N) == evidence.tokens * VOCAB
        assert (evidence.floor_T == -np.inf).all()
        np.testing.assert_array_equal(evidence.ids_N, other.ids_N)
        np.testing.assert_allclose(evidence.logits_N, other.logits_N, atol=1e-4)
        np.testing.assert_allclose(evidence.lse_T, other.lse_T, atol=1e-4)
        assert (evidence.tail_T == 0).all()


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"top_k": 50, "top_p": 0.95}, {"logit_bias": {7: 30.0}}])
def test_blocks_listed_side_by_side_change_nothing(
    reference: HfReference, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = torch.get_num_threads()
    (trace,) = some_traces(1, **sampling)
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(31, VOCAB)).astype(np.float32) * 3)
    claimed = rows.argmin(dim=1)
    monkeypatch.setattr("veridifr.references.rows._CACHED_ELEMENTS", 4 * VOCAB)  # eight blocks
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(joined(reference._rows._list_rows(trace.sampling, rows, rows + 0.0, claimed), len(rows)))
            assert torch.get_num_threads() == threads
        with pytest.raises(RuntimeError):  # an error in a block is raised, and leaves torch as it was
            list(reference._rows._list_rows(trace.sampling, rows, rows, claimed + VOCAB))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)
    one, three = found
    for field in dataclasses.fields(Listing):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(three, field.name), err_msg=field.name)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [((), ()), ((None, None), ()), ((None, 2), (2,)), ((0, 2), (0,)), (([1, 7], 2), (1, 7)), (((3,), None), (3,))],
)
def test_ends_of_an_output_are_those_of_the_first_that_states_any(
    stated: tuple[object, ...], expected: tuple[int, ...]
) -> None:
    assert first_eos_ids(*stated) == expected


def test_what_the_directory_says(reference: HfReference, tb7m: Path) -> None:
    assert (reference.vocab_size, reference.eos_ids) == (VOCAB, (1,))
    assert reference.settings["dtype"] == "float32"
    assert reference.weights_digest == digest_model(tb7m)
    ids = [int(i) for i in np.random.default_rng(0).integers(3, VOCAB, 5)]
    assert isinstance(reference.decode(ids), str)
    assert with_settings(reference).decode(ids) is None


def test_dtype_can_be_chosen(tb7m: Path) -> None:
    half = HfReference.load(str(tb7m), ReferenceSettings(dtype="bfloat16", device="cpu"))
    assert half.settings["dtype"] == "bfloat16"
    (trace,) = some_traces(1)
    (evidence,) = half.evidence([trace])
    assert evidence.validate().logits_N.dtype == np.float32


@pytest.mark.parametrize(
    ("output", "prompt", "why"),
    [
        ((3, VOCAB), (5,), "token id 8192 is outside the vocabulary of 8192"),
        ((3,), (2**31 - 1,), "token id 2147483647 is outside the vocabulary of 8192"),
        ((), (5,), "output_token_ids: empty"),
        ((3,) * 2048, (5,), "2049 tokens are more than the model's 2048 positions"),
    ],
)
def test_traces_that_do_not_fit(reference: HfReference, output: Any, prompt: Any, why: str) -> None:
    assert why in str(reference.refuse(make_trace(output, prompt=prompt)))
    assert reference.refuse(make_trace((3,) * 2047, prompt=(5,))) is None


# Directories that are not what they seem.


@pytest.fixture
def copy(tb7m: Path, tmp_path: Path) -> Path:
    shutil.copytree(tb7m, tmp_path / "model")
    return tmp_path / "model"


def refused(place: object, match: str, **fields: Any) -> None:
    with pytest.raises(ReferenceError, match=match):
        load(f"hf:{place}", ReferenceSettings(**fields))


def test_names_that_are_no_reference(tmp_path: Path) -> None:
    for name in ("", "hf:", "tb7m", "gguf:x", "evidence:", "vllm:", "http:x"):
        with pytest.raises(ReferenceError, match="expected hf:PATH, hf:ORG/MODEL, vllm:PATH, http"):
            load(name)
    refused(tmp_path / "none", "no such directory")
    refused("none", "no such directory")
    refused("org/model", "a hub model needs --revision")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no such directory")


def test_nothing_but_safetensors(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    refused(copy, r"expected config.json and at least one .safetensors file")


def test_no_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    refused(copy, r"expected config.json and at least one .safetensors file")


def damage_cut(copy: Path) -> None:
    raw = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def damage_header(copy: Path) -> None:
    raw = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(b"\xff" * 16 + raw[16:])


def damage_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")


def damage_kind(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": "no-such-model"}')


def damage_missing(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})


def damage_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 8191}))


def damage_layers(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (damage_cut, "cannot load the model"),
        (damage_header, "cannot load the model"),
        (damage_config, "cannot load the model"),
        (damage_kind, "cannot load the model"),
        (damage_shape, "cannot load the model"),
        (damage_missing, r"weights: model\.norm\.weight is missing"),
        (damage_layers, r"weights: model\.layers\.6\..* is missing"),
    ],
)
def test_damaged_directories(copy: Path, damage: Callable[[Path], None], match: str) -> None:
    """Above all, weights that a file lacks must never be made up."""
    damage(copy)
    refused(copy, match)


def test_code_beside_the_weights_is_not_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config.update(model_type="sneaky", auto_map={"AutoConfig": "sneaky.C", "AutoModelForCausalLM": "sneaky.M"})
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "sneaky.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    refused(copy, "cannot load the model")
    assert not (tmp_path / "ran").exists()


def test_every_weight_counts_in_the_digest(copy: Path) -> None:
    before = digest_model(copy)
    path = copy / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert digest_model(copy) != before
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert digest_model(copy) == before
    path.rename(copy / "other.safetensors")
    assert digest_model(copy) != before


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    """The formula, so that anyone can compute it: SHA-256 of each file's name, a zero byte and its SHA-256."""
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "b.safetensors").write_bytes(b"two")
    (tmp_path / "a.safetensors").write_bytes(b"one")
    whole = hashlib.sha256(b"veridifr weights 1\0")
    for name, content in (("config.json", b"{}"), ("a.safetensors", b"one"), ("b.safetensors", b"two")):
        whole.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    assert digest_model(tmp_path) == whole.hexdigest()


def test_parameters_in_memory_have_a_digest(reference: HfReference) -> None:
    model = torch.nn.Linear(3, 2)
    before = digest_parameters(model)
    assert before == digest_parameters(model)
    with torch.no_grad():
        model.weight[0, 0] += 1e-3
    assert digest_parameters(model) != before
    assert digest_parameters(model.to(torch.bfloat16)) != before
    assert with_settings(reference).weights_digest == digest_parameters(reference._model)
