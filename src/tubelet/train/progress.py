"""What a person sees of a run while it goes: a progress line, log lines, TensorBoard curves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from tubelet.io.files import describe_os_error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Without a terminal there is no line to redraw: so many are printed instead, and one whenever so many seconds are over.
_PLAIN_LINES = 20
_PLAIN_SECONDS = 600.0


class ProgressLine:
    """One line with loss, learning rate, clips per second, share of time spent waiting for data, and time left."""

    def __init__(self, console: Console, steps: int, start: int, peak_flops: float | None) -> None:
        """Args:
        console: where it is shown.
        steps: of the whole run.
        start: steps done before.
        peak_flops: what the device could do, where known: then model FLOPs utilisation (MFU) is shown.
        """
        self.console, self.steps, self.peak_flops = console, steps, peak_flops
        self.every = max(steps // _PLAIN_LINES, 1)
        self.printed = time.monotonic()
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=steps, completed=start, figures="")

    def __enter__(self) -> "ProgressLine":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Bring the line up to one step's metrics."""
        figures = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.1e}  {row['clips_per_s']:.1f} clips/s  "
            f"wait {100 * row['data_wait_fraction']:.0f}%"
        )
        if self.peak_flops:
            figures += f"  MFU {1e14 * row['tflop_per_s'] / self.peak_flops:.0f}%"
        if row["bad_files"]:
            figures += f"  [yellow]{row['bad_files']} bad files[/yellow]"
        if row["skipped_steps"]:
            figures += f"  [yellow]{row['skipped_steps']} skipped steps[/yellow]"
        if row["rewinds"]:
            figures += f"  [yellow]{row['rewinds']} rewinds[/yellow]"
        if row["failed_saves"]:
            figures += f"  [red]{row['failed_saves']} failed saves[/red]"
        self.bar.update(self.task, completed=row["step"], figures=figures)
        if self.console.is_terminal:
            return
        late = time.monotonic() - self.printed > _PLAIN_SECONDS  # a month has days between its twentieths
        if late or row["step"] % self.every == 0 or row["step"] == self.steps:
            self.printed = time.monotonic()
            self.console.print(Text.from_markup(f"step {row['step']}/{self.steps}  {figures}"))


class Curves:
    """The metrics as TensorBoard scalars; rows that a resumed run writes anew replace the old ones.

    Where they cannot be written, the curves end, not the run.
    """

    def __init__(self, run: Path, start: int, alarm: Callable[..., None], writes: bool = True) -> None:
        """Args:
        run: the run's folder.
        start: steps done before.
        alarm: called with `step` and `said` where the curves end.
        writes: whether this process is the one that writes.
        """
        self.run, self.start, self.alert, self.writes = run, start, alarm, writes
        self.writer: SummaryWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """One step's metrics."""
        if not self.writes:
            return
        with self._ending(row["step"]):
            self.writer = self.writer or self._open()
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, row["step"])

    def _open(self) -> "SummaryWriter":
        # TensorBoard takes seconds to import, which commands that do not train should not spend.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run / "tensorboard"), purge_step=self.start + 1)

    def plan_rewind(self, step: int) -> None:
        """Let the rows that come replace those after `step`."""
        self.close(step)
        self.writer, self.start = None, step

    def close(self, step: int) -> None:
        """Write what is still held in memory."""
        with self._ending(step):
            if self.writer is not None:
                self.writer.close()

    @contextmanager
    def _ending(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a copy of the metrics, by a library whose errors depend on what else is installed
            self.writes, self.writer = False, None
            self.alert(step=step, said=f"curves for TensorBoard end here: {describe_os_error(error)}")
