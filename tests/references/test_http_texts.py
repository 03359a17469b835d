"""A server as the reference for texts: its tokenizer is that of the model's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from fake_api import Api
from test_http import TOKENS, reference
from test_http import api as api
from test_http import rows as rows

from recorded import cut
from veridifr.demo import DATA
from veridifr.references import ReferenceSettings, load
from veridifr.replay import Replayer
from veridifr.retokenizing import retokenized
from veridifr.traces import read_traces


def test_texts_are_tokenized_as_a_model_on_this_machine_does(api: Api, tb7m: Path) -> None:
    model, server = load(f"hf:{tb7m}", ReferenceSettings(device="cpu")), reference(api, tb7m)
    for text in ("", "def mean(values):\n    return", "Größe, 温度, 🌍", "  two  spaces ", "x" * 3000):
        ids = server.encode(text)
        assert ids == model.encode(text)
        assert server.decode(ids or []) == model.decode(ids or [])


def test_texts_are_split_anew_as_a_model_on_this_machine_does(api: Api, tb7m: Path) -> None:
    """The first sampled sequence whose text the tokenizer splits otherwise: the server's lists give its ids back."""
    model, server = load(f"hf:{tb7m}", ReferenceSettings(device="cpu")), reference(api, tb7m)
    sampled = [cut(trace, TOKENS) for trace in read_traces(DATA / "demo" / "calibration.v1.jsonl.gz")]
    texts = [model.decode(trace.output_token_ids.tolist()) or "" for trace in sampled]
    place = next(i for i, trace in enumerate(sampled) if model.encode(texts[i]) != trace.output_token_ids.tolist())
    own = np.array(server.encode(texts[place]), dtype=np.int32)
    counts = {"server_count": TOKENS, "own_count": len(own)}
    extra = {"token_ids_from": "text", "retokenization": counts}
    (found,) = retokenized([replace(sampled[place], output_token_ids=own, extra=extra)], Replayer(server))
    assert found.output_token_ids.tolist() == sampled[place].output_token_ids.tolist()
