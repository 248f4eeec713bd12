"""Progress of a run: a bar on a terminal, log lines elsewhere."""

import logging
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from tubelet.console import duration

logger = logging.getLogger(__name__)

# Without a terminal there is no bar to redraw: so many lines are logged, one whenever so many seconds are over, and the
# first after so many.
_LOG_LINES = 20
_LOG_SECONDS = 600.0
_FIRST_LINE_SECONDS = 10.0
_SILENT_SECONDS, _REPEAT_SECONDS = 3.0, 30.0
# A bar estimates the time left from the steps of so many seconds: steps of half a minute are no rarity on a CPU.
_RATE_SECONDS = 600.0


class StageNotice:
    """Logs a stage that takes longer than a few seconds, which would otherwise be silent, and its elapsed time."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def begin(self, stage: str) -> None:
        """Begin a stage, which ends the one before."""
        self.end()
        self._ended = threading.Event()
        threading.Thread(target=_log_stage, args=(stage, self._ended), daemon=True).start()

    def end(self) -> None:
        """End the stage."""
        self._ended.set()


def _log_stage(stage: str, ended: threading.Event) -> None:
    start_time, wait = time.monotonic(), _SILENT_SECONDS
    while not ended.wait(wait):
        seconds = time.monotonic() - start_time
        elapsed = f" ({duration(seconds)} so far)" if wait == _REPEAT_SECONDS else ""
        logger.info("%s ...%s", stage, elapsed)
        wait = _REPEAT_SECONDS


class ProgressLine:
    """One line with loss, learning rate, clips per second, share of time spent waiting for data, and time left."""

    def __init__(self, console: Console | None, steps: int, start: int, peak_flops: float | None) -> None:
        """Prepare the bar.

        Args:
            console: Terminal for a bar; on any other console, or without one, lines are logged.
            steps: Steps of the whole run.
            start: Steps done before.
            peak_flops: Operations a second that all devices could do, where known: then model FLOPs utilization (MFU)
                is shown.
        """
        self.steps, self.peak_flops = steps, peak_flops
        self.on_terminal = console is not None and console.is_terminal
        self.every = max(steps // _LOG_LINES, 1)
        self.first: tuple[float, int] | None = None  # when the first step ended, which compiles, and its number
        self.logged_at = time.monotonic() - max(0.0, _LOG_SECONDS - _FIRST_LINE_SECONDS)
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            speed_estimate_period=_RATE_SECONDS,
            disable=not self.on_terminal,
        )
        self.task = self.bar.add_task("train", total=steps, completed=start, metrics="")

    def __enter__(self) -> "ProgressLine":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Bring the line up to one step's metrics."""
        text = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.1e}  {row['clips_per_s']:.1f} clips/s  "
            f"wait {100 * row.get('device_wait_fraction', row['data_wait_fraction']):.0f}%"
        )
        if self.peak_flops:
            text += f"  MFU {1e14 * row['tflop_per_s'] / self.peak_flops:.0f}%"
        if row["bad_files"]:
            text += f"  [yellow]{row['bad_files']} bad files[/yellow]"
        if row["skipped_steps"]:
            text += f"  [yellow]{row['skipped_steps']} skipped steps[/yellow]"
        if row["rewinds"]:
            text += f"  [yellow]{row['rewinds']} rewinds[/yellow]"
        if row["failed_saves"]:
            text += f"  [red]{row['failed_saves']} failed saves[/red]"
        self.bar.update(self.task, completed=row["step"], metrics=text)
        if self.on_terminal:
            return
        now, step = time.monotonic(), row["step"]
        start_time, first = self.first = self.first or (now, step)
        late = now - self.logged_at > _LOG_SECONDS  # a month has days between its twentieths
        if late or step % self.every == 0 or step == self.steps:
            self.logged_at = now
            remaining = (
                f"  {duration((now - start_time) / (step - first) * (self.steps - step))} left" if step > first else ""
            )
            logger.info("step %d/%d  %s%s", step, self.steps, Text.from_markup(text).plain, remaining)
