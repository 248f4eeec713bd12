"""What reaches a terminal or a page, and what happens where nothing can."""

import errno
import io
import os
import sys
import warnings
from contextlib import redirect_stdout

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tubelet import cli
from tubelet.console import (
    Output,
    ProgressLines,
    duration,
    files_progress,
    open_console,
    output_error,
    print_wrapped,
    set_terminal_size,
    stages_progress,
)
from tubelet.errors import BadFile, TubeletError, TubeletWarning, escape_unprintable

# ESC, a line feed, a right-to-left mark, a zero-width space, a line separator, a byte that is not UTF-8, C1's CSI.
NASTY = "a\x1b[31m\nb\u202ec\u200bd\u2028e\udcfff\x9bg\r\b[red]h[/red]:smile:.mp4"
SHOWN = r"a\x1b[31m\nb\u202ec\u200bd\u2028e\udcfff\x9bg\r\x08[red]h[/red]:smile:.mp4"


class Broken(io.StringIO):
    """A stream on a full disk, or a pipe that is closed."""

    def __init__(self, error=errno.ENOSPC, after=0):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text):
        if self.left <= 0:
            raise OSError(self.error, os.strerror(self.error))
        self.left -= 1
        return super().write(text)

    def flush(self):
        if self.left <= 0:
            raise OSError(self.error, os.strerror(self.error))


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def test_a_long_message_has_lines_on_a_terminal_of_a_command():
    file = io.StringIO()
    with redirect_stdout(file):
        console = open_console()
    console._force_terminal, console.width = True, 20
    print_wrapped(console, "word " * 8)
    console.file.flush()
    lines = file.getvalue().splitlines()
    assert len(lines) == 2 and all(line.split() == ["word"] * 4 for line in lines)


def test_a_name_is_shown_without_what_controls_a_terminal():
    assert escape_unprintable(NASTY) == SHOWN
    assert escape_unprintable(SHOWN) == SHOWN  # once is enough
    assert escape_unprintable("日本語\u3000é\u00a0x.mp4") == "日本語\u3000é\u00a0x.mp4"
    assert str(TubeletError(NASTY)) == SHOWN
    assert str(BadFile(NASTY, "a\nb")) == rf"{SHOWN}: a\nb"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_is_printed_shows_names_on_any_terminal(encoding, monkeypatch):
    plain = stream(encoding)
    monkeypatch.setattr(sys, "stdout", Output(plain))
    console = open_console()
    console.width = 200
    print_wrapped(console, f"page: {NASTY} é → λ")
    table = Table()
    table.add_column(NASTY)
    table.add_row(NASTY)
    console.print(table)
    console.print(Text(NASTY))
    print("\udcff λ ×")
    printed = plain.buffer.getvalue().decode(encoding)
    assert "\x1b" not in printed and "\u202e" not in printed and "\x9b" not in printed and "\x08" not in printed
    assert f"page: {SHOWN}" in printed and printed.count(SHOWN) == 3
    assert ("→ λ" if encoding == "utf-8" else "-> lambda") in printed


def test_a_console_of_another_program_is_spoken_to_as_carefully():
    file = io.StringIO()
    print_wrapped(Console(file=file, width=300, force_terminal=True), NASTY)
    assert SHOWN in file.getvalue() and "\x1b[31m" not in file.getvalue()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_what_cannot_be_printed_is_remembered_and_nothing_is_raised(error, monkeypatch):
    broken = Broken(error, after=1)
    monkeypatch.setattr(sys, "stdout", broken)
    console = open_console()
    for _ in range(3):
        print_wrapped(console, "a line")
    assert output_error(console) == f"[Errno {error}] {os.strerror(error)}"
    broken.left = 9  # there is room again
    print_wrapped(console, "a later line")
    assert console.file.last_error is None and broken.getvalue().endswith("a later line\n")


