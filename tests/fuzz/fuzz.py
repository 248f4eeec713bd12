"""Damaged inputs of all kinds, read as the package reads them, each within limits of time and memory.

Input k of a seed is always the same: its kind, its healthy original and its damage are functions of the two. An input
is a finding if the process that reads it dies, hangs, needs more than a fixed time or memory, or raises anything but a
`TubeletError` of one line. Findings are written to --out.

    python -m tests.fuzz.fuzz --inputs 10000 --workers 2
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutate import mutate

# Inputs of a hundred.
SHARES = {
    "video": 32, "image": 8, "manifest": 6, "config": 4, "checkpoint": 5, "released": 4, "index": 3, "truth": 3,
    "json": 9, "jsonl": 4, "parquet": 5, "tensors": 3, "cli": 6, "labels": 4, "stack": 4,
}  # fmt: skip
MAX_CPU_S = 5.0
MAX_MB = 2000
# A busy machine makes everything slow; what makes no progress at all is ended after so long.
MAX_WALL_S = 60.0
# Above what a process has mapped at its start: so that one bad input does not take the machine's memory.
ADDRESS_SPACE = 4 * 2**30


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        number: of the input.
        kind: of the input.
        name: of its file.
        verdict: "read", the reason of a refusal, or what was found.
        fault: whether it is a finding.
        cpu_s: seconds that reading it took.
        peak_mb: largest resident memory of the process meanwhile, its libraries included.
    """

    number: int
    kind: str
    name: str
    verdict: str
    fault: bool
    cpu_s: float
    peak_mb: float


def make(seeds: Path, seed: int, number: int, kinds: Sequence[str] = ()) -> tuple[str, str, bytes]:
    """Kind, file name and bytes of an input; of all kinds by their shares unless some are named."""
    rng = np.random.default_rng([seed, number])
    chosen = [kind for kind, share in SHARES.items() for _ in range(share) if not kinds or kind in kinds]
    kind = chosen[number % len(chosen)]
    if kind == "cli":
        from tests.fuzz.cli_values import command_line

        words, invalid = command_line(rng)
        return kind, f"{words[0]}.json", json.dumps({"words": words, "invalid": invalid}).encode()
    files = sorted((seeds / kind).iterdir())
    if kind == "index" and rng.random() < 0.8:
        files = files[:1]
    original = files[int(rng.integers(len(files)))]
    other = files[int(rng.integers(len(files)))]
    return kind, original.name, mutate(original.read_bytes(), original.name, other.read_bytes(), rng)


def measure(number: int, kind: str, name: str, data: bytes, folder: Path, seeds: Path) -> Outcome:
    """Read one input in this process."""
    from tests.fuzz.front import place, read

    path = place(kind, name, data, folder, seeds)
    _forget_peak()
    start, fault = time.process_time(), False
    try:
        verdict = read(kind, path, number // 100)
    except Exception:
        verdict, fault = traceback.format_exc(limit=-6), True
    cpu_s, peak_mb = time.process_time() - start, _peak_mb()
    # The first command line of its kind imports all that the command needs.
    if cpu_s > MAX_CPU_S * (2 if kind == "cli" else 1):
        verdict, fault = f"took {cpu_s:.1f} s; {verdict}", True
    if peak_mb > MAX_MB:
        verdict, fault = f"took {peak_mb:.0f} MB; {verdict}", True
    return Outcome(number, kind, name, verdict, fault, round(cpu_s, 3), round(peak_mb))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("the system does not tell the peak of a process's memory")


def _serve(pipe: Connection, seeds: Path, seed: int, folder: Path, kinds: Sequence[str]) -> None:
    """A process that reads inputs by their numbers until it receives None."""
    import torch

    from tests.fuzz.front import READERS  # noqa: F401 - loads all libraries before memory is bounded

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # FFmpeg's own complaints
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)  # all is loaded: from now on an input has a limited time
    while (number := pipe.recv()) is not None:
        pipe.send(measure(number, *make(seeds, seed, number, kinds), folder, seeds))


