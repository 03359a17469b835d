"""Replaying through a spool, and from a file: nothing is computed twice, and nothing serves a claim it was not for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from makers import make_trace, whole_rows
from veridifr import evidence_io
from veridifr.contracts.registry import CONTRACTS
from veridifr.errors import EvidenceError
from veridifr.evidence import Evidence, evidence_key
from veridifr.evidence_io import EvidenceWriter
from veridifr.references import Reference, load
from veridifr.references.recorded import RecordedReference
from veridifr.replay import Replayer, header_of
from veridifr.requests import Planned
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import score
from veridifr.trace import Trace

VOCAB = 12


class Known(Reference):
    """A reference whose logits depend on the token before; it notes what it was asked for."""

    def __init__(self, die_after: int | None = None) -> None:
        self.name, self.vocab_size, self.weights_digest, self.eos_ids = "known", VOCAB, "ab" * 32, (1,)
        self.settings = {"dtype": "float32", "tail_mass": 1e-6, "list_bytes": 64}
        self.table_VV = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)) * 2
        self.asked: list[str] = []
        self.die_after = die_after

    def refuse(self, trace: Trace) -> str | None:
        return "a token is outside the vocabulary" if trace.output_token_ids.max() >= VOCAB else None

    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        for trace in traces:
            if self.die_after is not None and len(self.asked) == self.die_after:
                raise KeyboardInterrupt
            self.asked.append(trace.id)
            before = np.concatenate([trace.prompt_token_ids[-1:], trace.output_token_ids[:-1]])
            yield whole_rows(trace, self.table_VV[before])


def traces(count: int, **sampling: object) -> list[Trace]:
    rng = np.random.default_rng(1)
    return [make_trace(rng.integers(2, VOCAB, size=6), name=f"s{i}", **sampling) for i in range(count)]


def planned(made: Sequence[Trace]) -> list[Planned]:
    return [Planned(id=t.id, trace=t, end=len(t.output_token_ids), tokens=len(t.output_token_ids)) for t in made]


def run(reference: Reference, made: Sequence[Trace], spool: Path | None = None) -> dict[str, Evidence | None]:
    return {item.id: found for item, found in Replayer(reference, spool=spool).run(planned(made), label="x")}


def scores(trace: Trace, evidence: Evidence | None) -> Scores:
    assert evidence is not None
    claim = Hypothesis(contract=CONTRACTS["vllm-cpu-gumbel-splitmix"], sampling=trace.sampling, seed=7)
    return score(trace, evidence, claim, eos_ids=(1,))


def test_evidence_file_gives_the_same_scores(tmp_path: Path) -> None:
    made = traces(3)
    direct = run(Known(), made, tmp_path / "e")
    recorded = load(f"evidence:{tmp_path / 'e'}")
    assert (recorded.weights_digest, recorded.vocab_size, recorded.eos_ids) == ("ab" * 32, VOCAB, (1,))
    assert recorded.settings["made_by"] == "known"
    for trace, (name, again) in zip(made, run(recorded, made).items(), strict=True):
        first, second = scores(trace, direct[name]), scores(trace, again)
        np.testing.assert_array_equal(first.gap_T, second.gap_T)
        np.testing.assert_array_equal(first.logprob_T, second.logprob_T)
        np.testing.assert_array_equal(first.contenders.scores_M, second.contenders.scores_M)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    made = traces(4)
    killed = Known(die_after=2)
    with pytest.raises(KeyboardInterrupt):
        run(killed, made, tmp_path / "e")
    again = Known()
    found = run(again, made, tmp_path / "e")
    assert (killed.asked, again.asked) == (["s0", "s1"], ["s2", "s3"])
    assert sorted(found) == ["s0", "s1", "s2", "s3"]
    assert all(evidence is not None for evidence in found.values())


def test_what_is_refused_keeps_its_reason() -> None:
    items = planned([make_trace([VOCAB]), make_trace([2], name="s1")])
    items.append(Planned(id="s2", trace=None, end=0, tokens=5, reason="absent from the traces"))
    found = {
        item.id: (item.reason, item.tokens, evidence) for item, evidence in Replayer(Known()).run(items, label="x")
    }
    assert found["s0"] == ("a token is outside the vocabulary", 1, None)
    assert found["s2"] == ("absent from the traces", 5, None)
    assert found["s1"][0] is None
    assert found["s1"][2] is not None


def test_another_temperature_is_refused_or_made_anew(tmp_path: Path) -> None:
    run(Known(), traces(1), tmp_path / "e")
    (hot,) = traces(1, temperature=1.2)
    with pytest.raises(EvidenceError, match=r"sequence 's0': temperature: listed for 1, the trace claims 1\.2"):
        run(RecordedReference(tmp_path / "e"), [hot])
    again = Known()
    found = run(again, [hot], tmp_path / "e")
    assert again.asked == ["s0"]
    assert found["s0"] is not None
    assert found["s0"].temperature == 1.2


@pytest.mark.parametrize(
    "setting",
    [
        {"logit_bias": {3: 1.0}}, {"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1},
        {"allowed_token_ids": [2, 3]}, {"bad_words_token_ids": [[4]]}, {"min_tokens": 2},
    ],
)  # fmt: skip
def test_evidence_is_bound_to_what_decides_the_listing(tmp_path: Path, setting: dict[str, object]) -> None:
    """What a reference left out under one claim may matter under a bias, so it must be asked again."""
    plain, biased = traces(1)[0], traces(1, **setting)[0]
    assert evidence_key(plain) == plain.digest() != evidence_key(biased)
    run(Known(), [plain], tmp_path / "e")
    why = RecordedReference(tmp_path / "e").refuse(biased)
    assert why == "the evidence file does not cover these token ids under these penalties, biases and bans"
    again = Known()
    run(again, [biased, plain], tmp_path / "e")
    assert again.asked == ["s0"]


@pytest.mark.parametrize("setting", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"max_tokens": 9}, {"seed": 8}])
def test_filters_and_seeds_need_no_new_evidence(setting: dict[str, object]) -> None:
    assert evidence_key(traces(1, **setting)[0]) == evidence_key(traces(1)[0])


def test_other_tokens_are_not_covered(tmp_path: Path) -> None:
    (trace,) = traces(1)
    run(Known(), [trace], tmp_path / "e")
    recorded = RecordedReference(tmp_path / "e")
    assert recorded.refuse(trace) is None
    ids = trace.output_token_ids.copy()
    ids[-1] ^= 1
    for other in (replace(trace, output_token_ids=ids), replace(trace, output_token_ids=ids[:-1])):
        assert "does not cover these token ids" in str(recorded.refuse(other))


def test_evidence_of_another_length_is_refused(tmp_path: Path) -> None:
    """A file whose record claims a trace's key but holds fewer tokens."""
    (trace,) = traces(1)
    reference = Known()
    (evidence,) = reference.evidence([trace])
    short = replace(
        evidence,
        offsets_T1=evidence.offsets_T1[:-1],
        **{name: getattr(evidence, name)[:-VOCAB] for name in ("ids_N", "logits_N")},
        **{name: getattr(evidence, name)[:-1] for name in ("lse_T", "rank_T", "floor_T", "tail_T", "hot_tail_T")},
    )
    writer = EvidenceWriter(tmp_path / "e", header_of(reference))
    writer.append(short)
    writer.close()
    assert len(list(evidence_io.read_all(tmp_path / "e"))) == 1
    with pytest.raises(EvidenceError, match="sequence 's0': tokens or vocab_size do not fit"):
        run(RecordedReference(tmp_path / "e"), [trace])
