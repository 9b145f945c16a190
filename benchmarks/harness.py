"""The harness: contenders take turns within one run, and medians and ratios are printed.

Each round runs every contender once, in random order, for a slice of time. The ratio of a round compares with the
reference of that round, and the median over all rounds is printed. So a slow moment of the machine slows all of them
alike. Even so, ratios that differ by less than a tenth are equal on a busy machine.
"""

from __future__ import annotations

import gc
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Operation = Callable[[], object]


@dataclass
class Contender:
    """One way to do the work. ``make`` gives the operation of one thread, called with the thread's number."""

    name: str
    make: Callable[[int], Operation]
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass
class Goal:
    """What is asked for, as a ratio of ``contender`` to ``against``, the reference if that is ``None``."""

    contender: str
    must: float
    reach: float | None = None
    against: str | None = None


def _slice(operation: Operation, seconds: float, times: list[float]) -> int:
    clock = time.perf_counter
    end = clock() + seconds
    done = 0
    while True:
        started = clock()
        operation()
        now = clock()
        times.append(now - started)
        done += 1
        if now >= end:
            return done


def _round(contender: Contender, threads: int, seconds: float) -> float:
    times: list[list[float]] = [[] for _ in range(threads)]
    operations = [contender.make(number) for number in range(threads)]
    counts = [0] * threads
    barrier = threading.Barrier(threads)

    def work(number: int) -> None:
        barrier.wait()
        counts[number] = _slice(operations[number], seconds, times[number])

    started = time.perf_counter()
    if threads == 1:
        counts[0] = _slice(operations[0], seconds, times[0])
    else:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    elapsed = time.perf_counter() - started
    contender.times += [one for some in times for one in some]
    return sum(counts) / elapsed


def _asked(value: float, limit: str, must: float, reach: float | None, *, met: bool) -> str:
    value = round(value, 2)
    if not met:
        return f"{limit} {must:g}: MISSED"
    reached = reach is not None and (value <= reach if limit == "at most" else value >= reach)
    more = "" if reach is None else f", reach {reach:g}"
    return f"{limit} {must:g}{more}: {'reached' if reached else 'met'}"


def _ratio(contender: Contender, reference: Contender) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(contender.rates, reference.rates, strict=True))


def percentile(times: list[float], share: float) -> float:
    """The value below which ``share`` of ``times`` lie, in microseconds."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6


class Report:
    """Collects the rows of a run and remembers which goals were missed."""

    def __init__(self, *, rounds: int = 9, seconds: float = 0.2, seed: int = 1) -> None:
        self.rounds = rounds
        self.seconds = seconds
        self.random = random.Random(seed)
        self.missed: list[str] = []

    def section(self, title: str) -> None:
        print(f"\n{title}\n")
        print(f"{'operation':<28} {'contender':<24} {'ops/s':>10} {'p50 us':>9} {'p99 us':>9} {'ratio':>7}  goal")

    def figures(self, title: str) -> None:
        """Begin a section of rows by ``figure``."""
        print(f"\n{title}\n")

    def figure(
        self,
        title: str,
        contender: str,
        value: float,
        unit: str,
        *,
        most: float | None = None,
        least: float | None = None,
        reach: float | None = None,
    ) -> None:
        """A row with a number that is no rate. ``most``: a greater one is a goal missed, ``least``: a smaller one."""
        asked = ""
        for limit, bound in (("at most", most), ("at least", least)):
            if bound is not None:
                met = round(value, 2) <= bound if limit == "at most" else round(value, 2) >= bound
                asked = _asked(value, limit, bound, reach, met=met)
                if not met:
                    self.missed.append(f"{title} ({contender}): {value:,.2f} {unit}, {limit} {bound:g}")
        print(f"{title:<46} {contender:<28} {value:>10,.2f} {unit:<16} {asked}".rstrip(), flush=True)

    def compare(
        self,
        title: str,
        contenders: list[Contender],
        goal: Goal | None = None,
        *,
        threads: int = 1,
        finer: int = 1,
        further: Sequence[Goal] = (),
    ) -> None:
        """Run the contenders; the first is the reference.

        With ``finer`` there are so many times as many rounds, each so many times shorter. ``further`` are goals
        against others than the reference; those whose contenders are not there are left out.
        """
        for contender in contenders:  # warm up, unmeasured
            contender.make(0)()
        gc.collect()
        gc.disable()
        try:
            for _ in range(self.rounds * finer):
                for contender in self.random.sample(contenders, len(contenders)):
                    contender.rates.append(_round(contender, threads, self.seconds / finer))
        finally:
            gc.enable()
        reference = contenders[0]
        for contender in contenders:
            ratio = _ratio(contender, reference)
            asked = ""
            if goal is not None and goal.contender == contender.name:
                asked = self._judged(title, goal, ratio)
            rate = statistics.median(contender.rates)
            print(
                f"{title:<28} {contender.name:<24} {rate:>10,.0f} {percentile(contender.times, 0.5):>9,.1f} "
                f"{percentile(contender.times, 0.99):>9,.1f} {ratio:>7.2f}  {asked}",
                flush=True,
            )
        named = {contender.name: contender for contender in contenders}
        for one in further:
            mine, other = named.get(one.contender), named.get(one.against or reference.name)
            if mine is not None and other is not None:
                ratio = _ratio(mine, other)
                asked = self._judged(title, one, ratio)
                print(f"{title:<28} {f'{mine.name} / {other.name}':<45} {ratio:>7.2f}  {asked}", flush=True)

    def _judged(self, title: str, goal: Goal, ratio: float) -> str:
        met = round(ratio, 2) >= goal.must  # judged as it is printed
        if not met:
            against = f" against {goal.against}" if goal.against else ""
            self.missed.append(f"{title} ({goal.contender}{against}): {ratio:.2f}, must {goal.must:g}")
        return _asked(ratio, "must", goal.must, goal.reach, met=met)
