"""Console output that is safe for any file name, encoding and terminal, and handlers for the package's log records.

Output never stops a command: what cannot be written (a full disk under a log, a closed pipe, a closed terminal) is
dropped and remembered.
"""

import codecs
import errno
import io
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from textwrap import fill
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from tubelet.errors import TubeletWarning, escape_unprintable, first_line

# Exit codes of a command that did its work and whose last line could not be printed; what sysexits.h calls EX_IOERR,
# and what a shell reports of a process that SIGPIPE ended.
OUTPUT_LOST, PIPE_CLOSED = 74, 141

# What a table needs to show anything of its cells, and what no terminal has.
MIN_COLUMNS, MAX_COLUMNS = 40, 10_000

PROGRESS_SECONDS = 30.0  # between two lines of progress where there is no terminal

_ERRORS = "tubelet.plain"
_PLAIN = str.maketrans(
    {
        "→": "->",
        "×": "x",
        "·": "*",
        "–": "-",
        "—": "-",
        "…": "...",
        "↑": "^",
        "↓": "v",
        "λ": "lambda",
        "≥": ">=",
        "≤": "<=",
    }
)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: by a similar plain character, otherwise by an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end].translate(_PLAIN)
    return part.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(_ERRORS, _plain)


class Output(io.TextIOBase):
    """A text stream that never raises: it escapes what its encoding lacks, and records what could not be written.

    Attributes:
        stream: what it writes to; None drops everything, as of a process that was started without a standard output.
        first_error: why something could not be written, the first time; None if all was.
        last_error: why the last text could not be; None if it was, also where something before it was lost.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.console: Console | None = None  # that prints to it
        self.first_error: Exception | None = None
        self.last_error: Exception | None = None
        self._dropped = False  # whether the last text is gone for good

    def write(self, text: str) -> int:
        """Write as much of the text as possible; returns the length of all of it."""
        if self.stream is None:
            self.last_error = OSError(errno.EBADF, os.strerror(errno.EBADF))
            return len(text)
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.encoding
                self.stream.write(text.encode(encoding, _ERRORS).decode(encoding))
            self.last_error, self._dropped = None, False
        except (OSError, ValueError) as error:  # what a stream that was closed raises is a ValueError
            self._note(error)
            self._dropped = True
        return len(text)

    def flush(self) -> None:
        """Flush; text that could not be flushed stays in the stream, for another attempt."""
        if self.stream is None:
            return
        try:
            self.stream.flush()
            if not self._dropped:
                self.last_error = None
        except (OSError, ValueError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.last_error = error
        self.first_error = self.first_error or error

    def close(self) -> None:
        """Flush; the underlying stream is not closed."""
        self.flush()

    def abandon(self) -> None:
        """Discard the text that could not be written, so that Python does not try again when it exits."""
        try:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self.fileno())
            os.close(descriptor)
            self.flush()
        except (OSError, ValueError):
            pass

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a connected terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def writable(self) -> bool:
        """Always True."""
        return True

    def fileno(self) -> int:
        """The file descriptor of the stream."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    @property
    def buffer(self) -> Any:
        """The binary buffer of the stream."""
        return getattr(self.stream, "buffer", None)


class _Console(Console):
    """A rich console that prints strings literally (no markup) and no control characters but its own."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_unprintable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_unprintable(segment.text, keep="\n"))


def open_console(stderr: bool = False) -> Console:
    """The console that a command prints to: standard output, or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    output = stream if isinstance(stream, Output) else Output(stream)
    if output.console is None:
        output.console = _Console(file=cast(TextIO, output), stderr=stderr, markup=False, emoji=False, highlight=False)
    return output.console


def output_error(console: Console) -> str | None:
    """Why a console could not print something, if so."""
    error = getattr(console.file, "first_error", None)
    return None if error is None else first_line(error)


def set_terminal_size() -> None:
    """Set the environment so that tables and help are laid out for a readable width.

    Narrower terminals wrap the lines. At 0 columns, which terminals without a size report, nothing would be printed at
    all; at 1, the layout of the help would never end.
    """
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and 0 < int(value[:9]) <= MAX_COLUMNS):
            os.environ.pop(name, None)
    if shutil.get_terminal_size().columns < MIN_COLUMNS:
        os.environ["COLUMNS"] = str(MIN_COLUMNS)