@pytest.mark.parametrize("gone", [None, stream("utf-8")])
def test_a_process_without_a_standard_output_prints_nothing(gone, monkeypatch):
    if gone is not None:
        gone.close()
    monkeypatch.setattr(sys, "stdout", gone)
    console = open_console()
    print_wrapped(console, "a line")
    assert not console.is_terminal
    assert (output_error(console) is None) == (gone is None)


@pytest.mark.parametrize(("error", "code"), [(errno.ENOSPC, cli.OUTPUT_LOST), (errno.EPIPE, cli.PIPE_CLOSED)])
def test_a_command_whose_last_line_is_lost_ends_with_a_code_that_reports_it(error, code, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tubelet", "--version"])
    broken = Broken(error)
    monkeypatch.setattr(sys, "stdout", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert sys.stdout is broken
    broken.flush = lambda: None  # as of a stream that has nothing left to write
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    broken.left = 99
    cli.main()
    assert broken.getvalue().startswith("tubelet ")


def test_a_command_whose_standard_output_is_closed_ends_with_a_code_that_reports_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tubelet", "--version"])
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit, match=str(cli.OUTPUT_LOST)):
        cli.main()


def test_a_warning_is_one_line(monkeypatch, capsys):
    def warn(*_, **__):
        for message, category in ((NASTY, TubeletWarning), ("theirs", UserWarning)):  # pytest keeps warnings for itself
            sys.stderr.write(warnings.formatwarning(category(message), category, "/lib/other.py", 7))

    monkeypatch.setattr(cli.Search, "run", warn)
    monkeypatch.setattr(sys, "argv", ["tubelet", "search", ".", "."])
    cli.main()
    assert capsys.readouterr().err == f"warning: {SHOWN}\nwarning: theirs (UserWarning, /lib/other.py:7)\n"


@pytest.mark.parametrize("columns", ["0", "1", "-5", "²", "9" * 30, "x"])
def test_a_terminal_of_no_width_is_one_that_a_table_can_be_read_on(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    set_terminal_size()
    table = Table("similarity", "file")
    table.add_row("0.5", "a.mp4")
    open_console().print(table)
    assert "a.mp4" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tubelet", "search", "--help"])
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "--top" in capsys.readouterr().out


def test_progress_without_a_terminal_is_a_line_now_and_then_with_the_time_left(monkeypatch, capsys):
    clock = iter([0.0, 0.0, 10.0, 31.0, 40.0, 70.0])
    monkeypatch.setattr("tubelet.console.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("tubelet.console.time.strftime", lambda form: "12:00:00")
    with files_progress(Console(file=io.StringIO())) as move:
        for done in (0, 100, 310, 400, 700):
            move(done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "12:00:00 files: 310 of 1,000, 69 s left",
        "12:00:00 files: 700 of 1,000, 30 s left",
    ]


def test_the_time_left_is_that_of_the_latest_round(monkeypatch, capsys):
    clock = iter([0.0, 0.0, 1000.0, 1000.0, 1040.0, 1040.0, 1080.0])
    monkeypatch.setattr("tubelet.console.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("tubelet.console.time.strftime", lambda form: "12:00:00")
    lines = ProgressLines()
    for stage, done in (("training", 0), ("training", 150), ("training", 0), ("training", 50)):
        lines.move(stage, done, 150)
    for done in (0, 50):
        lines.move("training: fold 2 of 5", done, 150)
    assert capsys.readouterr().err.splitlines() == [
        "12:00:00 training: 150 of 150, 0 s left",
        "12:00:00 training: 50 of 150, 80 s left",
        "12:00:00 training: fold 2 of 5: 50 of 150, 80 s left in this round",
    ]


def test_a_bar_starts_with_the_total_and_again_in_each_round():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with stages_progress(console) as move:
        for stage in ("training: fold 1 of 2", "training: fold 2 of 2"):
            for done in (0, 12):
                move(stage, done, 12)
    text = console.file.getvalue()
    assert "/100" not in text and text.rstrip().count("fold 2 of 2") >= 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(89, "89 s"), (90, "2 min"), (5400, "1.5 h"), (3 * 86400, "3.0 days"), (0.4, "0 s")]
)
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text
