"""Fault tolerance of a run: skipped steps, loss spikes, and when to stop."""

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

MEDIAN_WINDOW = 100  # recent losses; a spike is compared with their median
MIN_LOSSES = 20  # fewer give no reliable median
MAX_REWINDS = 3  # to the same checkpoint; after that, the data are not the cause
# At most this fraction of the last SKIP_WINDOW steps may be skipped; a shorter run is checked at its end.
SKIP_WINDOW, MAX_SKIPPED_FRACTION = 100, 0.5
REMEDY = "lower the learning rate (--lr), or compute in --precision fp32, and continue with --resume"


class LossHistory:
    """A summary of the rows of metrics so far, of constant size."""

    def __init__(self) -> None:
        self.skipped = 0  # number of skipped steps
        self.consecutive_skips = 0  # number of skipped steps since the last one that was not
        self.losses: deque[float] = deque(maxlen=MEDIAN_WINDOW)  # of the last steps that were not skipped
        self.recent: deque[bool] = deque(maxlen=SKIP_WINDOW)  # whether each of the last steps was skipped

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the next row."""
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
    """Checks the metrics of every step; all processes decide alike, since losses are averaged over all of them."""

    def __init__(self, config: TrainConfig, run: RunDirectory) -> None:
        """Start without history.

        Args:
            config: The run.
            run: The run directory, where alerts are recorded.
        """
        self.config, self.run = config, run
        self.history = LossHistory()
        self.alert_counts: Counter[str] = Counter()  # by kind
        self.spike: str | None = None  # message of a spike that `plan_rewind` has not handled yet
        self.spike_step = 0
        self.reported_buffered_rows = False  # whether it was logged that rows wait for disk space
        self.resumed = False  # whether no step was done since `restore`
        self.reported_output = False

    def restore(self, past: "LossHistory", alerts: list[dict[str, Any]]) -> None:
        """Continue from earlier metrics and alerts, those of rank 0 on every rank.

        The alerts determine how many batches are skipped: ranks that disagreed would mix data of different steps.
        """
        self.history, self.run.alerts = past, alerts
        self.alert_counts = Counter(alert["kind"] for alert in alerts)
        self.spike = None
        self.resumed = True

    def skipped_batches(self) -> int:
        """Number of batches that all rewinds so far skipped."""
        return sum(alert["batches"] for alert in self._rewinds())

    def _rewinds(self) -> list[dict[str, Any]]:
        return [alert for alert in self.run.alerts if alert["kind"] == "spike"]

    def observe(self, row: dict[str, Any]) -> None:
        """Check the metrics of the next step, and add the guard's own counts to them.

        Raises:
            TubeletError: if too many steps in a row had to be skipped.
        """
        skipped = bool(row.pop("skipped"))
        row |= {"skipped_steps": self.history.skipped + skipped, "rewinds": self.alert_counts["spike"]}
        row["failed_saves"] = self.alert_counts["save"]
        if not skipped:
            self._check_spike(row["step"], row["loss"])
        if self.resumed:  # perhaps with other settings: earlier skips do not count
            self.history.recent.clear()
            self.resumed = False
        self.history.add(row)
        if self.history.consecutive_skips == 1:
            self.alert(
                row["step"],
                "skipped",
                f"the loss ({row['loss']:.4g}) or its gradient is not finite: the step is skipped",
            )

    def _check_spike(self, step: int, loss: float) -> None:
        factor = self.config.guards.spike_factor
        losses = self.history.losses
        typical = median(losses) if len(losses) >= MIN_LOSSES else None
        if factor and self.spike is None and typical is not None and loss > factor * typical:
            self.spike, self.spike_step = (
                f"loss spike at step {step}: {loss:.4g} (recent median {typical:.4g})",
                step,
            )

    def plan_rewind(self, checkpoint: Path | None) -> int | None:
        """Handle a spike: record it and choose the step to rewind to, after which the next batches are skipped.

        Args:
            checkpoint: the newest checkpoint, if there is one.

        Returns:
            the step to rewind to; None to continue without rewinding.

        Raises:
            TubeletError: if earlier rewinds to the same checkpoint have not helped.
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
        """Log a warning when rows start to be buffered for lack of disk space."""
        if self.run.buffered_rows and not self.reported_buffered_rows:
            logger.warning("step %d: %s; the rows are kept in memory until there is room", step, self.run.write_error)
        self.reported_buffered_rows = bool(self.run.buffered_rows)

    def record_output(self, step: int, reason: str | None) -> None:
        """Record an alert, once, if progress cannot be printed; `reason` is None if it can."""
        if reason is not None and not self.reported_output:
            self.reported_output = True
            self.alert(step, "output", f"progress cannot be printed ({reason}); the run goes on without it")

    def skipped_too_often(self) -> str | None:
        """Why the run counts as failed, or None: more than `MAX_SKIPPED_FRACTION` of the last steps were skipped."""
        recent = self.history.recent
        if sum(recent) <= MAX_SKIPPED_FRACTION * len(recent):
            return None
        return (
            f"{sum(recent)} of the last {len(recent)} steps were skipped, since the loss or its gradient was not "
            f"finite (allowed: {100 * MAX_SKIPPED_FRACTION:.0f} %)"
        )

    def check(self, step: int) -> None:
        """Stop a run that skips too many steps.

        Raises:
            TubeletError: if `max_skipped` steps in a row were skipped, or too many of the last `SKIP_WINDOW`.
        """
        if len(self.history.recent) == SKIP_WINDOW and (reason := self.skipped_too_often()):
            raise TrainingError(f"{reason}, and the run stops after step {step}; the last checkpoint is kept: {REMEDY}")
        if self.history.consecutive_skips >= self.config.guards.max_skipped:
            raise TrainingError(
                f"the loss or its gradient was not finite in {self.history.consecutive_skips} steps in a row, the last "
                f"being step {step}, and the run stops (--max-skipped); the last checkpoint is kept: {REMEDY}"
            )

    def alert(self, step: int, kind: str, message: str, **more: Any) -> None:
        """Log a warning and record it; see `RunDirectory.add_alert`."""
        self.run.add_alert(step, kind, message, **more)
        self.alert_counts[kind] += 1
        logger.warning("step %d: %s", step, message)
