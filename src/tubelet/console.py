"""What commands show while they work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import fill

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tubelet.types import BadFile


@contextmanager
def files_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of files, and the function that moves it to `done` of `total`."""
    columns = (TextColumn("files"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("files", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stages_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of an evaluation, and the function that moves them."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def move(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total)

        yield move


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence: on a terminal broken between words alone, so that a path stays whole; elsewhere a line."""
    if console.is_terminal:
        text = fill(text, console.width, break_long_words=False, break_on_hyphens=False)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_bad(console: Console, file: BadFile) -> None:
    """A line on a file that cannot be read."""
    say(console, f"bad file {file}", "yellow")