@contextmanager
def standard_streams() -> Iterator[Output]:
    """Standard output and error as `Output`, and warnings as one line, for as long as a command runs.

    Yields:
        standard output.
    """
    streams, formatted = (sys.stdout, sys.stderr), warnings.formatwarning
    out, err = (stream if isinstance(stream, Output) else Output(stream) for stream in streams)
    sys.stdout, sys.stderr, warnings.formatwarning = out, err, _format_warning
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = streams
        warnings.formatwarning = formatted
        for output in (out, err):
            output.flush()
            if output.last_error is not None:
                output.abandon()


def _format_warning(message: Any, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Format a warning as its message; of another package, with its source."""
    own = issubclass(category, TubeletWarning)
    origin = "" if own else f" ({category.__name__}, {filename}:{lineno})"
    return f"warning: {escape_unprintable(str(message))}{origin}\n"


@contextmanager
def files_progress(console: Console, unit: str = "files") -> Iterator[Callable[[int, int], None]]:
    """A progress bar over files, and the function that moves it to `done` of `total`."""
    with stages_progress(console) as move:
        yield partial(move, unit)


@contextmanager
def stages_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars for the stages of a command, and the function that moves them; log lines without a terminal.

    A stage may run in rounds: `training: fold 2 of 5` is a round of `training`, and shares its bar.
    """
    if not console.is_terminal:
        yield ProgressLines().move
        return
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}
        latest: dict[str, tuple[str, int]] = {}  # name of the bar -> its round, and how far that is

        def move(stage: str, done: int, total: int) -> None:
            name = stage.partition(": ")[0]
            if name not in bars:
                bars[name] = progress.add_task(stage, total=total)
            elif stage != latest[name][0] or done < latest[name][1]:
                progress.reset(bars[name])
            latest[name] = stage, done
            progress.update(bars[name], description=stage, completed=done, total=total)

        yield move


class ProgressLines:
    """Progress without a terminal: from time to time a line on standard error, with the time left of the stage."""

    def __init__(self) -> None:
        self._printed = time.monotonic()
        # Stage -> when its latest run started, how far it was then, and how far it is.
        self._runs: dict[str, tuple[float, int, int]] = {}

    def move(self, stage: str, done: int, total: int) -> None:
        """Record that `done` of `total` items of a stage are done."""
        now = time.monotonic()
        start_time, before, latest = self._runs.get(stage, (now, done, done))
        if done < latest:  # the stage runs again, as another training
            start_time, before = now, done
        self._runs[stage] = start_time, before, done
        if now - self._printed < PROGRESS_SECONDS:
            return
        self._printed = now
        left = f", {duration((now - start_time) / (done - before) * (total - done))} left" if done > before else ""
        left += " in this round" if left and ": " in stage else ""
        line = f"{time.strftime('%H:%M:%S')} {stage}: {done:,} of {total:,}{left}"
        print_wrapped(open_console(stderr=True), line)


def duration(seconds: float) -> str:
    """A duration in the unit that suits it, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class RankFilter(logging.Filter):
    """Adds the attribute `rank` to log records: the rank of the process, 0 in a single process."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = int(os.environ["RANK"]) if os.environ.get("RANK", "").isdigit() else 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the rank; let every record through."""
        record.rank = self.rank
        return True


class ConsoleHandler(logging.Handler):
    """Prints log records to the console of the progress bars, above the bars; records above DEBUG only on rank 0."""

    def __init__(self, level: str, dated: bool = False, stderr: bool = False) -> None:
        """Print records from a level on.

        Args:
            level: "debug", "info", "warning" or "error".
            dated: Whether lines begin with date and time where the console is not a terminal.
            stderr: Whether they go to standard error, since standard output is for a program.
        """
        super().__init__(level.upper())
        self.stderr = stderr
        self.addFilter(RankFilter())
        if dated and not open_console(stderr).is_terminal:
            self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        if self.level <= logging.DEBUG:
            self.setFormatter(logging.Formatter("%(asctime)s rank %(rank)d %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; warnings are yellow, errors red."""
        if self.level > logging.DEBUG and getattr(record, "rank", 0) > 0:
            return
        styles = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}
        print_wrapped(open_console(self.stderr), self.format(record), styles.get(record.levelno, ""))


@contextmanager
def log_to(handler: logging.Handler) -> Iterator[None]:
    """Attach a handler to the package's logger, with the handler's level, and close it at the end of the context."""
    logger = logging.getLogger("tubelet")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def print_wrapped(console: Console, text: str, style: str = "") -> None:
    """Print a message: on a terminal wrapped at spaces only, so that paths stay whole; elsewhere as one line."""
    text = escape_unprintable(text)
    if console.is_terminal:
        text = fill(text, console.width, break_long_words=False, break_on_hyphens=False)
    console.print(Text(text), style=style, soft_wrap=True)  # the console would escape the line feeds of a plain string
