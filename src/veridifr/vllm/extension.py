"""What vLLM mixes into its worker class: methods that a front end calls by name, with plain arguments and answers.

    vllm serve MODEL --worker-extension-cls veridifr.vllm.extension.WorkerExtension

Until `veridifr_enable` is called, and after `veridifr_disable`, nothing of the engine is touched. With tensor
parallelism every rank is asked and the first one records: hidden states and tokens are the same on all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from veridifr.errors import UnsupportedError, VeridifrError
from veridifr.fingerprints.spec import FingerprintSpec, to_dict
from veridifr.traces.codec import engine_to_dict
from veridifr.vllm.captured import check_names
from veridifr.vllm.inspection import Engine, inspect_worker
from veridifr.vllm.options import CaptureOptions, options_from_dict
from veridifr.vllm.recorder import MOST_REQUESTS, Recorder
from veridifr.vllm.self_test import check_sampler


@dataclass(frozen=True, kw_only=True, eq=False)
class _Capture:
    engine: Engine
    recorder: Recorder
    spec: FingerprintSpec | None


class WorkerExtension:
    """Methods of a vLLM worker. Answers with the key "refused" give the reason why nothing was done."""

    def veridifr_enable(self, options: dict[str, Any]) -> dict[str, Any]:
        """Inspect the engine, test its sampler, and capture from the next step on. `options` as `CaptureOptions`.

        Returns the record of `veridifr_record`. Ranks other than the first only look whether they could.
        """
        try:
            if self._veridifr() is not None:
                raise UnsupportedError("capture", "is on already")
            chosen = options_from_dict(options)
            engine = inspect_worker(self, allow_unverified=chosen.allow_unverified_version)
            spec = chosen.spec_for(engine.hidden_size)
            if _rank(self) != 0:
                return {"rank": _rank(self)}
            runner: Any = self.model_runner  # type: ignore[attr-defined]
            check_sampler(engine, runner)
            recorder = _recorder(self, engine, chosen, spec)
        except VeridifrError as error:
            return {"refused": str(error)}
        engine.adapter.attach(recorder)
        self.__dict__["_veridifr_capture"] = _Capture(engine=engine, recorder=recorder, spec=spec)
        return self.veridifr_record()

    def veridifr_disable(self) -> dict[str, Any]:
        """Take the hooks off and drop what was captured. Nothing happens where capture is off."""
        capture = self._veridifr()
        if capture is not None:
            capture.engine.adapter.detach()
            del self.__dict__["_veridifr_capture"]
        return {"was_on": capture is not None}

    def veridifr_record(self) -> dict[str, Any]:
        """The engine record and the specification as plain values, and the counters of `Recorder.state`."""
        capture = self._veridifr()
        if capture is None:
            return {"refused": "capture: is off"} if _rank(self) == 0 else {"rank": _rank(self)}
        return {
            "engine": engine_to_dict(capture.engine.record),
            "spec": None if capture.spec is None else to_dict(capture.spec),
            **capture.recorder.state(),
        }

    def veridifr_take(self, requests: list[Any], remove: bool = True) -> dict[str, Any]:
        """What was captured of requests, under "requests"; see `Recorder.take`."""
        capture = self._veridifr()
        if capture is None:
            return {"refused": "capture: is off"} if _rank(self) == 0 else {"rank": _rank(self)}
        try:
            return {"requests": capture.recorder.take(requests, remove=remove)}
        except VeridifrError as error:
            return {"refused": str(error)}

    def veridifr_drop(self, requests: list[Any]) -> dict[str, Any]:
        """Forget requests, given as for `veridifr_take`."""
        capture = self._veridifr()
        if capture is not None:
            capture.recorder.drop([name for name, _ in check_names(requests, MOST_REQUESTS)])
        return {}

    def _veridifr(self) -> _Capture | None:
        found: _Capture | None = self.__dict__.get("_veridifr_capture")
        return found


def _rank(worker: Any) -> int:
    return int(worker.rank) % int(worker.vllm_config.parallel_config.tensor_parallel_size)


def _recorder(worker: Any, engine: Engine, options: CaptureOptions, spec: FingerprintSpec | None) -> Recorder:
    import vllm.envs

    return Recorder(
        spec,
        options,
        worker.model_runner.device,
        most_rows=int(worker.vllm_config.scheduler_config.max_num_seqs),
        draws_seeds=engine.adapter.draws_seeds,
        random_suffix=not getattr(vllm.envs, "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", False),
    )