class _Worker:
    """One process that reads inputs, restarted when an input kills it."""

    def __init__(self, seeds: Path, seed: int, folder: Path, kinds: Sequence[str]) -> None:
        self.given = (seeds, seed, folder, kinds)
        self.begin()

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, *self.given), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()
        self.number: int | None = None

    def ask(self, number: int) -> None:
        self.pipe.send(number)
        self.number, self.since = number, time.monotonic()

    def answer(self) -> Outcome | None:
        """What became of the input, if that is known by now."""
        assert self.number is not None
        if self.pipe.poll():
            try:
                outcome: Outcome = self.pipe.recv()
                self.number = None
                return outcome
            except EOFError:
                self.process.join()
                return self._lost(f"the process died with exit code {self.process.exitcode}")
        if time.monotonic() - self.since > MAX_WALL_S:
            self.process.kill()
            self.process.join()
            return self._lost(f"no answer in {MAX_WALL_S:.0f} s")
        return None

    def _lost(self, verdict: str) -> Outcome:
        number = self.number or 0
        kind, name, _ = make(self.given[0], self.given[1], number, self.given[3])
        took_s = time.monotonic() - self.since
        self.begin()
        return Outcome(number, kind, name, verdict, True, round(took_s, 3), 0)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def run(seeds: Path, seed: int, numbers: range, workers: int, kinds: Sequence[str] = ()) -> Iterator[Outcome]:
    """Read inputs in processes of their own; the outcomes as they come."""
    with tempfile.TemporaryDirectory() as scratch:
        pool = [_Worker(seeds, seed, Path(scratch) / str(i), kinds) for i in range(workers)]
        waiting = iter(numbers)
        try:
            busy = [worker for worker in pool if _next(worker, waiting)]
            while busy:
                wait([worker.pipe for worker in busy], timeout=1.0)
                for worker in list(busy):
                    outcome = worker.answer()
                    if outcome is not None:
                        yield outcome
                        if not _next(worker, waiting):
                            busy.remove(worker)
        finally:
            for worker in pool:
                worker.end()


def _next(worker: _Worker, waiting: Iterator[int]) -> bool:
    number = next(waiting, None)
    if number is not None:
        worker.ask(number)
    return number is not None


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Numbers of a run."""
    by_kind: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        what = "findings" if outcome.fault else "read" if outcome.verdict == "read" else "refused"
        by_kind.setdefault(outcome.kind, Counter())[what] += 1
    slowest = max(outcomes, key=lambda outcome: outcome.cpu_s)
    largest = max(outcomes, key=lambda outcome: outcome.peak_mb)
    return {
        "inputs": len(outcomes),
        "findings": sum(outcome.fault for outcome in outcomes),
        "kinds": {kind: dict(counts) for kind, counts in by_kind.items()},
        "slowest_cpu_s": [slowest.cpu_s, slowest.kind, slowest.name, slowest.number],
        "peak_mb": [largest.peak_mb, largest.kind, largest.name, largest.number],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=list(SHARES), default=(), help="only these; all by default")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    from tests.fuzz.seeds import write_seeds

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    seeds = write_seeds(out / "seeds")
    outcomes: list[Outcome] = []
    numbers = range(arguments.first, arguments.first + arguments.inputs)
    with (out / "outcomes.jsonl").open("w") as log:
        for outcome in run(seeds, arguments.seed, numbers, arguments.workers, arguments.kinds):
            outcomes.append(outcome)
            log.write(json.dumps(asdict(outcome)) + "\n")
            log.flush()
            if outcome.fault:
                kind, name, data = make(seeds, arguments.seed, outcome.number, arguments.kinds)
                (out / f"{kind}-{outcome.number}-{name}").write_bytes(data)
                last = outcome.verdict.strip().splitlines()[-1]
                print(f"{kind} {outcome.number} {name}: {last}", flush=True)
    print(json.dumps(summary(outcomes), indent=1))
    if any(outcome.fault for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
