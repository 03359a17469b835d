"""Runs commands as processes, several at a time, with a deadline; one that fails does not stop the others."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


class Runner:
    """Runs commands as processes, `jobs` at a time, and says what happened. Times are seconds since it was made."""

    def __init__(self, work: Path, deadline: float) -> None:
        self.work, self.deadline, self.begun = work, deadline, time.monotonic()
        self.failed: dict[str, str] = {}

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begun:6.1f}s] {text}", flush=True)

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() - self.begun > self.deadline

    def run(self, commands: dict[str, list[str]], jobs: int) -> list[str]:
        """Run all; the names of those that ended well, in order. What failed is in `failed` with its reason."""
        waiting, done = dict(commands), set()
        running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        told = time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not self.late():
                    name = next(iter(waiting))
                    running[name] = self._start(name, waiting.pop(name)), time.monotonic()
                if self.late():
                    self.failed.update(dict.fromkeys(waiting, "not started: past the deadline"))
                    waiting.clear()
                for name, (process, begun) in list(running.items()):
                    if process.poll() is None and self.late():
                        process.kill()
                        process.wait()
                        self.failed[name] = "ended: past the deadline"
                        self.say(f"FAILED {name}: past the deadline")
                        del running[name]
                    elif process.poll() is not None:
                        del running[name]
                        if self._ended(name, process.returncode, time.monotonic() - begun):
                            done.add(name)
                if time.monotonic() - told > 30:
                    told = time.monotonic()
                    self.say(f"running: {', '.join(running) or 'nothing'}; waiting: {len(waiting)}")
                time.sleep(0.1)
        finally:
            for process, _ in running.values():
                process.kill()
        return [name for name in commands if name in done]

    def _start(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        self.say(f"start {name}")
        with (self.work / f"{name}.log").open("wb") as log:
            return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def _ended(self, name: str, status: int, seconds: float) -> bool:
        if status == 0:
            self.say(f"done {name} in {seconds:.1f}s")
            return True
        lines = (self.work / f"{name}.log").read_text(errors="replace").splitlines()
        self.failed[name] = f"exit status {status}: {lines[-1][:300] if lines else 'no output'}"
        self.say(f"FAILED {name}: exit status {status} after {seconds:.1f}s; the end of its output:")
        print("\n".join(f"    {line[:300]}" for line in lines[-25:]), flush=True)
        return False
