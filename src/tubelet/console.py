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
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from tubelet.errors import escape_unprintable, first_line

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
    """What an encoding lacks: signs that have a plain form by it, all else as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end].translate(_PLAIN)
    return part.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(_ERRORS, _plain)


class Output(io.TextIOBase):
    """A text stream that never raises: it shows what its encoding can, and remembers what could not be written.

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
        """Write what can be; the length of all of it."""
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
        """Write what is buffered; what could not be flushed is kept by the stream, and may be at another try."""
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
        """Flush; the stream is not this object's to close."""
        self.flush()

    def abandon(self) -> None:
        """Have what could not be written forgotten, so that Python does not try once more as it ends."""
        try:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self.fileno())
            os.close(descriptor)
            self.flush()
        except (OSError, ValueError):
            pass

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal that is there."""
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """Of the stream."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    @property
    def buffer(self) -> Any:
        """Of the stream."""
        return getattr(self.stream, "buffer", None)


class _Console(Console):
    """A console that takes strings literally, and prints no control character but its own."""

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
    """Set the environment so that tables and help are laid out for a width in which they can be read.

    Narrower terminals wrap the lines. At 0 columns, which terminals report that have no size, nothing would be printed
    at all; at 1, the help would never be laid out.
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
    """A warning for a person: its sentence; of another package also where it comes from."""
    own = Path(filename).is_relative_to(Path(__file__).parent)
    origin = "" if own else f" ({category.__name__}, {filename}:{lineno})"
    return f"warning: {escape_unprintable(str(message))}{origin}\n"


@contextmanager
def files_progress(console: Console, what: str = "files") -> Iterator[Callable[[int, int], None]]:
    """A bar of files, and the function that moves it to `done` of `total`."""
    with stages_progress(console) as move:
        yield partial(move, what)


@contextmanager
def stages_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of a command, and the function that moves them; lines on anything but a terminal."""
    if not console.is_terminal:
        yield ProgressLines().move
        return
    columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total)

        yield move


class ProgressLines:
    """Progress where there is no terminal to redraw: now and then a line on standard error, with the time left."""

    def __init__(self) -> None:
        self._printed = time.monotonic()
        self._first: dict[str, tuple[float, int]] = {}  # stage -> when it was first seen, and how far it was

    def move(self, what: str, done: int, total: int) -> None:
        """Note that `done` of `total` are done of a stage."""
        now = time.monotonic()
        start_time, before = self._first.setdefault(what, (now, done))
        if now - self._printed < PROGRESS_SECONDS:
            return
        self._printed = now
        left = f", {duration((now - start_time) / (done - before) * (total - done))} left" if done > before else ""
        line = f"{time.strftime('%H:%M:%S')} {what}: {done:,} of {total:,}{left}"
        print_wrapped(open_console(stderr=True), line)


def duration(seconds: float) -> str:
    """A duration in the unit that suits it, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class RankFilter(logging.Filter):
    """Adds the attribute `rank` to records: the number of the process among those of a run, 0 in a single process."""

    def __init__(self) -> None:
        super().__init__()
        self.rank = int(os.environ["RANK"]) if os.environ.get("RANK", "").isdigit() else 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the rank; let every record through."""
        record.rank = self.rank
        return True


class ConsoleHandler(logging.Handler):
    """Prints records to the console that progress bars are shown on, which draws them above the bars.

    Above the level DEBUG only those of rank 0.
    """

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
    """Pass what the package logs to a handler, from the handler's level on, and close it."""
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
    """Print a message: on a terminal wrapped at spaces only, so that a path stays whole; elsewhere as one line."""
    text = escape_unprintable(text)
    if console.is_terminal:
        text = fill(text, console.width, break_long_words=False, break_on_hyphens=False)
    console.print(Text(text), style=style, soft_wrap=True)  # the console would escape the line feeds of a plain string
