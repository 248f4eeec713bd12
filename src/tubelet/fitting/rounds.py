"""The trainings of a fit in order: which of them runs, of how many, and about how long the others take."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median_low
from typing import NamedTuple

from tubelet.console import duration
from tubelet.tasks.common.extract import Progress


class Training(NamedTuple):
    """One training of heads side by side.

    Attributes:
        network: name of their network; "" on features of a single channel, whose time says nothing about others.
        heads: number of heads.
        steps: number of steps.
    """

    network: str
    heads: int
    steps: int


Round = tuple[Training, ...]
"""A training that is planned: one of these, as long as the network is not chosen."""


class Rounds:
    """Counts the trainings of a fit, and measures them.

    A fit plans them before the first one, and again when the choice of a head has made some of them certain.
    """

    def __init__(
        self, progress: Progress = lambda stage, done, total: None, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Count from 0.

        Args:
            progress: called with a stage's name, what is done of it, and its total.
            now: the clock, in seconds.
        """
        self._progress, self._now = progress, now
        self._number = 0
        self._planned: list[Round] = []
        self._encodings = 0
        self._current: tuple[Training, float] | None = None
        self._is_new = False  # whether the current training has reported nothing yet
        self._label = ""
        # Network and number of heads -> seconds of a step of each training, until the next one begins: after some of
        # them, much else is computed in between.
        self._per_step: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._encoding: tuple[float, int] | None = None  # when it began, and what was done then
        self._encoding_s = 0.0

    def plan(self, rounds: Sequence[Round], encodings: int = 0) -> None:
        """Set the trainings that are left, and how often all clips are still to be encoded."""
        self._planned, self._encodings = list(rounds), encodings

    def begin(self, training: Training) -> None:
        """Begin the next training."""
        self._finish()
        self._label, self._current, self._is_new = "", (training, self._now()), True
        if not self._planned:
            return
        planned = self._planned.pop(0)
        if planned[0].network == "":
            training, self._current = planned[0], None
        self._number += 1
        self._label = f"round {self._number} of {self._number + len(self._planned)}"
        left = self._seconds_left(training)
        if left is not None:
            bound = "up to" if any(len(each) > 1 for each in self._planned) else "about"
            self._label += f" ({bound} {duration(left)} left in all)"

    def progress(self, stage: str, done: int, total: int) -> None:
        """Pass on progress; a stage `training: NAME` also gets the number of the round."""
        name, _, rest = stage.partition(": ")
        if name == "encoding":
            self._encode(done, total)
        elif name == "training":
            if self._is_new and done:  # by an earlier command: its time says nothing
                self._current = None
            self._is_new = False
            if self._label:
                stage = f"{name}: {self._label}{', ' * bool(rest)}{rest}"
        self._progress(stage, done, total)

    def _encode(self, done: int, total: int) -> None:
        if self._encoding is None or done < self._encoding[1]:
            self._finish()
            self._encodings = max(0, self._encodings - 1)
            self._encoding = self._now(), done
        began, before = self._encoding
        if done > before:
            self._encoding_s = (self._now() - began) * total / (done - before)
        if done == total:
            self._encoding = None

    def _finish(self) -> None:
        if self._current is not None:
            (network, heads, steps), began = self._current
            self._per_step[network, heads].append((self._now() - began) / steps)
        self._current = None

    def _seconds_left(self, current: Training) -> float | None:
        """Seconds of the current training and of those that are planned; None if one of their networks is unknown."""
        total = self._encodings * self._encoding_s
        for each in [(current,), *self._planned]:
            seconds = [self._seconds(training) for training in each]
            known = [value for value in seconds if value is not None]
            if len(known) < len(seconds):
                return None
            total += max(known)
        return total

    def _seconds(self, training: Training) -> float | None:
        network, heads, steps = training
        if not network and self._per_step:
            return min(median_low(values) / count for (_, count), values in self._per_step.items()) * heads * steps
        equal = self._per_step.get((network, heads), [])
        scaled = [median_low(values) / n * heads for (name, n), values in self._per_step.items() if name == network]
        if not scaled:
            return None
        return steps * (median_low(equal) if len(equal) > 1 else min(scaled))  # one of a kind may be an exception
