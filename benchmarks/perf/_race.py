"""What the benchmarks share: contestants that take turns in one process, and the table of targets."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Lap:
    """Seconds of one turn: on the clock, and of all cores together."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Result:
    """One line of the table; `limit` is the largest, or with `at_least` the smallest, value that passes.

    Without a limit the line is there to be read. `reason` says why a target is missed where that is known.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether the target is met."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def lap(work: Callable[[], object]) -> Lap:
    """Time one turn."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Lap(time.perf_counter() - wall, time.process_time() - cpu)


def race(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Lap]]:
    """Time all in turn, round after round, so that all meet the same machine."""
    laps: dict[str, list[Lap]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            laps[name].append(lap(work))
    return laps


def times_faster(ours: Sequence[Lap], theirs: Sequence[Lap], clock: str = "wall") -> float:
    """Return the median over rounds of how many times faster ours is."""
    return statistics.median(getattr(b, clock) / getattr(a, clock) for a, b in zip(ours, theirs, strict=True))


def report(
    title: str, laps: Mapping[str, Sequence[Lap]], results: Sequence[Result], *, samples: int, as_json: bool
) -> int:
    """Print what was measured; return 1 if a target is missed, else 0."""
    load = os.getloadavg()[0]
    medians = {
        name: Lap(*(statistics.median(getattr(each, clock) for each in turns) for clock in ("wall", "cpu")))
        for name, turns in laps.items()
    }
    if as_json:
        measured = {
            "title": title,
            "samples": samples,
            "load": load,
            "seconds": {name: asdict(median) for name, median in medians.items()},
            "results": [{**asdict(result), "passed": result.passed} for result in results],
        }
        print(json.dumps(measured, indent=2))
    else:
        print(f"{title}; load {load:.1f} on {os.cpu_count()} cores")
        if medians:
            print(f"\n{'ms per sample, medians':44} {'wall':>8} {'cpu':>8}")
        for name, median in medians.items():
            print(f"{name:44} {median.wall / samples * 1e3:8.2f} {median.cpu / samples * 1e3:8.2f}")
        print()
        for result in results:
            bound = "" if result.limit is None else f"{'>=' if result.at_least else '<='} {result.limit:g}"
            verdict = "" if result.limit is None else "PASS" if result.passed else "FAIL"
            print(f"{result.name:44} {result.value:8.4g} {result.unit:12} {bound:>8}  {verdict}")
    return 0 if all(result.passed for result in results) else 1
