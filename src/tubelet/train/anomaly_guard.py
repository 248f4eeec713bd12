"""Fault tolerance of a run: skipped steps, spikes of the loss, and when to stop."""

import logging
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tubelet.checkpoint.run import step_from_name
from tubelet.config import TrainConfig
from tubelet.errors import TrainingError
from tubelet.train.run_directory import RunDirectory

logger = logging.getLogger(__name__)

MEDIAN_WINDOW = 100  # losses whose median a spike is compared with
MIN_LOSSES = 20  # fewer give no reliable median
MAX_REWINDS = 3  # to one checkpoint: after that, the data is not the cause
# Of the last so many steps no more than this fraction may have been skipped; a shorter run is judged at its end.
SKIP_WINDOW, MAX_SKIPPED_FRACTION = 100, 0.5
REMEDY = "lower the learning rate (--lr), or compute in --precision fp32, and continue with --resume"


class LossHistory:
    """A summary of the rows of metrics so far, of constant size."""

    def __init__(self) -> None:
        self.skipped = 0  # steps in all
        self.consecutive_skips = 0  # at the end of the rows
        self.losses: deque[float] = deque(maxlen=MEDIAN_WINDOW)  # of the last steps that were not skipped
        self.recent: deque[bool] = deque(maxlen=SKIP_WINDOW)  # whether each of the last steps was skipped

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the next row."""
        skipped = row.get("skipped_steps", 0)
        self.recent.append(skipped > self.skipped)
        if skipped > self.skipped:
            self.consecutive_skips += 1
        else:
            self.consecutive_skips = 0
            if row["loss"] is not None:
                self.losses.append(row["loss"])
        self.skipped = skipped


class AnomalyGuard:
    """Checks the rows of a run's metrics; all processes decide alike, since the losses are those of all."""

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        """Start without history.

        Args:
            config: The run.
            run: The run directory, where alerts are recorded.
        """
        self.config, self.run = config, run
        self.past = LossHistory()
        self.kinds: Counter[str] = Counter()  # of the alerts
        self.spike: str | None = None  # its message, until `plan_rewind`
        self.spike_step = 0
        self.reported_buffered_rows = False  # that rows wait for room on the disk
        self.resumed = False  # whether no step was done since the rows before were read
        self.reported_output = False

    def restore(self, past: "LossHistory", alerts: list[dict[str, Any]]) -> None:
        """Go on from the rows and the alerts before: those that the first process knows, on every process.

        What the data are moved on by is in the alerts; processes that disagreed would mix different steps.
        """
        self.past, self.run.alerts = past, alerts
        self.kinds = Counter(alert["kind"] for alert in alerts)
        self.spike = None
        self.resumed = True

    def skipped_batches(self) -> int:
        """Batches that the data have been moved on by."""
        return sum(alert["batches"] for alert in self._rewinds())

    def _rewinds(self) -> list[dict[str, Any]]:
        return [alert for alert in self.run.alerts if alert["kind"] == "spike"]

    def observe(self, row: dict[str, Any]) -> None:
        """Take one step's row of plain numbers, in order, and complete it.

        Raises:
            TubeletError: if too many steps in a row had to be skipped.
        """
        skipped = bool(row.pop("skipped"))
        row |= {"skipped_steps": self.past.skipped + skipped, "rewinds": self.kinds["spike"]}
        row["failed_saves"] = self.kinds["save"]
        if not skipped:
            self._measure(row["step"], row["loss"])
        if self.resumed:  # with other settings, perhaps: earlier skips do not count
            self.past.recent.clear()
            self.resumed = False
        self.past.add(row)
        if self.past.consecutive_skips == 1:
            self.alert(
                row["step"],
                "skipped",
                f"the loss ({row['loss']:.4g}) or its gradient is not finite: the step is skipped",
            )

    def _measure(self, step: int, loss: float) -> None:
        factor = self.config.guards.spike_factor
        losses = self.past.losses
        usual = median(losses) if len(losses) >= MIN_LOSSES else None
        if factor and self.spike is None and usual is not None and loss > factor * usual:
            self.spike, self.spike_step = (
                f"loss spike at step {step}: {loss:.4g} (recent median {usual:.4g})",
                step,
            )

    def plan_rewind(self, checkpoint: Path | None) -> int | None:
        """Handle a spike: record it, and choose the step to rewind to; the batches after it are skipped from then on.

        Args:
            checkpoint: the last.

        Returns:
            the step to rewind to; None to continue without rewinding.

        Raises:
            TubeletError: if going back has not helped.
        """
        message, self.spike = self.spike, None
        if checkpoint is None:
            self.alert(self.spike_step, "no checkpoint", f"{message}; no checkpoint to rewind to")
            return None
        back = step_from_name(checkpoint)
        if sum(alert["step"] == back for alert in self._rewinds()) >= MAX_REWINDS:
            raise TrainingError(
                f"{message}, after {MAX_REWINDS} rewinds to {checkpoint} with other data each: lower the learning "
                "rate (--lr) and continue with --resume"
            )
        batches = max(self.config.guards.rewind_skip_batches, self.spike_step - back)
        self.alert(
            back,
            "spike",
            f"{message}; rewinding to step {back} and skipping the next {batches} batches",
            batches=batches,
        )
        return back

    def report_buffered_rows(self, step: int) -> None:
        """Log a warning when rows begin to be buffered for lack of disk space."""
        if self.run.buffered_rows and not self.reported_buffered_rows:
            logger.warning("step %d: %s; the rows are kept in memory until there is room", step, self.run.write_error)
        self.reported_buffered_rows = bool(self.run.buffered_rows)

    def record_output(self, step: int, reason: str | None) -> None:
        """Record once that progress could not be printed, and why, if so: where a person can still read it."""
        if reason is not None and not self.reported_output:
            self.reported_output = True
            self.alert(step, "output", f"progress cannot be printed ({reason}); the run goes on without it")

    def skipped_too_often(self) -> str | None:
        """Why the run counts as failed, or None: more than `MAX_SKIPPED_FRACTION` of the last steps were skipped."""
        recent = self.past.recent
        if sum(recent) <= MAX_SKIPPED_FRACTION * len(recent):
            return None
        return (
            f"{sum(recent)} of the last {len(recent)} steps were skipped, since the loss or its gradient was not "
            f"finite (allowed: {100 * MAX_SKIPPED_FRACTION:.0f} %)"
        )

    def check(self, step: int) -> None:
        """Give up where nothing goes any more.

        Raises:
            TubeletError: if so many steps in a row were skipped as the config allows, or too many of the last.
        """
        if len(self.past.recent) == SKIP_WINDOW and (reason := self.skipped_too_often()):
            raise TrainingError(f"{reason}, and the run stops after step {step}; the last checkpoint is kept: {REMEDY}")
        if self.past.consecutive_skips >= self.config.guards.max_skipped:
            raise TrainingError(
                f"the loss or its gradient was not finite in {self.past.consecutive_skips} steps in a row, the last of "
                f"them step {step}, and the run stops (--max-skipped); the last checkpoint is kept: {REMEDY}"
            )

    def alert(self, step: int, kind: str, message: str, **more: Any) -> None:
        """Log a warning and record it; see `RunDirectory.add_alert`."""
        self.run.add_alert(step, kind, message, **more)
        self.kinds[kind] += 1
        logger.warning("step %d: %s", step, message)
